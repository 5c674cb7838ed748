"""`doctor`: what is configured, what is missing, and how to mend it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import typer

from skyfleet.cli.common import JsonFlag, console, say, session, write_json
from skyfleet.cli.exits import Exit

if TYPE_CHECKING:
    from skyfleet.domain.doctor import Check, DoctorReport


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)


def doctor(as_json: JsonFlag = False) -> None:
    """Look at everything that launches depend on, and say how to mend what is missing. Exits 1 if anything is.

    Asks the API for what it sees from where it stands, and looks at the stack on this machine, if that is the one; also
    when nothing runs at all.
    """
    from skyfleet.domain.doctor import DoctorReport

    report = DoctorReport.of(_examine())
    if as_json:
        write_json(report)
    else:
        _show(report)
    raise typer.Exit(Exit.OK if report.ok else Exit.FAILED)


def _examine() -> list[Check]:
    from skyfleet import __version__
    from skyfleet.client import ApiError, ApiUnreachable, data_folder, find_endpoints
    from skyfleet.domain.doctor import failed, ok
    from skyfleet.stack.doctor import examine

    told = session()
    data = told.data or data_folder()
    endpoints = find_endpoints(data)
    checks = [ok("command", f"Skyfleet {__version__}, Python {platform.python_version()}")]
    with told.client() as client:
        url = client.target.url
        silent = False
        try:
            checks += client.doctor().checks
        except ApiUnreachable as error:
            how = "Start one on this machine with `skyfleet up`, or name yours with --api or SKYFLEET_API."
            checks.append(failed("api", str(error), how))
            silent = True
        except ApiError as error:
            how = "Give --token or SKYFLEET_TOKEN (an API key with the role admin), or SKYFLEET_ADMIN_TOKEN."
            if error.status not in (401, 403):
                how = "Is it Skyfleet's API, and of this version? Read its log."
            checks.append(failed("api", f"{url}: {error}", how))
    if endpoints is not None and url == endpoints.api:
        checks += examine(data, endpoints)
    elif silent and endpoints is None and not (told.api or os.environ.get("SKYFLEET_API")):
        checks += examine(data, None)
    return checks


def _show(report: DoctorReport) -> None:
    from rich import box
    from rich.table import Table

    from skyfleet.domain.doctor import CheckStatus

    signs = {
        CheckStatus.OK: ("✓", "green"),
        CheckStatus.NOTE: ("·", "dim"),
        CheckStatus.WARNING: ("!", "yellow"),
        CheckStatus.FAILED: ("✗", "red"),
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("CHECK", no_wrap=True)
    table.add_column("FOUND", overflow="fold")
    table.add_column("HOW TO MEND IT", overflow="fold")
    for check in report.checks:
        sign, style = signs[check.status]
        table.add_row(sign, check.name, check.detail, check.mend, style=style)
    console().print(table)
    wrong = [check.name for check in report.checks if check.status is CheckStatus.FAILED]
    say(f"to mend: {', '.join(wrong)}" if wrong else "nothing is missing", style="bold")
