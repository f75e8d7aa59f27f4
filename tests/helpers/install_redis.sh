#!/usr/bin/env bash
# Puts a redis-server on the PATH for the tests that need TLS or a second kind of server.
#
# It tries only what needs no question: apt-get as root or with a sudo that asks for no password.
# Failing that it says what to do and succeeds all the same, so that everything else is tested; the
# tests that need the server then fail with the same advice.
set -euo pipefail

advice() {
    echo "redis-server is not installed, and the tests that need it will fail." >&2
    echo "  Debian, Ubuntu:  sudo apt-get install redis-server" >&2
    echo "  macOS:           brew install redis" >&2
    exit 0
}

if command -v redis-server >/dev/null || [ -n "${PODLINK_TEST_REDIS_SERVER:-}" ]; then
    exit 0
fi
command -v apt-get >/dev/null || advice
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    advice
fi

# The tests start servers of their own on free ports. Debian's package would also start one on 6379
# now and at every boot: policy-rc.d tells it not to start, unless the machine has its own policy.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "installing redis-server for the tests"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
    --no-install-recommends -o DPkg::Lock::Timeout=120 redis-server)
# Package lists that are missing or stale are the usual reason why the first attempt fails.
"${install[@]}" </dev/null >/dev/null 2>&1 ||
    { "${as_root[@]}" apt-get update -qq </dev/null && "${install[@]}" </dev/null >/dev/null; } ||
    advice

# A machine with a policy of its own may have started it after all.
if [ -d /run/systemd/system ]; then
    "${as_root[@]}" systemctl --quiet disable --now redis-server || true
elif [ -x /etc/init.d/redis-server ]; then
    "${as_root[@]}" /etc/init.d/redis-server stop >/dev/null 2>&1 || true
fi
