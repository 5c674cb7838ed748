#!/usr/bin/env bash
# Pins every dependency by name, version and hash. No index or download address is written.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=(--generate-hashes --no-emit-index-url --no-header --no-annotate -q)
flags=(--universal --python-version 3.11 "${pins[@]}")
# The widest of what ships first: the others take their versions from it.
uv pip compile "${flags[@]}" pyproject.toml --extra skypilot -o requirements/skypilot.txt "$@"
uv pip compile "${flags[@]}" pyproject.toml -c requirements/skypilot.txt -o requirements/runtime.txt "$@"
uv pip compile "${flags[@]}" pyproject.toml --extra dev -c requirements/skypilot.txt -o requirements/dev.txt "$@"
# What the Dockerfile builds the wheel with.
python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
  uv pip compile "${flags[@]}" - -c requirements/dev.txt -o requirements/build.txt "$@"
# What the labs' machines have: SkyPilot's choice of Python, and versions that need not be ours.
uv pip compile --python-platform linux --python-version 3.10 "${pins[@]}" requirements/lab-vm.in -o requirements/lab-vm.txt "$@"
uv pip compile "${flags[@]}" requirements/lab-slurm.in -o requirements/lab-slurm.txt "$@"
