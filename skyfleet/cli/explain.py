"""`skyfleet explain-error`: what a raw cloud error means, read from standard input."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from skyfleet.domain.classifier import classify
from skyfleet.domain.errors import ClassifiedError

_SCOPES = {
    "zone": "this zone; other zones may work",
    "region": "this region; other regions may work",
    "cloud": "this whole cloud; other clouds may work",
    "account": "everything this control plane could try",
}


def explain_error(
    cloud: Annotated[
        str,
        typer.Option("--cloud", help="Cloud that the error came from, such as aws, gcp, azure, lambda, skypilot."),
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Explain a raw cloud error, read from standard input: its kind, how far it reaches, and what to try."""
    raw = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not raw.strip():
        typer.echo("Nothing to explain: pipe the raw error into standard input.", err=True)
        raise typer.Exit(2)
    error = classify(cloud, raw.removesuffix("\n"))
    if json_output:
        print(error.model_dump_json(indent=2))
        return
    _show(error)


def _show(error: ClassifiedError) -> None:
    # A pipe has no width of its own: nothing is wrapped there, so that `grep` sees whole lines.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    colour = "yellow" if error.retryable else "red"
    console.print(Text(error.message, style=f"bold {colour}"))
    console.print()
    rows = [
        ("kind", str(error.kind)),
        ("scope", f"{error.scope} ({_SCOPES[error.scope]})"),
        ("retryable", "yes" if error.retryable else "no"),
        ("cloud", error.cloud),
    ]
    if error.code:
        rows.append(("code", error.code))
    for label, value in rows:
        console.print(Text.assemble((f"{label:<10} ", "dim"), value))
    if error.next_steps:
        console.print()
        console.print(Text("What to try:", style="bold"))
        for number, step in enumerate(error.next_steps, start=1):
            console.print(Text(f"  {number}. {step}"))
    console.print()
    console.print(Text("What the cloud said:", style="bold"))
    console.print(Text(error.raw, style="dim"))
