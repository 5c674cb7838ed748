"""`explain-error`, which is read by `skyfleet.cli.explain` and needs no API."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    # Everything after the name, --help included, belongs to the command behind it.
    app.command(
        "explain-error",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(explain_error)


def explain_error(context: typer.Context) -> None:
    """Explain a raw cloud error, read from standard input: its kind, how far it reaches, and what to try."""
    from skyfleet.cli.explain import explain_error as command

    # The classifier's tables are heavy to import; a command tree of its own is how they stay out of `skyfleet --help`.
    tool = typer.Typer(rich_markup_mode=None, add_completion=False)
    tool.command()(command)
    code = tool(args=context.args, prog_name="skyfleet explain-error", standalone_mode=False)
    raise typer.Exit(code or 0)
