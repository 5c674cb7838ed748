"""The process that sends: what it may not do, what it is not told, and that it always comes to an end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from skyfleet.domain.sending import Outgoing, SentState
from skyfleet.notifier.process import Notifier
from tests.receiver import receiving
from tests.waiting import eventually


def outgoing(url: str, number: int = 1) -> Outgoing:
    return Outgoing(id=number, channel_id=url, url=url, title="t", body="b", severity="info")


@pytest.mark.parametrize(
    "attempt",
    [
        "subprocess.run(['true'])",
        "os.system('true')",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "ctypes.CDLL('libc.so.6')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open(sys.prefix + '/..' * 20 + '/etc/passwd')",
        "open(os.path.join(sys.argv[1], 'file'), 'w')",
        "os.open(os.path.join(sys.argv[1], 'file'), os.O_WRONLY | os.O_CREAT)",
        "os.remove(os.path.join(sys.argv[1], 'there'))",
        "os.mkdir(os.path.join(sys.argv[1], 'folder'))",
        "pathlib.Path(sys.argv[1], 'there').read_text()",
    ],
)
def test_sending_is_all_that_it_may_do(attempt: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("there")
    program = (
        "import ctypes, os, pathlib, subprocess, sys\n"
        "from skyfleet.notifier.__main__ import forbid_what_sending_does_not_need\n"
        "GUARD; open(os.devnull).close(); open(os.__file__).close()\n"
        f"try: {attempt}\n"
        "except PermissionError as error: print(error); os._exit(7 if 'notification may not' in str(error) else 8)\n"
        "os._exit(0)\n"
    )

    def run(guard: str) -> int:
        argv = [sys.executable, "-c", program.replace("GUARD", guard), str(tmp_path)]
        return subprocess.run(argv, capture_output=True, timeout=60).returncode

    assert run("forbid_what_sending_does_not_need()") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert run("pass") == 0  # without the guard it works: the attempt is a real one


async def test_an_address_does_not_have_a_file_read() -> None:
    url = "workflows://127.0.0.1:443/workflow/signature/?template=/etc/passwd"
    outcome = (await Notifier(seconds=10).send([outgoing(url)]))[1]
    assert outcome.state is SentState.FAILED
    assert "could not be read" in outcome.error


async def test_what_cannot_be_an_address_fails_by_itself_alone() -> None:
    with receiving() as receiver:
        sent = await Notifier(seconds=10).send([outgoing("dbus://", 1), outgoing(receiver.url("ok"), 2)])
        assert (sent[1].state, sent[2].state) == (SentState.FAILED, SentState.SENT)
        assert "not allowed" in sent[1].error
        assert len(receiver.posts()) == 1


async def test_a_redirect_is_not_followed() -> None:
    with receiving() as receiver, receiving() as elsewhere:
        receiver.answers = [307]
        receiver.location = f"http://127.0.0.1:{elsewhere.port}/"
        outcome = (await Notifier(seconds=10).send([outgoing(receiver.url("hook"))]))[1]
        assert outcome.state is SentState.FAILED
        assert len(receiver.posts()) == 1
        assert elsewhere.posts() == []


async def test_it_gets_no_secret_of_ours_and_ends_with_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYFLEET_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def children() -> list[Path]:
        pids = Path("/proc/self/task").glob("*/children")
        found = [Path("/proc", pid) for file in pids for pid in file.read_text().split()]
        return [one for one in found if b"skyfleet.notifier" in (one / "cmdline").read_bytes()]

    with receiving() as receiver:
        receiver.hanging = True
        sending = asyncio.create_task(Notifier(seconds=60).send([outgoing(f"{receiver.url('hook')}?rto=60")]))
        await eventually(receiver.posts, what="the message")
        (child,) = children()
        assert b"secret" not in (child / "environ").read_bytes()
        assert b"hook" not in (child / "cmdline").read_bytes()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert children() == []
