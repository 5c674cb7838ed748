#!/usr/bin/env bash
# All tests but the slow ones: `scripts/test.sh [arguments of pytest]`, with PYTHON.
#
# Without arguments in two runs side by side, since most tests wait more than they work. Each has servers of its own, on
# ports of its own; the first one's output follows when the second is through.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if (($#)); then
  exec "$python" -m pytest -m "not slow" "$@"
fi

# About half of the time. What is not named here, the second run finds by itself.
first=(tests/activities tests/agent tests/api tests/localcloud tests/supervisor tests/unit)
log=$(mktemp)
pid=
# The shell keeps Ctrl-C from what it runs in the background.
trap 'rm -f "$log"; [[ -z $pid ]] || kill "$pid" 2>/dev/null || true' EXIT
"$python" -m pytest -m "not slow" -o cache_dir=.pytest_cache/first "${first[@]}" >"$log" 2>&1 &
pid=$!
status=0
"$python" -m pytest -m "not slow" -o cache_dir=.pytest_cache/second tests "${first[@]/#/--ignore=}" || status=$?
wait "$pid" || status=$?
cat "$log"
exit "$status"
