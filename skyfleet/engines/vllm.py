"""vLLM (V1 engine): `vllm serve`. Sources: vLLM documentation, "Engine Arguments", "Production Metrics"."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from skyfleet.engines.arguments import choice, integer, json_object, number, switch, text
from skyfleet.engines.base import (
    LOADING_MODEL,
    STARTING_ENGINE,
    Engine,
    EngineLaunch,
    MetricNames,
    patterns,
)

_OURS = "is set by Skyfleet"
_RUNS_CODE = "would run code that comes with the model; use the engine `command` if you mean to"
_READS_FILES = "reads files of the machine, which a launch does not choose"


@dataclass(frozen=True)
class VllmEngine(Engine):
    """vLLM's OpenAI-compatible server."""

    def command(self, launch: EngineLaunch) -> list[str]:
        """`vllm serve MODEL …`, served under the launch's model name."""
        return [
            "vllm",
            "serve",
            launch.model,
            "--served-model-name",
            launch.model_name,
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            *(["--load-format", "runai_streamer"] if _streamed(launch) else []),
            # A model's own longest context is often more than its GPU has room for, and vLLM then does not start. Since
            # 0.14 it can take the longest that there is room for (vLLM documentation, "Engine Arguments").
            *(["--max-model-len", "auto"] if "--max-model-len" not in launch.args else []),
            *launch.args,
        ]

    def available(self, work_dir: str) -> str | None:
        """The machine's image or its set-up has it: gigabytes of CUDA code are not fetched in passing."""
        if shutil.which("vllm") is None:
            return "vLLM is not installed on this machine: there is no `vllm` on PATH"
        return None


def _streamed(launch: EngineLaunch) -> bool:
    """Whether the weights come from a bucket, and nobody said how (vLLM documentation, "Run:ai Model Streamer")."""
    return launch.model.startswith("s3://") and "--load-format" not in launch.args


VLLM = VllmEngine(
    name="vllm",
    title="vLLM",
    needs_gpu=True,
    # With Run:ai's streamer, which reads weights from a bucket straight into the GPU.
    requirement="vllm[runai]==0.33.0",
    metric_names=MetricNames(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        # Called gpu_cache_usage_perc before 0.10; both are fractions of 1 in spite of the name.
        kv_cache_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        generated_tokens_total=("vllm:generation_tokens_total",),
    ),
    allowed_args={
        # model and loading
        "--dtype": choice("auto", "half", "float16", "bfloat16", "float", "float32"),
        "--max-model-len": integer(1),
        "--quantization": text("-q"),
        "--load-format": choice(
            "auto",
            "pt",
            "safetensors",
            "npcache",
            "dummy",
            "gguf",
            "bitsandbytes",
            "mistral",
            "tensorizer",
            "sharded_state",
            "runai_streamer",
            "runai_streamer_sharded",
            "fastsafetensors",
        ),
        "--revision": text(),
        "--tokenizer": text(),
        "--tokenizer-revision": text(),
        "--tokenizer-mode": choice("auto", "hf", "slow", "mistral"),
        "--config-format": choice("auto", "hf", "mistral"),
        "--model-impl": choice("auto", "vllm", "transformers"),
        "--runner": choice("auto", "generate", "pooling", "draft"),
        "--seed": integer(0),
        "--max-logprobs": integer(-1),
        "--enforce-eager": switch(negatable=True),
        "--disable-sliding-window": switch(negatable=True),
        "--generation-config": choice("auto", "vllm"),
        "--override-generation-config": json_object(
            "temperature", "top_p", "top_k", "min_p", "max_new_tokens", "repetition_penalty"
        ),
        "--rope-scaling": json_object("rope_type", "factor", "original_max_position_embeddings"),
        "--rope-theta": number(0),
        "--limit-mm-per-prompt": json_object("image", "video", "audio"),
        # parallelism
        "--tensor-parallel-size": integer(1, 64, "-tp"),
        "--pipeline-parallel-size": integer(1, 64, "-pp"),
        "--data-parallel-size": integer(1, 64, "-dp"),
        "--enable-expert-parallel": switch("-ep", negatable=True),
        "--disable-custom-all-reduce": switch(negatable=True),
        "--distributed-executor-backend": choice("mp", "uni"),
        "--max-parallel-loading-workers": integer(1),
        # cache
        "--gpu-memory-utilization": number(0.01, 1),
        "--kv-cache-memory-bytes": integer(1),
        "--kv-cache-dtype": choice("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"),
        "--block-size": integer(1, 256),
        "--swap-space": number(0),
        "--cpu-offload-gb": number(0),
        "--enable-prefix-caching": switch(negatable=True),
        "--prefix-caching-hash-algo": choice("sha256", "sha256_cbor", "builtin", "xxhash", "xxhash_cbor"),
        "--calculate-kv-scales": switch(negatable=True),
        "--num-gpu-blocks-override": integer(1),
        # scheduling
        "--max-num-seqs": integer(1),
        "--max-num-batched-tokens": integer(1),
        "--max-num-partial-prefills": integer(1),
        "--max-long-partial-prefills": integer(1),
        "--long-prefill-token-threshold": integer(0),
        "--enable-chunked-prefill": switch(negatable=True),
        "--scheduling-policy": choice("fcfs", "priority"),
        "--async-scheduling": switch(negatable=True),
        "--stream-interval": integer(1),
        "--optimization-level": integer(0, 3),
        # speculation and adapters
        "--speculative-config": json_object(
            "method",
            "model",
            "num_speculative_tokens",
            "prompt_lookup_max",
            "prompt_lookup_min",
            "draft_tensor_parallel_size",
        ),
        "--enable-lora": switch(negatable=True),
        "--max-loras": integer(1),
        "--max-lora-rank": integer(1, 512),
        "--max-cpu-loras": integer(1),
        "--lora-dtype": choice("auto", "float16", "bfloat16"),
        "--fully-sharded-loras": switch(negatable=True),
        # serving
        "--enable-auto-tool-choice": switch(negatable=True),
        "--tool-call-parser": text(),
        "--reasoning-parser": text(),
        "--chat-template-content-format": choice("auto", "string", "openai"),
        "--enable-prompt-tokens-details": switch(negatable=True),
        "--enable-force-include-usage": switch(negatable=True),
        "--disable-log-requests": switch(),
        "--enable-log-requests": switch(negatable=True),
        "--uvicorn-log-level": choice("critical", "error", "warning", "info", "debug", "trace"),
        "--max-log-len": integer(0),
        "--api-server-count": integer(1, 64, "-asc"),
    },
    refused={
        "--host": _OURS,
        "--port": _OURS,
        "--model": _OURS + ", from the launch's model",
        "--served-model-name": _OURS + ", from the launch's model",
        "--api-key": "is not for engine arguments: a secret there can be read in the process list",
        "--hf-token": "is not for engine arguments: a secret there can be read in the process list; use `env`",
        "--uds": _OURS,
        "--root-path": _OURS,
        "--disable-log-stats": "would take away the figures that health and scaling are decided on",
        "--trust-remote-code": _RUNS_CODE,
        "--hf-overrides": _RUNS_CODE,
        "--middleware": "would run code of the caller's choice in the server",
        "--logits-processors": "would run code of the caller's choice in the server",
        "--worker-cls": "would run code of the caller's choice in the server",
        "--worker-extension-cls": "would run code of the caller's choice in the server",
        "--scheduler-cls": "would run code of the caller's choice in the server",
        "--tool-parser-plugin": "would run code of the caller's choice in the server",
        "--reasoning-parser-plugin": "would run code of the caller's choice in the server",
        "--compilation-config": "can name code to import and folders to write; use --optimization-level",
        "--allowed-local-media-path": _READS_FILES,
        "--chat-template": _READS_FILES,
        "--download-dir": _READS_FILES,
        "--config": _READS_FILES,
        "--ssl-keyfile": _READS_FILES,
        "--ssl-certfile": _READS_FILES,
        "--ssl-ca-certs": _READS_FILES,
    },
    stage_patterns=patterns(
        (r"Starting to load model |Loading model from scratch|Using model weights format", LOADING_MODEL),
        (r"Loading (safetensors|pt|gguf) checkpoint shards|Time spent downloading weights", LOADING_MODEL),
        (r"Model loading took |Dynamo bytecode transform time|torch\.compile takes", STARTING_ENGINE),
        (
            r"GPU KV cache size:|Available KV cache memory|Capturing CUDA graph|Graph capturing finished",
            STARTING_ENGINE,
        ),
        (r"init engine \(|Starting vLLM (API )?server", STARTING_ENGINE),
    ),
)
