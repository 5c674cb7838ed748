#!/usr/bin/env bash
# Installs Debian packages that are missing: `debian-packages.sh [--optional] PACKAGE…`
#
# Needs root, or sudo without a password, and says so where there is neither. With --optional that is no failure: the
# tests that need the package are then skipped with their reason. An installation that was tried and failed always is.
set -euo pipefail

optional=0
if [[ "${1:-}" == --optional ]]; then
  optional=1
  shift
fi

missing=()
for package in "$@"; do
  [[ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

refuse() {
  echo "debian-packages: not installed: ${missing[*]} ($1)" >&2
  if ((optional)); then
    echo "debian-packages: tests that need them will be skipped" >&2
    exit 0
  fi
  exit 1
}

command -v apt-get >/dev/null || refuse "this is not a Debian system; install them by hand"
as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null && sudo -n true 2>/dev/null || refuse "needs root, or sudo without a password"
  as_root=(sudo)
fi

echo "debian-packages: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Somebody else's apt may be at work, the system's own daily one for instance: waited for, not tripped over.
wait_for_lock=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
"${as_root[@]}" apt-get "${wait_for_lock[@]}" update -q >&2
"${as_root[@]}" apt-get "${wait_for_lock[@]}" install -q -y --no-install-recommends "${missing[@]}" >&2
