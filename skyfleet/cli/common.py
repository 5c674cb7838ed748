"""What the commands share: the API they talk to, `--json`, and how things are written."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from skyfleet.client import ApiError, SkyfleetClient
    from skyfleet.domain.states import Market


@dataclass
class Session:
    """The global options, and whether this command answers in JSON."""

    api: str | None = None
    token: str | None = None
    data: Path | None = None
    as_json: bool = False

    def client(self) -> SkyfleetClient:
        """A client for the API that was named, or is found."""
        from skyfleet.client import SkyfleetClient

        return SkyfleetClient(self.api, self.token, data=self.data)


_current = Session()


def use(session: Session) -> Session:
    """Make it the session of the command that runs; and return it."""
    global _current
    _current = session
    return session


def session() -> Session:
    """The session of the command that runs."""
    return _current


def _note_json(context: typer.Context, value: bool) -> bool:
    if value and (found := context.find_object(Session)) is not None:
        found.as_json = True
    return value


JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Write one JSON document (one a line for streams), and nothing else.",
        callback=_note_json,
        is_eager=True,
        expose_value=True,
    ),
]


# --- writing ----------------------------------------------------------------------------------------------------


@functools.cache
def console() -> Console:
    """Standard output. A table is never squeezed into a pipe."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 240)


@functools.cache
def errors() -> Console:
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def say(text: str = "", style: str | None = None) -> None:
    """A line for a person."""
    console().print(text, style=style, soft_wrap=True)


def write_json(document: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(_jsonable(document), separators=(",", ":"), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _jsonable(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _jsonable(value) for name, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [_jsonable(value) for value in document]
    return document.model_dump(mode="json") if hasattr(document, "model_dump") else document


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table for a person; None is shown as a dash."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("–" if cell is None or cell == "" else str(cell) for cell in row))
    console().print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Named values, one a line; those that are None are left out."""
    known = [(name, str(value)) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        say(f"{name:<{width}}  {value}")


def place(provider: str | None, region: str | None, zone: str | None) -> str | None:
    """Where something is. A zone's name usually holds its region's."""
    if provider is None:
        return None
    return "/".join(part for part in (provider, zone if zone and region and region in zone else None or region) if part)


def price(amount: Decimal | None) -> str | None:
    """US dollars an hour."""
    return None if amount is None else f"${_trimmed(amount, 2)}/h"


def money(amount: Decimal | None) -> str | None:
    """US dollars, as exact as they were billed."""
    return None if amount is None else f"${_trimmed(amount, 2)}"


def _trimmed(amount: Decimal, places: int) -> str:
    whole, _, fraction = f"{amount:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(places, '0')}"


def bought(market: Market | None) -> str | None:
    """A market in words."""
    return None if market is None else market.value.replace("_", "-")


def marked(sandbox: bool) -> str:
    """What stands beside everything that is not a real cloud's."""
    return "sandbox" if sandbox else ""


def ago(moment: datetime | None) -> str | None:
    """How long ago, in words."""
    if moment is None:
        return None
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def clock(moment: datetime) -> str:
    """The time of day here."""
    return f"{moment.astimezone():%H:%M:%S}"


def complain(text: str) -> None:
    """Why a command did not do what it was asked, for a person."""
    errors().print(f"Error: {text}", style="red")


def complain_as_json(text: str, error: ApiError | None = None) -> None:
    """The same for a script, on standard error."""
    problem = error.problem.model_dump(mode="json") if error is not None else {"detail": text}
    sys.stderr.write(json.dumps({"error": problem}, ensure_ascii=False) + "\n")


# --- reading options --------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A duration: `90`, `90s`, `15m`, `1.5h`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text!r} is no duration; write 90, 90s, 15m or 1.5h")
    return value


def dollars(text: str) -> Decimal:
    """An amount of money above zero."""
    try:
        amount = Decimal(text.removeprefix("$"))
    except ArithmeticError:
        amount = Decimal(0)
    if not amount.is_finite() or amount <= 0:
        raise typer.BadParameter(f"{text!r} is no price in US dollars; write for example 1.20")
    return amount


def moment(text: str) -> datetime:
    """A time in ISO 8601; without an offset it is local time."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write for example 2027-01-31T18:00") from None


def pairs(option: str) -> Callable[[list[str] | None], dict[str, str]]:
    """Reads a repeated `NAME=VALUE`."""

    def read(texts: list[str] | None) -> dict[str, str]:
        read_so_far: dict[str, str] = {}
        for text in texts or []:
            name, sign, value = text.partition("=")
            if not sign or not name:
                raise typer.BadParameter(f"{text!r}: write NAME=VALUE", param_hint=option)
            read_so_far[name] = value
        return read_so_far

    return read
