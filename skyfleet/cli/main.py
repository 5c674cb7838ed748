"""The `skyfleet` command: its tree, its global options, and what becomes of an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from skyfleet.cli import access, catalog, costs, doctor, explaining, fleet, launching, models, stack, telling
from skyfleet.cli.common import Session, complain, complain_as_json, use
from skyfleet.cli.exits import HELP, Exit


class _Group(TyperGroup):
    """Turns what the client raises into one message and one exit status, for every command alike."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click, or takes the installed one, by version
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as error:
            code = _explain(ctx.find_object(Session), error)
            if code is None:
                raise
            raise typer.Exit(code) from None


def _explain(session: Session | None, error: Exception) -> Exit | None:
    """Say what went wrong, and with which status to leave; None when it is not the API's doing."""
    if "skyfleet.client" not in sys.modules:  # then nothing of it was raised, and importing it would take its time
        return None
    from skyfleet.client import ApiError, ApiUnreachable

    as_json = session is not None and session.as_json
    if isinstance(error, ApiError):
        hint = ""
        if error.status == 401:
            hint = "\n  give --token or SKYFLEET_TOKEN (an API key), or SKYFLEET_ADMIN_TOKEN"
        if as_json:
            complain_as_json(str(error), error)
        else:
            complain(f"{error}{hint}")
        return {401: Exit.FORBIDDEN, 403: Exit.FORBIDDEN, 404: Exit.NOT_FOUND}.get(error.status, Exit.FAILED)
    if isinstance(error, ApiUnreachable):
        hint = "\n  start one on this machine with `skyfleet up`, or name yours with --api or SKYFLEET_API"
        if as_json:
            complain_as_json(str(error))
        else:
            complain(f"{error}{hint}")
        return Exit.UNREACHABLE
    return None


app = typer.Typer(
    name="skyfleet",
    cls=_Group,
    help="A durable control plane for GPU fleets.",
    epilog=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # they hold tokens
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global(
    context: typer.Context,
    api: Annotated[str | None, typer.Option(help="Base URL of the API. [env: SKYFLEET_API]")] = None,
    token: Annotated[str | None, typer.Option(help="API key or admin token. [env: SKYFLEET_TOKEN]")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data folder of the stack on this machine. [env: SKYFLEET_DATA]")
    ] = None,
) -> None:
    context.obj = use(Session(api=api, token=token, data=data))


launching.add_to(app)
fleet.add_to(app)
models.add_to(app)
catalog.add_to(app)
costs.add_to(app)
access.add_to(app)
telling.add_to(app)
doctor.add_to(app)
explaining.add_to(app)
stack.add_to(app)


def run() -> NoReturn:
    """Entry point. The process leaves with the command's own status, whatever the interpreter does at its end."""
    from skyfleet.exit import leave

    try:
        app()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(Exit.OK)
