"""A launch whose engine is a real llama.cpp, from the request to an answer and the machine's end."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from skyfleet.domain.states import LaunchStage
from tests.stack import running_stack

pytestmark = pytest.mark.slow

MODEL = "skyfleet/random-0.1m"


async def test_a_model_is_launched_on_a_real_engine(
    tmp_path: Path, llama_server: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER", llama_server)  # the local cloud passes it on to its machines
    async with running_stack(tmp_path) as stack:
        await stack.client.register_model(
            {
                "id": MODEL,
                "name": MODEL,
                "family": "random",
                "size": "0.1M",
                "vram_required_gb": 0.1,
                "source": str(model),
            }
        )
        kind = stack.kind()
        job_id = await stack.launch(
            kind.aws,
            model_name=MODEL,
            engine="llama_cpp",
            engine_args={"ctx-size": 256, "parallel": 2, "threads": 1},
        )
        status = await stack.ready(job_id, timeout_s=120)
        assert status.engine == "llama_cpp"
        # Read from llama.cpp's own log, and each only once it was reached.
        stages = [event.stage for event in await stack.told(job_id) if event.kind == "stage"]
        observed = [LaunchStage.INSTALLING, LaunchStage.LOADING_MODEL, LaunchStage.STARTING_ENGINE]
        assert [stage for stage in stages if stage in observed] == observed

        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "stream": True}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=60) as http,
            http.stream("POST", f"{status.endpoint_url}/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
            lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[0][6:])["object"] == "chat.completion.chunk"
        await stack.terminate(job_id)
        await stack.nothing_left(job_id)
