"""llama.cpp for real: the agent brings up `llama-server` with a tiny random model and it answers a streamed chat."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.harness import AgentProcess, FakeControlPlane, boot_of
from tests.waiting import eventually

pytestmark = pytest.mark.slow

MODEL = "skyfleet/random-0.1m"


@pytest.fixture
async def node(
    tmp_path: Path, llama_server: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AgentProcess, FakeControlPlane]]:
    """An agent that has registered a node with llama.cpp."""
    monkeypatch.setenv("LLAMA_SERVER", llama_server)
    control_plane = FakeControlPlane()
    await control_plane.start()
    engine = {"name": "llama_cpp", "args": ["--ctx-size", "256", "--parallel", "2", "--threads", "1"], "command": []}
    boot = boot_of(control_plane.url, tmp_path, model_name=MODEL, model_source=str(model), engine=engine)
    agent = AgentProcess(tmp_path, boot)
    agent.start()
    try:
        await eventually(
            lambda: any(call.body["engine"]["healthy"] for call in control_plane.heartbeats),
            timeout_s=60,
            what="a healthy heartbeat",
        )
        yield agent, control_plane
    finally:
        agent.stop()
        await control_plane.stop()


def streamed_chat(port: int) -> tuple[list[dict[str, object]], bool]:
    """The chunks of one streamed chat request, and whether `[DONE]` ended it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        events = [line[len("data: ") :] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    finally:
        connection.close()
    return [json.loads(event) for event in events if event != "[DONE]"], events[-1] == "[DONE]"


async def test_llama_cpp_serves_a_streamed_chat(node: tuple[AgentProcess, FakeControlPlane]) -> None:
    agent, control_plane = node
    # Read from llama.cpp's own log, in order, before it registered.
    assert control_plane.stage_names == ["INSTALLING", "LOADING_MODEL", "STARTING_ENGINE"]
    assert "loading model" in control_plane.stages[1].body["detail"]
    assert control_plane.registrations[0].body["engine"] == "llama_cpp"

    chunks, done = await asyncio.to_thread(streamed_chat, agent.port)
    assert done
    assert chunks[0]["model"] == MODEL
    usage = chunks[-1]["usage"]
    assert isinstance(usage, dict)
    assert usage["completion_tokens"] > 0

    # Its figures are read too: the tokens of that answer show as a rate.
    await eventually(
        lambda: any((call.body["engine"]["tokens_per_second"] or 0) > 0 for call in control_plane.heartbeats),
        what="a heartbeat that saw tokens",
    )
    beat = control_plane.heartbeats[-1].body["engine"]
    assert (beat["running"], beat["waiting"]) == (0, 0)

    control_plane.directive = "shutdown"
    await eventually(lambda: agent.ended, what="the agent's end")
    assert agent.exit_status == 0
    assert agent.engine_processes() == []
    assert agent.off.exists()


async def test_a_broken_model_file_is_reported_with_what_llama_cpp_said(tmp_path: Path, llama_server: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    control_plane = FakeControlPlane()
    await control_plane.start()
    boot = boot_of(
        control_plane.url, tmp_path, model_name=MODEL, model_source=str(broken), engine={"name": "llama_cpp"}
    )
    agent = AgentProcess(tmp_path, boot)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_SERVER", llama_server)
        agent.start()
    try:
        await eventually(lambda: agent.ended, timeout_s=60, what="the agent's end")
    finally:
        agent.stop()
        await control_plane.stop()
    report = control_plane.stages[-1].body
    assert report["stage"] == "ENGINE_FAILED"
    assert any("failed to load model" in line or "error loading model" in line for line in report["log_tail"])
    assert agent.exit_status == 1
