#!/usr/bin/env bash
# Installs what the tests need from the distribution: a redis-server, for TLS and as a second kind of
# server, Prometheus with promtool, for what deploy/observability holds, and PostgreSQL and MariaDB,
# for the recipes of docs/fencing.md.
#
# It tries only what needs no question: apt-get as root or with a sudo that asks for no password.
# Failing that it says what to do and succeeds all the same, so that everything else is tested; the
# tests that need a server then fail with the same advice.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || [ -n "${PODLINK_TEST_REDIS_SERVER:-}" ] ||
    missing+=(redis-server)
{ command -v prometheus && command -v promtool; } >/dev/null || missing+=(prometheus)
# Debian keeps PostgreSQL's programs off the PATH.
[ -n "${PODLINK_TEST_POSTGRES_BIN:-}" ] || command -v initdb >/dev/null ||
    compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || missing+=(postgresql)
# mariadbd lies in /usr/sbin, which is not on every user's PATH.
PATH="$PATH:/usr/sbin" command -v mariadbd >/dev/null || missing+=(mariadb-server)
[ "${#missing[@]}" -gt 0 ] || exit 0

advice() {
    echo "${missing[*]}: not installed, and the tests that need it will fail." >&2
    echo "  Debian, Ubuntu:  sudo apt-get install ${missing[*]}" >&2
    echo "  macOS:           brew install ${missing[*]%-server}" >&2
    exit 0
}

command -v apt-get >/dev/null || advice
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    advice
fi

# The tests start servers of their own on free ports. Debian's packages would also start theirs now
# and at every boot: policy-rc.d tells them not to start, unless the machine has its own policy.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "installing ${missing[*]} for the tests"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
    --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}")
# Package lists that are missing or stale are the usual reason why the first attempt fails.
"${install[@]}" </dev/null >/dev/null 2>&1 ||
    { "${as_root[@]}" apt-get update -qq </dev/null && "${install[@]}" </dev/null >/dev/null; } ||
    advice

# A machine with a policy of its own may have started them after all.
for service in "${missing[@]/mariadb-server/mariadb}"; do
    if [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl --quiet disable --now "$service" || true
    elif [ -x "/etc/init.d/$service" ]; then
        "${as_root[@]}" "/etc/init.d/$service" stop >/dev/null 2>&1 || true
    fi
done
