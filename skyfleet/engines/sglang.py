"""SGLang: `python -m sglang.launch_server`. Sources: SGLang documentation, "Server Arguments", "Production Metrics"."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from skyfleet.engines.arguments import choice, integer, number, switch, text
from skyfleet.engines.base import (
    LOADING_MODEL,
    STARTING_ENGINE,
    Engine,
    EngineLaunch,
    MetricNames,
    patterns,
)

_OURS = "is set by Skyfleet"
_READS_FILES = "reads files of the machine, which a launch does not choose"
_IMPORT_SGLANG = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sglang') is None)"


@dataclass(frozen=True)
class SglangEngine(Engine):
    """SGLang's OpenAI-compatible server."""

    def command(self, launch: EngineLaunch) -> list[str]:
        """`python -m sglang.launch_server …`, with metrics on (they are off by default)."""
        return [
            launch.python,
            "-m",
            "sglang.launch_server",
            "--model-path",
            launch.model,
            "--served-model-name",
            launch.model_name,
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            "--enable-metrics",
            *launch.args,
        ]

    def available(self, work_dir: str) -> str | None:
        """SGLang has to be installed for the interpreter that runs the agent (asked of a fresh one, with its site)."""
        try:
            asked = subprocess.run([sys.executable, "-c", _IMPORT_SGLANG], capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"could not ask {sys.executable} for SGLang: {error}"
        return f"SGLang is not installed for {sys.executable}" if asked.returncode else None


SGLANG = SglangEngine(
    name="sglang",
    title="SGLang",
    needs_gpu=True,
    metric_names=MetricNames(
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_cache_usage=("sglang:token_usage",),
        generated_tokens_total=("sglang:generation_tokens_total",),
    ),
    allowed_args={
        "--dtype": choice("auto", "half", "float16", "bfloat16", "float", "float32"),
        "--context-length": integer(1),
        "--quantization": text(),
        "--kv-cache-dtype": choice("auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16"),
        "--load-format": choice(
            "auto",
            "pt",
            "safetensors",
            "npcache",
            "dummy",
            "gguf",
            "bitsandbytes",
            "layered",
            "sharded_state",
            "runai_streamer",
        ),
        "--revision": text(),
        "--tokenizer-path": text(),
        "--tokenizer-mode": choice("auto", "slow"),
        "--random-seed": integer(0),
        "--tensor-parallel-size": integer(1, 64, "--tp-size", "--tp"),
        "--pipeline-parallel-size": integer(1, 64, "--pp-size", "--pp"),
        "--data-parallel-size": integer(1, 64, "--dp-size", "--dp"),
        "--expert-parallel-size": integer(1, 64, "--ep-size", "--ep"),
        "--enable-dp-attention": switch(),
        "--mem-fraction-static": number(0.01, 1),
        "--max-running-requests": integer(1),
        "--max-queued-requests": integer(1),
        "--max-total-tokens": integer(1),
        "--chunked-prefill-size": integer(-1),
        "--max-prefill-tokens": integer(1),
        "--schedule-policy": choice("lpm", "random", "fcfs", "dfs-weight", "lof", "priority"),
        "--schedule-conservativeness": number(0),
        "--page-size": integer(1),
        "--stream-interval": integer(1),
        "--watchdog-timeout": number(1),
        "--attention-backend": choice(
            "triton", "torch_native", "flashinfer", "fa3", "fa4", "flashmla", "cutlass_mla", "trtllm_mla", "trtllm_mha"
        ),
        "--sampling-backend": choice("flashinfer", "pytorch"),
        "--grammar-backend": choice("xgrammar", "outlines", "llguidance", "none"),
        "--disable-radix-cache": switch(),
        "--disable-cuda-graph": switch(),
        "--cuda-graph-max-bs": integer(1),
        "--disable-overlap-schedule": switch(),
        "--disable-custom-all-reduce": switch(),
        "--enable-mixed-chunk": switch(),
        "--enable-torch-compile": switch(),
        "--enable-p2p-check": switch(),
        "--enable-multimodal": switch(),
        "--is-embedding": switch(),
        "--cpu-offload-gb": integer(0),
        "--tool-call-parser": text(),
        "--reasoning-parser": text(),
        "--speculative-algorithm": choice("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM"),
        "--speculative-draft-model-path": text(),
        "--speculative-num-steps": integer(1),
        "--speculative-eagle-topk": integer(1),
        "--speculative-num-draft-tokens": integer(1),
        "--enable-lora": switch(),
        "--max-lora-rank": integer(1, 512),
        "--max-loras-per-batch": integer(1),
        "--log-level": choice("critical", "error", "warning", "info", "debug"),
    },
    refused={
        "--host": _OURS,
        "--port": _OURS,
        "--model-path": _OURS + ", from the launch's model",
        "--model": _OURS + ", from the launch's model",
        "--served-model-name": _OURS + ", from the launch's model",
        "--enable-metrics": _OURS + " already",
        "--api-key": "is not for engine arguments: a secret there can be read in the process list",
        "--admin-api-key": "is not for engine arguments: a secret there can be read in the process list",
        "--trust-remote-code": "would run code that comes with the model; use the engine `command` if you mean to",
        "--json-model-override-args": "can name code to import; use the engine `command` if you mean to",
        "--enable-custom-logit-processor": "would let a request run code in the server",
        "--tokenizer-worker-num": "makes the metrics of one server disagree",
        "--chat-template": _READS_FILES,
        "--download-dir": _READS_FILES,
        "--config": _READS_FILES,
        "--file-storage-path": _READS_FILES,
        "--log-requests": "would write users' prompts into the engine's log",
    },
    stage_patterns=patterns(
        (r"Load weight begin\.|Loading (safetensors|pt) checkpoint shards|Using model weights format", LOADING_MODEL),
        (r"Load weight end\.|KV Cache is allocated|Memory pool end|Capture .*(cuda|CUDA) graph begin", STARTING_ENGINE),
        (r"max_total_num_tokens=|Uvicorn running on|The server is fired up and ready to roll", STARTING_ENGINE),
    ),
)
