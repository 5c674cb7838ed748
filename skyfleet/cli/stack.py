"""`up`: the whole stack on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skyfleet.cli.common import complain, complain_as_json, console, errors, say, session, write_json
from skyfleet.cli.exits import Exit

if TYPE_CHECKING:
    from skyfleet.client import Endpoints
    from skyfleet.stack.embedded import EmbeddedStack
    from skyfleet.stack.supervisor import Notice


class CloudKind(StrEnum):
    """What the stack launches on: one or the other, for the sandbox sells under the real clouds' names."""

    LOCAL = "local"  # the sandbox, on this machine
    SKYPILOT = "skypilot"  # real clouds


def web_address(text: str) -> str:
    """An address with its scheme, without a slash at the end."""
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise typer.BadParameter(f"{text!r} is no web address; write for example https://skyfleet.example.org")
    return text.rstrip("/")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(up)


def up(
    data: Annotated[
        Path | None, typer.Option(help="Data folder. [env: SKYFLEET_DATA; default: ~/.local/share/skyfleet]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address that the API listens on.")] = "127.0.0.1",
    public_url: Annotated[
        str | None,
        typer.Option(
            parser=web_address, metavar="URL", help="Where machines reach the API; machines of real clouds need it."
        ),
    ] = None,
    api_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the API; 8080, or a free one, if left out.")
    ] = None,
    cloud: Annotated[
        CloudKind, typer.Option(help="What to launch on. local: the sandbox. skypilot: real clouds.")
    ] = CloudKind.LOCAL,
    cloud_config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML file that describes the local cloud.")
    ] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard/--no-dashboard", help="Run the dashboard.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Copy what every process logs.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON line when everything is healthy; messages go to stderr.")
    ] = False,
) -> None:
    """Run the whole stack on this machine, until Ctrl-C: PostgreSQL, Temporal, API, worker, dashboard, and its clouds.

    State stays in the data folder. While the stack runs, `endpoints.json` there holds its addresses and the admin
    token, for scripts and for this command line.
    """
    import asyncio

    from skyfleet.client import data_folder
    from skyfleet.stack.embedded import EmbeddedStack, StackOptions

    options = StackOptions(
        host=host,
        public_url=public_url,
        local_cloud=cloud is CloudKind.LOCAL,
        skypilot=cloud is CloudKind.SKYPILOT,
        ports={} if api_port is None else {"api": api_port},
        cloud_config=None if cloud_config is None else cloud_config.absolute(),
        dashboard=dashboard,
        copy_logs=verbose,
        # SkyPilot's server takes its time, and the first look at a cloud fetches its catalog.
        start_timeout_s=300.0 if cloud is CloudKind.SKYPILOT else 120.0,
    )
    report = _Report(as_json=as_json)
    stack = EmbeddedStack(data or session().data or data_folder(), options, notify=report.notice)
    raise typer.Exit(asyncio.run(_up(stack, report, as_json=as_json)))


async def _up(stack: EmbeddedStack, report: _Report, *, as_json: bool) -> Exit:
    import asyncio
    import os
    import signal

    from skyfleet.stack.folder import FolderInUse, PortTaken
    from skyfleet.stack.postgres import PostgresSetupError
    from skyfleet.stack.services import ProgramMissing
    from skyfleet.stack.skypilot import SkyPilotUnusable
    from skyfleet.stack.supervisor import StartFailed

    asked = asyncio.Event()
    interrupted = False

    def stop(number: int) -> None:
        nonlocal interrupted
        if asked.is_set():  # a person who will not wait
            stack.kill_all()
            errors().print("killed", style="red")
            os._exit(Exit.INTERRUPTED)
        interrupted = number == signal.SIGINT
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    # A terminal that was closed ends the stack like Ctrl-C would.
    loop.add_signal_handler(signal.SIGHUP, stop, signal.SIGHUP)

    starting = asyncio.create_task(stack.start())
    waiting = asyncio.create_task(asked.wait())
    try:
        with report.progress(stack):
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                report.note("stopping before everything was up (Ctrl-C again: at once)")
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return Exit.INTERRUPTED if interrupted else Exit.OK
        try:
            endpoints = starting.result()
        except (
            FolderInUse,
            PortTaken,
            ProgramMissing,
            SkyPilotUnusable,
            PostgresSetupError,
            StartFailed,
            OSError,
        ) as error:
            if as_json:
                complain_as_json(str(error))
            else:
                complain(f"{error}\n  logs: {stack.data / 'logs'}")
            return Exit.FAILED
        report.healthy(stack, endpoints)
        await waiting
        report.note("stopping (Ctrl-C again: at once)")
    finally:
        waiting.cancel()
        await stack.stop()
    report.note("stopped; the state is kept for the next `skyfleet up`")
    return Exit.INTERRUPTED if interrupted else Exit.OK


class _Report:
    """What the person who started the stack is told. With `as_json` standard output holds one line and no more."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = errors() if as_json else console()
        self._up = False

    def notice(self, notice: Notice) -> None:
        """Told by the supervisor: faults at once, the ordinary course of things only on the way up."""
        from skyfleet.stack.supervisor import NoticeKind as Kind

        styles = {
            Kind.DIED: "red",
            Kind.HUNG: "red",
            Kind.AWAY: "red",
            Kind.KILLED: "yellow",
            Kind.RECOVERED: "green",
        }
        if notice.kind is Kind.LOG:
            self._out.print(f"{notice.unit:>11} | {notice.text}", style="dim", soft_wrap=True)
        elif notice.kind in styles:
            self._out.print(notice.text, style=styles[notice.kind], soft_wrap=True)
            if notice.kind is not Kind.RECOVERED:
                for line in notice.lines:
                    self._out.print(f"    {line}", style="dim", soft_wrap=True)
        elif notice.kind is Kind.READY and not sys.stdout.isatty():
            self._out.print(notice.text, soft_wrap=True)

    def note(self, text: str) -> None:
        """A remark."""
        self._out.print(text, soft_wrap=True)

    @contextmanager
    def progress(self, stack: EmbeddedStack) -> Iterator[None]:
        """On a terminal: what is waited for, and for how long."""
        if self._as_json or not sys.stdout.isatty():
            yield
            return
        from rich.live import Live

        with Live(_Waiting(stack), console=console(), refresh_per_second=8, transient=True):
            yield

    def healthy(self, stack: EmbeddedStack, endpoints: Endpoints) -> None:
        """Everything is up."""
        if stack.stale:
            self.note(f"ended what an earlier run had left behind: {', '.join(stack.stale)}")
        if stack.seeded:
            self.note(f"registered {len(stack.seeded)} well-known models, as there were none")
        for name, old in stack.moved_ports.items():
            if name == "api":
                self._out.print(
                    f"WARNING: the API is at {endpoints.api} now, no longer at port {old}. Machines of the sandbox "
                    f"that were launched before look for it there: once port {old} is free, `skyfleet up --api-port "
                    f"{old}` brings them back.",
                    style="bold yellow",
                    soft_wrap=True,
                )
            else:
                self.note(f"{name.replace('_', ' ')}: another port than last time, {old} is taken")
        self._real_clouds(stack, endpoints)
        sandbox = endpoints.skypilot is None
        if self._as_json:
            write_json(
                {
                    "healthy": True,
                    "sandbox": sandbox,
                    "seconds": round(stack.seconds_to_healthy or 0.0, 2),
                    "endpoints_file": str(stack.data / "endpoints.json"),
                    **endpoints.model_dump(mode="json", exclude={"admin_token"}),
                }
            )
            return
        lines = [
            ("API", f"{endpoints.api}  (documentation: {endpoints.api}/docs)"),
            ("dashboard", endpoints.dashboard or "not started"),
            ("Temporal", endpoints.temporal_ui),
            ("local cloud", endpoints.local_cloud or "not started"),
            ("SkyPilot", self._skypilot(endpoints)),
            ("model bucket", endpoints.model_bucket or "not started"),
            ("admin token", f"in {stack.data / 'endpoints.json'}"),
            ("logs", str(stack.data / "logs")),
        ]
        text = "\n".join(f"{name:<12} {value}" for name, value in lines)
        took = f"healthy after {stack.seconds_to_healthy or 0:.1f} s"
        title = f"SANDBOX · {took}" if sandbox else took
        if not sys.stdout.isatty():
            say(f"{title}\n{text}")
            return
        from rich.panel import Panel

        self._out.print(Panel(text, title=f"Skyfleet · {title}", subtitle="Ctrl-C stops it", expand=False))

    def _real_clouds(self, stack: EmbeddedStack, endpoints: Endpoints) -> None:
        """What to know before the first launch on a real cloud."""
        if endpoints.skypilot is None:
            return
        from skyfleet.domain.doctor import GIVE_PUBLIC_URL, Reach, reach

        url = stack.public_url
        if reach(url) is not Reach.PUBLIC:
            self._out.print(
                f"WARNING: machines of real clouds are told to report to {url}, which "
                f"{'no machine but this one' if reach(url) is Reach.HERE else 'only the same network'} can reach. "
                f"{GIVE_PUBLIC_URL}",
                style="bold yellow",
                soft_wrap=True,
            )
        if stack.without_offers:
            self.note(f"nothing can be launched yet: {stack.without_offers}. Look: skyfleet doctor")

    @staticmethod
    def _skypilot(endpoints: Endpoints) -> str:
        if endpoints.skypilot is None:
            return "not used (real clouds: --cloud skypilot)"
        return f"{endpoints.skypilot}{'' if 'skypilot' in endpoints.pids else '  (was there already)'}"


class _Waiting:
    """A live view of what the start still waits for."""

    def __init__(self, stack: EmbeddedStack) -> None:
        import time

        self._stack = stack
        self._began = time.monotonic()

    def __rich__(self) -> str:
        import time

        # What waits for another unit itself says nothing new.
        held = ("waits for", "not started")
        waiting = [f"{name} ({why})" for name, why in self._stack.waiting().items() if not why.startswith(held)]
        return f"{time.monotonic() - self._began:4.1f} s  waiting for {', '.join(waiting) or 'the last answers'}"
