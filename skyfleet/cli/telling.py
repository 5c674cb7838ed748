"""`notifications`, `channels`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skyfleet.cli.common import JsonFlag, ago, say, seconds, session, table, write_json
from skyfleet.cli.exits import Exit
from skyfleet.domain.notification_kinds import NotificationKind, Severity

if TYPE_CHECKING:
    from skyfleet.domain.views import ChannelView, DeliveryView

channels = typer.Typer(
    help="Where people are told what happened; alone, it lists them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

Channel = Annotated[str, typer.Argument(metavar="CHANNEL", help="Name or id of the channel.")]
Kinds = Annotated[
    list[NotificationKind] | None, typer.Option("--kind", help="What it is told; repeatable. Default: all.")
]
Tenants = Annotated[list[str] | None, typer.Option("--tenant", help="Whose; repeatable. Default: all.")]
Minimum = Annotated[Severity | None, typer.Option("--min-severity", help="The least that it is told.")]
Count = Annotated[
    int | None, typer.Option("--at-most", help="Messages of one kind in a period; the rest as a summary.")
]
Period = Annotated[
    float | None, typer.Option("--period", parser=seconds, metavar="TIME", help="That period: 90s, 15m.")
]
_HOW = "as apprise writes it; - reads it from standard input, where no shell history keeps it."


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(notifications)
    app.add_typer(channels, name="channels")


def notifications(
    kind: Annotated[NotificationKind | None, typer.Option(help="Only this kind.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what concerns this launch, node or machine.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Notifications a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Page to show, as the page before named it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What people were told, newest first, and what became of it at each channel."""
    with session().client() as client:
        page = client.notifications(
            kind=None if kind is None else kind.value, subject=subject, limit=limit, cursor=cursor
        )
    if as_json:
        write_json(page)
        return
    table(
        ("AT (UTC)", "KIND", "SEVERITY", "ABOUT", "TITLE", "TOLD"),
        (
            (
                f"{one.at:%Y-%m-%d %H:%M:%S}",
                one.kind.value,
                one.severity.value,
                one.subject,
                one.title,
                "\n".join(map(_told, one.deliveries)),
            )
            for one in page.notifications
        ),
    )
    if page.next:
        say(f"more: --cursor {page.next}")


def _told(delivery: DeliveryView) -> str:
    state = "held back" if delivery.held else delivery.state.value
    return f"{delivery.channel}: {state}{f' ({delivery.error})' if delivery.error else ''}"


@channels.callback()
def _alone(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Where people are told what happened; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_channels(as_json)


@channels.command("list")
def list_channels(as_json: JsonFlag = False) -> None:
    """The channels, by name. Their addresses are not shown."""
    with session().client() as client:
        known = client.channels()
    if as_json:
        write_json(known)
        return
    table(
        ("NAME", "SERVICE", "ADDRESS", "TOLD OF", "TENANTS", "FROM", "AT MOST", "CHANGED", "STATE"),
        (
            (
                one.name,
                one.service,
                one.masked_url,
                ", ".join(one.kinds) or "all",
                ", ".join(one.tenants) or "all",
                one.min_severity.value,
                f"{one.throttle_count} in {one.throttle_seconds} s",
                ago(one.updated_at),
                "on" if one.enabled else "off",
            )
            for one in known.channels
        ),
    )


@channels.command("add")
def add_channel(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    url: Annotated[str, typer.Argument(metavar="URL", help=f"Its address, {_HOW}")],
    kind: Kinds = None,
    tenant: Tenants = None,
    min_severity: Minimum = None,
    at_most: Count = None,
    period: Period = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a channel. Its address is kept, and not shown again."""
    rules = _rules(kind, tenant, min_severity, at_most, period)
    with session().client() as client:
        _show(client.create_channel({"name": name, "url": _secret(url), **rules}), as_json)


@channels.command("set")
def change_channel(
    channel: Channel,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    url: Annotated[str | None, typer.Option(help=f"Another address, {_HOW}")] = None,
    kind: Kinds = None,
    tenant: Tenants = None,
    min_severity: Minimum = None,
    at_most: Count = None,
    period: Period = None,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="Whether anything is sent.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a channel; what is left out stays as it is."""
    rules = _rules(kind, tenant, min_severity, at_most, period)
    changes = {"name": name, "url": None if url is None else _secret(url), "enabled": enabled, **rules}
    with session().client() as client:
        _show(client.change_channel(channel, changes), as_json)


@channels.command("remove")
def remove_channel(channel: Channel, as_json: JsonFlag = False) -> None:
    """Remove a channel. What was sent stays in the history; what was not will not be."""
    with session().client() as client:
        removed = client.remove_channel(channel)
    if as_json:
        write_json(removed)
    else:
        say(f"{channel}: removed")


@channels.command("test")
def try_channel(channel: Channel, as_json: JsonFlag = False) -> None:
    """Send a test message now. Exits 1 when it is not taken, and says why."""
    with session().client() as client:
        tested = client.test_channel(channel)
    if as_json:
        write_json(tested)
    else:
        say(f"{tested.channel}: {'taken' if tested.ok else f'NOT taken: {tested.detail}'} ({tested.seconds:.1f} s)")
    raise typer.Exit(Exit.OK if tested.ok else Exit.FAILED)


def _secret(url: str) -> str:
    return sys.stdin.readline().strip() if url == "-" else url


def _rules(
    kind: list[NotificationKind] | None,
    tenant: list[str] | None,
    min_severity: Severity | None,
    at_most: int | None,
    period: float | None,
) -> dict[str, Any]:
    return {
        "kinds": [one.value for one in kind] if kind else None,
        "tenants": tenant or None,
        "min_severity": None if min_severity is None else min_severity.value,
        "throttle_count": at_most,
        "throttle_seconds": None if period is None else round(period),
    }


def _show(channel: ChannelView, as_json: bool) -> None:
    if as_json:
        write_json(channel)
    else:
        say(
            f"{channel.name}: {channel.service} at {channel.masked_url} · try it: skyfleet channels test {channel.name}"
        )
