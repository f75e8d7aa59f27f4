# podlink: short verbs. Nothing to install first besides Rust, Python 3.11 and make.
#
# Tools and the package go into .venv. Files named .venv/.stamp-* record what was done, so that
# nothing is done again until what it was made from has changed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# One pip and one cargo at a time: they lock each other out anyway, and pip not even that.
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
HAS_VENV := $(VENV)/.stamp-venv
HAS_MATURIN := $(VENV)/.stamp-maturin
HAS_TOOLS := $(VENV)/.stamp-tools
HAS_PODLINK := $(VENV)/.stamp-podlink

# What the extension is made from; python/podlink is used where it lies and needs no build.
EXTENSION_SOURCES := Cargo.toml Cargo.lock pyproject.toml rust-toolchain.toml \
    $(shell find src -type f 2>/dev/null)

# maturin builds into this environment, whatever else is active in the shell.
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
unexport CONDA_PREFIX
# The same Python for cargo and for maturin, or each would rebuild what the other has built.
export PYO3_PYTHON := $(CURDIR)/$(PYTHON)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-core test-python lint fmt bench docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(HAS_PODLINK) ## Build podlink and watch it route, on this machine and with no server
	@$(BIN)/podlink demo

test: lint test-core test-python ## Everything: lint, Rust tests, Python tests

test-core: $(HAS_TOOLS) ## The Rust tests, without Python
	@tests/helpers/install_servers.sh
	@valkey="$$($(PYTHON) tests/helpers/server_paths.py valkey)"; \
	redis="$$($(PYTHON) tests/helpers/server_paths.py redis)"; \
	export PODLINK_TEST_VALKEY_SERVER="$$valkey" PODLINK_TEST_REDIS_SERVER="$$redis"; \
	set -x; cargo test --locked --no-default-features

test-python: $(HAS_TOOLS) $(HAS_PODLINK) ## The Python tests; ARGS="-k name" picks some
	@tests/helpers/install_servers.sh
	$(PYTHON) -m pytest $(ARGS)

lint: $(HAS_TOOLS) $(HAS_PODLINK) ## Formatting, clippy, ruff, types, stubs, layers
	cargo fmt --check
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	cargo clippy --locked --all-targets -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTHON) -m mypy.stubtest podlink._podlink
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes podlink --ignoreexternal
	$(BIN)/lint-imports
	$(PYTHON) tests/helpers/voice.py

fmt: $(HAS_TOOLS) ## Format Rust and Python, and mend what the linters can mend
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The stamp goes: what is in .venv afterwards is a release, and `make test` wants its own build back.
bench: $(HAS_TOOLS) ## Measure, beside other clients; QUICK=1 only tries the scripts
	@tests/helpers/install_servers.sh
	$(PYTHON) -m pip install --quiet --requirement benches/requirements.txt
	cargo bench --locked --no-default-features --bench core --no-run
	rm -rf $(HAS_PODLINK) target/bench-wheel
	$(BIN)/maturin build --locked --release --out target/bench-wheel
	$(BIN)/maturin develop --locked --release
	$(PYTHON) benches/python/all.py

docs: ## The Rust documentation, into target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --no-default-features

clean: ## Remove everything that was built, and the tools
	cargo clean
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f python/podlink/*.so
	find python tests -name __pycache__ -prune -exec rm -rf {} +

# --- How the above is made ------------------------------------------------------------------------

# A name on the PATH is not yet a Python (pyenv's shims), nor a whole one (Debian splits venv off).
$(HAS_VENV):
	@for python in python3.11 python3 python3.13 python3.12; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        "$$python" -c 'import ensurepip, venv' 2>/dev/null \
	            || { echo "$$python has no venv; on Debian: apt-get install python3-venv"; exit 1; }; \
	        "$$python" -m venv --clear $(VENV); touch $@; exit 0; \
	    fi; \
	done; echo "podlink needs Python 3.11 or later, and there is none on the PATH"; exit 1

# maturin alone is enough for the demo; the rest waits until somebody tests.
$(HAS_MATURIN): requirements-dev.txt | $(HAS_VENV)
	$(PYTHON) -m pip install --quiet --constraint requirements-dev.txt maturin
	@touch $@

$(HAS_TOOLS): requirements-dev.txt | $(HAS_VENV)
	$(PYTHON) -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

# The development profile: a release build takes minutes, and shows nothing that this one does not.
$(HAS_PODLINK): $(EXTENSION_SOURCES) | $(HAS_MATURIN)
	$(BIN)/maturin develop --locked
	@touch $@
