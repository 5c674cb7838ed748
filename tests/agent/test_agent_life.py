"""The agent as a process, from boot to power-off, against a control plane over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from skyfleet.agent import bundle
from tests.agent.harness import HEARTBEAT_KEY, MODEL, TOKEN, AgentProcess, Call, FakeControlPlane, ask, bare_python
from tests.waiting import eventually

Machine = Callable[..., AgentProcess]

STAGES = ["INSTALLING", "LOADING_MODEL", "STARTING_ENGINE"]


async def ready(control_plane: FakeControlPlane) -> None:
    """Until the node heartbeats with a healthy engine."""
    await eventually(
        lambda: any(call.body["engine"]["healthy"] for call in control_plane.heartbeats), what="a healthy heartbeat"
    )


async def powered_off(agent: AgentProcess) -> int:
    """Until the machine is off and the agent has ended; its exit status."""
    await eventually(lambda: agent.ended, what="the agent's end")
    assert agent.off.exists(), agent.log
    assert agent.engine_processes() == []
    assert agent.exit_status is not None
    return agent.exit_status


@pytest.mark.parametrize("python", [sys.executable, "3.10"], ids=["this-python", "bare-3.10"])
async def test_full_life(control_plane: FakeControlPlane, machine: Machine, python: str) -> None:
    if python == "3.10":
        found = bare_python()
        if found is None:
            pytest.skip("no Python 3.10 in pyenv's folder or on PATH")
        python = found
    agent = machine(python=python)
    agent.start()
    await ready(control_plane)

    assert control_plane.stage_names == STAGES
    times = [call.body["at"] for call in control_plane.stages]
    assert times == sorted(times)
    (registration,) = control_plane.registrations
    body = registration.body
    assert body["registration_token"] == TOKEN
    assert body["endpoint_url"] == f"http://127.0.0.1:{agent.port}"
    assert (body["provider"], body["region"], body["instance_type"]) == ("aws", "us-east-1", "g5.xlarge")
    assert (body["gpu_type"], body["spot_instance"], body["sandbox"]) == ("A10G", True, True)
    assert (body["model_name"], body["engine"], body["agent_version"]) == (MODEL, "echo", bundle.version())
    assert [reached["stage"] for reached in body["stages"]] == STAGES
    assert len(registration.headers["idempotency-key"]) >= 32

    status, answer = await agent.ask(
        "POST", "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}
    )
    assert status == 200
    assert json.loads(answer)["choices"][0]["message"]["content"] == "one two three"
    await eventually(
        lambda: any((call.body["engine"]["tokens_per_second"] or 0) > 0 for call in control_plane.heartbeats),
        what="a heartbeat that saw tokens",
    )
    beat = control_plane.heartbeats[-1].body
    figures = {"healthy", "state", "running", "waiting", "kv_cache_usage", "tokens_per_second"}
    assert set(beat["engine"]) == figures
    assert beat["engine"]["state"] == "serving"
    assert (beat["engine"]["running"], beat["engine"]["waiting"], beat["gpus"]) == (0, 0, [])
    assert beat["agent"]["version"] == bundle.version()
    assert (beat["agent"]["engine_restarts"], beat["agent"]["engine_last_restart_at"]) == (0, None)
    assert [call.body["sequence"] for call in control_plane.heartbeats] == list(
        range(1, len(control_plane.heartbeats) + 1)
    )

    for secret_file in ("node.json", "engine.json", "engine/model.json"):
        assert stat.S_IMODE((agent.state / secret_file).stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.state.stat().st_mode) == 0o700

    control_plane.directive = "shutdown"
    assert await powered_off(agent) == 0
    assert agent.off.read_text() == "off\n"
    for secret in (TOKEN, HEARTBEAT_KEY, registration.headers["idempotency-key"], "hf_secret_value"):
        assert secret not in agent.log
        assert secret not in (agent.state / "engine.log").read_text()
    assert all("ts=" in line and "level=" in line and "event=" in line for line in agent.log.splitlines())


async def test_lost_register_reply_is_asked_for_again_with_the_same_key(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    replies: list[int | str | None] = ["lost", 503, 409]
    control_plane.on_register = lambda call: replies.pop(0) if replies else None
    agent = machine()
    agent.start()
    await ready(control_plane)
    keys = {call.headers["idempotency-key"] for call in control_plane.registrations}
    assert (len(control_plane.registrations), len(keys)) == (4, 1)


async def test_control_plane_away_at_start_and_later(control_plane: FakeControlPlane, machine: Machine) -> None:
    await control_plane.stop()
    agent = machine()
    agent.start()

    async def serves() -> bool:
        try:
            return (await agent.ask("GET", "/health"))[0] == 200
        except OSError:
            return False

    await eventually(serves, what="the engine serving without a control plane")
    assert not agent.ended
    await control_plane.start()
    await ready(control_plane)
    assert len(control_plane.registrations) == 1
    assert [reached["stage"] for reached in control_plane.registrations[0].body["stages"]] == STAGES

    await control_plane.stop()
    control_plane.heartbeats.clear()
    await eventually(lambda: "what=heartbeat" in agent.log, what="a heartbeat that found nobody")
    assert await serves()
    control_plane.on_heartbeat = lambda call: 500 if len(control_plane.heartbeats) < 3 else None
    await control_plane.start()
    await eventually(lambda: len(control_plane.heartbeats) >= 4, what="heartbeats after errors")
    assert not agent.ended


@pytest.mark.parametrize("where", ["stage", "register", "heartbeat"])
@pytest.mark.parametrize("status", [410, 401, 404])
async def test_a_machine_that_nobody_claims_powers_off(
    control_plane: FakeControlPlane, machine: Machine, where: str, status: int
) -> None:
    setattr(control_plane, f"on_{where}", lambda call: status)
    agent = machine()
    agent.start()
    assert await powered_off(agent) == 0
    calls = {
        "stage": control_plane.stages,
        "register": control_plane.registrations,
        "heartbeat": control_plane.heartbeats,
    }[where]
    # 410 is final at once; 401 and 404 once they were said three times in a row.
    assert len(calls) == (1 if status == 410 else 3)
    assert f"event=agent.dismissed status={status}" in agent.log


async def test_one_404_of_a_load_balancer_does_not_end_a_node(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    control_plane.on_heartbeat = lambda call: 404 if call.body["sequence"] % 3 else None
    agent = machine()
    agent.start()
    await eventually(lambda: len(control_plane.heartbeats) >= 7, what="seven heartbeats")
    assert not agent.ended


@pytest.mark.parametrize(
    ("engine", "why", "in_tail"),
    [
        ({"name": "echo", "args": ["--fail-at", "load"]}, "status 1", "model could not be loaded"),
        ({"name": "echo", "args": ["--fail-at", "start"]}, "status 1", "server could not be started"),
        ({"name": "command", "command": ["/does/not/exist", "{port}"]}, "status 127", "No such file"),
        ({"name": "vllm", "args": []}, "vLLM is not installed", None),
        ({"name": "unknown", "args": []}, "unknown engine 'unknown'", None),
        ({"name": "echo", "args": ["--host", "0.0.0.0"]}, "--host is set by Skyfleet", None),
    ],
    ids=["fails-loading", "fails-starting", "no-program", "not-installed", "unknown", "unsafe-args"],
)
async def test_engine_that_never_gets_ready_is_reported_with_its_last_lines(
    control_plane: FakeControlPlane, machine: Machine, engine: dict[str, object], why: str, in_tail: str | None
) -> None:
    agent = machine(engine=engine)
    agent.start()
    assert await powered_off(agent) == 1
    failed = [call.body for call in control_plane.stages if call.body["stage"] == "ENGINE_FAILED"]
    assert len(failed) == 1
    assert why in failed[0]["detail"]
    tail = failed[0]["log_tail"]
    assert any(in_tail in line for line in tail) if in_tail else tail == []
    assert control_plane.stage_names[0] == "INSTALLING"
    assert control_plane.stage_names[-1] == "ENGINE_FAILED"
    assert control_plane.registrations == []


async def test_only_the_last_forty_lines_are_sent(control_plane: FakeControlPlane, machine: Machine) -> None:
    script = "import sys\nfor n in range(300): print('line', n, 'hf_secret_value')\nsys.exit(3)"
    agent = machine(engine={"name": "command", "command": [sys.executable, "-c", "#{port}\n" + script]})
    agent.boot["engine"]["command"][2] = f"exec({script!r}) # {{port}}"
    agent.start()
    assert await powered_off(agent) == 1
    report = control_plane.stages[-1].body
    assert report["log_tail"] == [f"line {n} ***" for n in range(260, 300)]
    assert "status 3" in report["detail"]


async def test_a_failure_is_told_when_the_control_plane_comes_back(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    replies: list[int | str | None] = [503, "lost"]
    control_plane.on_stage = lambda call: replies.pop(0) if replies and call.body["stage"] == "ENGINE_FAILED" else None
    agent = machine(engine={"name": "echo", "args": ["--fail-at", "load"]})
    agent.start()
    assert await powered_off(agent) == 1
    assert control_plane.stage_names.count("ENGINE_FAILED") == 3


FORKING = (
    "import os, subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[2]], start_new_session=True); "
    "from http.server import ThreadingHTTPServer, BaseHTTPRequestHandler as H; "
    "H.do_GET = lambda self: (self.send_response(200), self.end_headers()); "
    "ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()"
)


def forking_engine(machine: Machine) -> AgentProcess:
    """A machine whose engine has a child in a session of its own, as engines' workers may be."""
    agent = machine()
    command = [sys.executable, "-c", FORKING, "{port}", str(agent.folder)]
    agent.boot["engine"] = {"name": "command", "command": command}
    return agent


async def test_kill_minus_9_of_the_agent_leaves_no_engine_process(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    agent = forking_engine(machine)
    agent.start()
    await ready(control_plane)
    assert len(agent.engine_processes()) == 3  # guard, engine, the engine's child
    agent.signal(signal.SIGKILL)
    await eventually(lambda: agent.engine_processes() == [], what="no process left")
    assert not agent.off.exists()


async def test_kill_minus_9_of_the_guard_leaves_no_engine_process(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """The kernel ends the engine with its guard; the agent starts another."""
    agent = machine()
    agent.start()
    await ready(control_plane)
    guard = json.loads((agent.state / "engine.json").read_text())["pid"]
    before = set(agent.engine_processes())
    assert guard in before
    os.kill(guard, signal.SIGKILL)
    await eventually(lambda: not before & set(agent.engine_processes()), what="no process of before left")
    await eventually(
        lambda: (
            control_plane.heartbeats[-1].body["engine"]["healthy"]
            and control_plane.heartbeats[-1].body["agent"]["engine_restarts"] == 1
        ),
        what="a healthy engine after one restart",
    )


async def test_a_restarted_agent_ends_what_its_predecessor_left(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """Agent and guard are killed together: nobody is left to end the engine's child, which has a session of its own."""
    agent = forking_engine(machine)
    agent.start()
    await ready(control_plane)
    before = set(agent.engine_processes())
    guard = json.loads((agent.state / "engine.json").read_text())["pid"]
    os.kill(guard, signal.SIGSTOP)
    agent.signal(signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    await eventually(lambda: len(agent.engine_processes()) == 1, what="only the engine's child left")
    control_plane.heartbeats.clear()
    agent.start()
    # A last heartbeat of the former agent may still be on its way: its own log says when the new one has looked.
    await eventually(lambda: "event=engine.leftover_ended processes=1" in agent.log, what="the end of the leftover")
    assert not before & set(agent.engine_processes())
    await ready(control_plane)


async def test_sigterm_stops_the_engine_and_leaves_the_machine_on(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    agent = forking_engine(machine)
    agent.start()
    await ready(control_plane)
    agent.signal(signal.SIGTERM)
    await eventually(lambda: agent.ended, what="the agent's end")
    assert agent.exit_status == 0
    assert agent.engine_processes() == []
    assert not agent.off.exists()


async def test_an_engine_that_ignores_sigterm_is_killed(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent = machine()
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FORKING
    command = [sys.executable, "-c", stubborn, "{port}", str(agent.folder)]
    agent.boot["engine"] = {"name": "command", "command": command}
    agent.start()
    await ready(control_plane)
    control_plane.directive = "shutdown"
    assert await powered_off(agent) == 0


async def test_crash_after_ready_is_restarted_and_counted(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent = machine()
    agent.start()
    await ready(control_plane)

    def engine_pid() -> int | None:
        for pid in agent.engine_processes():
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"engine-echo" in line and b"engine-guard" not in line:
                return pid
        return None

    first = engine_pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(
        lambda: any(not call.body["engine"]["healthy"] for call in control_plane.heartbeats), what="an unhealthy beat"
    )
    await eventually(
        lambda: (
            control_plane.heartbeats[-1].body["engine"]["healthy"]
            and control_plane.heartbeats[-1].body["agent"]["engine_restarts"] == 1
        ),
        what="a healthy engine after one restart",
    )
    assert engine_pid() not in (None, first)
    assert "ended by SIGKILL" in agent.log
    assert len(control_plane.registrations) == 1
    assert control_plane.stage_names == STAGES


async def test_resumes_after_a_restart_of_the_agent(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent = machine()
    agent.start()
    await ready(control_plane)
    agent.signal(signal.SIGKILL)
    await eventually(lambda: agent.ended, what="the agent's end")
    last = control_plane.heartbeats[-1].body["sequence"]
    control_plane.heartbeats.clear()
    agent.start()
    await ready(control_plane)
    # The control plane writes nothing down that is not above the last.
    assert control_plane.heartbeats[0].body["sequence"] > last
    assert len(control_plane.registrations) == 1
    assert control_plane.stage_names == STAGES
    assert "event=agent.resumed" in agent.log
    control_plane.directive = "shutdown"
    assert await powered_off(agent) == 0


async def test_a_killed_agent_registers_with_the_same_key_once_it_is_back(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    control_plane.on_register = lambda call: "lost"
    agent = machine()
    agent.start()
    await eventually(lambda: control_plane.registrations, what="a registration")
    agent.signal(signal.SIGKILL)
    await eventually(lambda: agent.ended and not agent.engine_processes(), what="the machine at rest")
    control_plane.on_register = lambda call: None
    agent.start()
    await ready(control_plane)
    assert len({call.headers["idempotency-key"] for call in control_plane.registrations}) == 1


async def test_two_agents_do_not_share_a_state_folder(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent, second = machine(), machine()
    agent.start()
    await ready(control_plane)
    second.state.symlink_to(agent.state)
    second.start()
    await eventually(lambda: second.ended, what="the second agent's end")
    assert second.exit_status == 2
    assert "another agent works with" in second.log
    assert not agent.ended


async def test_drain_lets_requests_finish_then_stops_the_engine_and_waits(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    agent = machine(engine={"name": "echo", "args": ["--tokens-per-second", "10"]})
    agent.start()
    await ready(control_plane)
    words = " ".join(["word"] * 25)

    request = asyncio.ensure_future(
        agent.ask("POST", "/v1/completions", {"model": MODEL, "prompt": words}),
    )
    await eventually(
        lambda: control_plane.heartbeats[-1].body["engine"]["running"] == 1, what="a heartbeat with one running"
    )
    control_plane.directive = "drain"
    status, answer = await request
    assert status == 200
    assert json.loads(answer)["choices"][0]["text"] == words
    await eventually(lambda: agent.engine_processes() == [], what="the engine stopped")
    beats = len(control_plane.heartbeats)
    await eventually(lambda: len(control_plane.heartbeats) >= beats + 2, what="heartbeats after the drain")
    last = control_plane.heartbeats[-1].body
    assert (last["engine"]["healthy"], last["engine"]["running"]) == (False, 0)
    assert last["agent"]["engine_restarts"] == 0
    assert not agent.ended
    control_plane.directive = "shutdown"
    assert await powered_off(agent) == 0


async def test_drain_has_a_deadline_and_can_be_called_off(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent = machine(engine={"name": "echo", "args": ["--tokens-per-second", "1"]}, options=("--drain-deadline-s", "2"))
    agent.start()
    await ready(control_plane)
    control_plane.directive = "drain"
    await eventually(lambda: "event=drain.started" in agent.log, what="the drain")
    control_plane.directive = "continue"
    await eventually(lambda: "event=drain.called_off" in agent.log, what="the drain called off")
    assert (await agent.ask("GET", "/health"))[0] == 200

    body = {"model": MODEL, "prompt": " ".join(["word"] * 300)}
    request = asyncio.ensure_future(agent.ask("POST", "/v1/completions", body))
    await eventually(
        lambda: control_plane.heartbeats[-1].body["engine"]["running"] == 1, what="a heartbeat with one running"
    )
    control_plane.directive = "drain"
    await eventually(lambda: "event=drain.deadline_passed" in agent.log, what="the drain's deadline")
    await eventually(lambda: agent.engine_processes() == [], what="the engine stopped")
    assert isinstance((await asyncio.gather(request, return_exceptions=True))[0], Exception)
    assert not agent.ended


async def test_power_off_is_tried_until_it_works(control_plane: FakeControlPlane, machine: Machine) -> None:
    agent = machine()
    flag = agent.folder / "may-power-off"
    agent.boot["shutdown_command"] = ["/bin/sh", "-c", f"test -e {flag} && touch {agent.off}"]
    control_plane.on_stage = lambda call: 410
    agent.start()
    await eventually(lambda: "event=machine.power_off_failed" in agent.log, what="a power-off that failed")
    assert not agent.ended
    flag.touch()
    assert await powered_off(agent) == 0


def test_bad_boot_files_are_refused(machine: Machine) -> None:
    for key, value, why in [
        ("node_id", None, "no `node_id`"),
        ("port", "80", "`port`"),
        ("control_plane_url", "ftp://x", "`control_plane_url`"),
        ("engine", "echo", "`engine`"),
        ("heartbeat_interval_s", 0, "`heartbeat_interval_s`"),
        ("env", {"A": 1}, "`env`"),
    ]:
        agent = machine(**{key: value})
        agent.start()
        assert agent.process is not None
        assert agent.process.wait(20) == 2
        assert why in agent.log


async def test_stages_are_those_that_were_seen(control_plane: FakeControlPlane, machine: Machine) -> None:
    """The log of a command of one's own says nothing about stages, so none is claimed."""
    agent = forking_engine(machine)
    agent.start()
    await ready(control_plane)
    assert control_plane.stage_names == ["INSTALLING"]
    assert control_plane.heartbeats[-1].body["engine"]["running"] is None


async def test_slow_control_plane_does_not_hold_up_the_engine(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """Stages that could not be reported in time travel with the registration."""
    refused: list[Call] = []

    def refuse(call: Call) -> int:
        refused.append(call)
        return 503

    control_plane.on_stage = refuse
    agent = machine()
    agent.start()
    await ready(control_plane)
    assert refused
    assert [reached["stage"] for reached in control_plane.registrations[0].body["stages"]] == STAGES


async def test_a_control_plane_that_is_gone_for_good_ends_the_node(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """Nobody would ever end this machine: it ends itself, and its engine with it."""
    node = machine(control_plane_patience_s=1.0)
    node.start()
    await eventually(lambda: control_plane.heartbeats)
    await control_plane.stop()
    await eventually(lambda: node.ended, timeout_s=30)
    assert node.exit_status == 0
    assert node.off.exists()
    assert node.engine_processes() == []


async def test_an_engine_that_binds_all_addresses_is_told_of_at_one(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    node = machine(host="0.0.0.0", advertise_host="203.0.113.7")
    node.start()
    await eventually(lambda: control_plane.registrations)
    assert control_plane.registrations[0].body["endpoint_url"] == f"http://203.0.113.7:{node.port}"


async def test_a_machine_that_others_use_too_has_a_port_for_each(
    control_plane: FakeControlPlane, machine: Machine
) -> None:
    """Left the choice, an agent takes a port that is free, and keeps to it when it is started again."""
    nodes = [machine(port=0), machine(port=0)]
    for number, node in enumerate(nodes, start=1):
        node.start()
        await eventually(lambda wanted=number: len(control_plane.registrations) == wanted, what="its registration")
    first, second = (call.body["endpoint_url"] for call in control_plane.registrations)
    assert first != second
    nodes[0].signal(signal.SIGKILL)
    await eventually(lambda: nodes[0].ended, what="the agent's end")
    nodes[0].start()
    port = urlsplit(first).port
    assert port

    async def answers() -> bool:
        with contextlib.suppress(OSError):
            return "agent.resumed" in nodes[0].log and (await asyncio.to_thread(ask, port, "GET", "/health"))[0] == 200
        return False

    await eventually(answers, what=f"an answer at {first}")
