"""The supervisor, with small Python children that crash, hang, and will not stop."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from skyfleet.stack import supervisor as supervisor_module
from skyfleet.stack.logs import LogFile
from skyfleet.stack.processes import start_mark
from skyfleet.stack.supervisor import Notice, NoticeKind, StartFailed, Step, Supervisor, Unit
from tests.ports import free_port
from tests.supervisor.children import service, stop_process
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
Start = Callable[..., AbstractAsyncContextManager[Supervisor]]


class Heard(list[Notice]):
    """Every notice."""

    def of(self, kind: NoticeKind, unit: str | None = None) -> list[Notice]:
        return [one for one in self if one.kind is kind and unit in (None, one.unit)]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def running(tmp_path: Path, heard: Heard) -> Start:
    @asynccontextmanager
    async def start(
        units: Sequence[Unit], *, timeout_s: float = 30.0, hung_after_s: float = 30.0
    ) -> AsyncIterator[Supervisor]:
        made = Supervisor(tmp_path, units, notify=heard.append, probe_interval_s=0.05, hung_after_s=hung_after_s)
        try:
            await made.start(timeout_s)
            yield made
        finally:
            await made.stop()

    return start


def gone(pid: int | None) -> bool:
    return pid is None or start_mark(pid) is None


async def test_what_depends_on_another_starts_after_it_and_the_rest_at_once(
    running: Start, tmp_path: Path, heard: Heard
) -> None:
    marker = tmp_path / "migrated"
    env = dict(os.environ)
    units = [
        service("api", tmp_path, free_port(), after=("migrations",)),
        Step(
            name="migrations",
            command=[sys.executable, "-S", "-c", f"open({str(marker)!r}, 'w')"],
            env=env,
            after=("database",),
        ),
        service("database", tmp_path, free_port()),
        service("other", tmp_path, free_port()),
    ]
    async with running(units) as supervisor:
        order = [(notice.kind, notice.unit) for notice in heard]
        started = [unit for kind, unit in order if kind is NoticeKind.STARTED]
        assert started[-1] == "api"
        assert order.index((NoticeKind.READY, "database")) < order.index((NoticeKind.READY, "migrations"))
        assert order.index((NoticeKind.READY, "migrations")) < order.index((NoticeKind.STARTED, "api"))
        assert marker.exists()
        assert supervisor.waiting() == {}


async def test_a_crash_is_said_with_status_and_last_lines_and_the_service_comes_back(
    running: Start, tmp_path: Path, heard: Heard
) -> None:
    async with running([service("api", tmp_path, free_port())]) as supervisor:
        before = supervisor.pid("api")
        supervisor.kill("api")
        await eventually(lambda: heard.of(NoticeKind.RECOVERED, "api"))
        (death,) = heard.of(NoticeKind.DIED)
        assert "killed by SIGKILL" in death.text
        assert list(death.lines) == ["api starts"]
        assert supervisor.pid("api") not in (None, before)


async def test_a_service_that_dies_on_its_first_try_still_gets_up(running: Start, tmp_path: Path, heard: Heard) -> None:
    async with running([service("api", tmp_path, free_port(), mode="crash-once")]):
        (death,) = heard.of(NoticeKind.DIED)
        assert "exit status 3" in death.text
        assert death.lines[-1] == "cannot go on: no such thing"


async def test_restarts_wait_longer_each_time(running: Start, tmp_path: Path, heard: Heard) -> None:
    def recovered(times: int) -> bool:
        return len(heard.of(NoticeKind.RECOVERED)) == times

    async with running([service("api", tmp_path, free_port())]) as supervisor:
        for deaths in (1, 2, 3):
            supervisor.kill("api")
            await eventually(functools.partial(recovered, deaths))
        pauses = [notice.text.rpartition("in ")[2] for notice in heard.of(NoticeKind.DIED)]
        assert pauses == ["0.2 s", "0.4 s", "0.8 s"]


async def test_the_pause_is_short_again_after_a_steady_time(
    running: Start, tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_STEADY_AFTER_S", 0.0)

    def recovered(times: int) -> bool:
        return len(heard.of(NoticeKind.RECOVERED)) == times

    async with running([service("api", tmp_path, free_port())]) as supervisor:
        for deaths in (1, 2):
            supervisor.kill("api")
            await eventually(functools.partial(recovered, deaths))
        assert [notice.text.rpartition("in ")[2] for notice in heard.of(NoticeKind.DIED)] == ["0.2 s", "0.2 s"]


async def test_a_service_that_never_gets_up_fails_the_start_with_its_last_words(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_S", 0.01)
    good = service("good", tmp_path, free_port())
    with pytest.raises(StartFailed, match=r"api ended 5 times .* exit status 3\n(.*\n)*.*no such thing"):
        async with running([good, service("api", tmp_path, free_port(), mode="crash")]):
            pass
    assert (tmp_path / "order").read_text() == "good\n"


async def test_a_program_that_is_not_there_fails_the_start(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_S", 0.01)
    with pytest.raises(StartFailed, match="cannot be started"):
        async with running([Step(name="migrations", command=["/no/such/program"])]):
            pass


async def test_a_step_that_fails_fails_the_start(running: Start, tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "print('relation is there already'); raise SystemExit(9)"]
    with pytest.raises(StartFailed, match=r"migrations failed: exit status 9\n.*relation is there already"):
        async with running([Step(name="migrations", command=command)]):
            pass


async def test_a_start_that_takes_too_long_says_what_it_waited_for(running: Start, tmp_path: Path) -> None:
    api = service("api", tmp_path, free_port())
    deaf = replace(api, ready=service("nobody", tmp_path, free_port()).ready)
    worker = service("worker", tmp_path, free_port(), after=("api",))
    said = r"(?s)not everything was ready in 1 s:.*api: does not listen.*worker: waits for api"
    with pytest.raises(StartFailed, match=said):
        async with running([deaf, worker], timeout_s=1):
            pass


async def test_a_hung_service_is_killed_and_restarted(running: Start, tmp_path: Path, heard: Heard) -> None:
    async with running([service("api", tmp_path, free_port())], hung_after_s=0.5) as supervisor:
        pid = supervisor.pid("api")
        assert pid is not None
        stop_process(pid)
        await eventually(lambda: heard.of(NoticeKind.RECOVERED))
        (hung,) = heard.of(NoticeKind.HUNG)
        assert "does not answer for 0.5 s" in hung.text
        assert gone(pid)


async def test_a_short_silence_is_no_reason_to_kill(running: Start, tmp_path: Path, heard: Heard) -> None:
    async with running([service("api", tmp_path, free_port())], hung_after_s=10) as supervisor:
        pid = supervisor.pid("api")
        assert pid is not None
        stop_process(pid)
        await asyncio.sleep(0.6)
        os.kill(pid, signal.SIGCONT)
        assert not heard.of(NoticeKind.HUNG)
        assert supervisor.pid("api") == pid


async def test_services_stop_after_those_that_use_them(running: Start, tmp_path: Path) -> None:
    units = [
        service("database", tmp_path, free_port()),
        service("api", tmp_path, free_port(), uses=("database",)),
        service("worker", tmp_path, free_port(), uses=("database", "api")),
    ]
    async with running(units) as supervisor:
        pids = [supervisor.pid(name) for name in supervisor.services]
    assert (tmp_path / "order").read_text().split() == ["worker", "api", "database"]
    assert all(gone(pid) for pid in pids)


async def test_what_will_not_stop_is_killed_after_its_time(running: Start, tmp_path: Path, heard: Heard) -> None:
    units = [service("api", tmp_path, free_port(), mode="stubborn", stop_seconds=0.3)]
    async with running(units) as supervisor:
        pid = supervisor.pid("api")
    assert gone(pid)
    (notice,) = heard.of(NoticeKind.KILLED)
    assert "did not stop in 0.3 s" in notice.text


async def test_a_hung_service_still_stops(running: Start, tmp_path: Path, heard: Heard) -> None:
    async with running([service("api", tmp_path, free_port())]) as supervisor:
        pid = supervisor.pid("api")
        assert pid is not None
        stop_process(pid)
    assert gone(pid)
    assert not heard.of(NoticeKind.KILLED)  # SIGCONT let it hear the SIGTERM


async def test_kill_all_waits_for_nobody(tmp_path: Path, heard: Heard) -> None:
    made = Supervisor(tmp_path, [service("api", tmp_path, free_port(), mode="stubborn")], notify=heard.append)
    await made.start(30)
    pid = made.pid("api")
    began = time.monotonic()
    made.kill_all()
    await eventually(lambda: gone(pid))
    assert time.monotonic() - began < 5
    await made.stop()


def test_a_name_that_is_no_unit_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="api refers to nothing"):
        Supervisor(tmp_path, [service("api", tmp_path, 1, after=("nothing",))], notify=lambda notice: None)


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
async def test_kill_9_of_the_supervisor_leaves_no_child(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.supervisor.supervised", str(tmp_path), str(free_port()), str(free_port())),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(process.stdout.readline(), 60)).split()]
    assert len(pids) == 2
    assert not any(gone(pid) for pid in pids)
    process.kill()
    await process.wait()
    await eventually(lambda: all(gone(pid) for pid in pids), timeout_s=5)


async def test_logs_are_copied_when_asked_for(tmp_path: Path, heard: Heard) -> None:
    made = Supervisor(tmp_path, [service("api", tmp_path, free_port())], notify=heard.append, copy_logs=True)
    await made.start(30)
    try:
        await eventually(lambda: [one.text for one in heard.of(NoticeKind.LOG, "api")] == ["api starts"])
    finally:
        await made.stop()


def test_a_log_is_bounded_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyfleet.stack.logs.LIMIT_BYTES", 100)
    log = LogFile(tmp_path / "api.log")
    descriptor = log.open()
    os.write(descriptor, b"old\n" * 50)
    log.bound()
    os.write(descriptor, b"new\n\n")
    os.close(descriptor)
    assert log.path.read_text() == "new\n\n"
    assert (tmp_path / "api.log.1").stat().st_size == 200
    assert log.tail() == ["new"]
    assert log.path.stat().st_mode & 0o077 == 0


def test_the_tail_is_of_the_newest_run(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log")
    for run in ("first", "second"):
        descriptor = log.open()
        os.write(descriptor, f"{run} run\n".encode())
        os.close(descriptor)
    assert log.tail() == ["second run"]
