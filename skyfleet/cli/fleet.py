"""`nodes`, `node`, `drain`, `replace`, `terminate`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from skyfleet.cli.common import (
    JsonFlag,
    ago,
    bought,
    errors,
    facts,
    marked,
    money,
    place,
    price,
    say,
    seconds,
    session,
    table,
    write_json,
)
from skyfleet.cli.exits import Exit
from skyfleet.domain.states import NodeStatus

if TYPE_CHECKING:
    from skyfleet.client import SkyfleetClient
    from skyfleet.domain.views import NodeEvent, NodeInfo

Name = Annotated[str, typer.Argument(metavar="NODE", help="Cluster name or node id.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (nodes, node, drain, replace, terminate):
        app.command()(command)


def nodes(
    status: Annotated[list[NodeStatus] | None, typer.Option(help="Only nodes with this status; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Only nodes that serve this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only nodes on this cloud.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only nodes of this deployment.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Nodes a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Page to show, as the page before named it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The nodes, newest first."""
    with session().client() as client:
        page = client.nodes(
            status=status or (),
            model_name=model,
            provider=provider,
            deployment=deployment,
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        write_json(page)
        return
    table(
        ("NODE", "STATUS", "HEALTH", "HEARTBEAT", "MODEL", "WHERE", "TYPE", "MARKET", "PRICE", "COST", "ENDPOINT", ""),
        (
            (
                one.node_id,
                one.status.value,
                health(one),
                ago(one.last_heartbeat_at),
                one.model_name,
                place(one.provider, one.region, one.zone),
                one.instance_type,
                bought(one.market),
                price(one.cost_per_hour),
                money(one.cost),
                one.endpoint_url,
                marked(one.sandbox) or " ",
            )
            for one in page.nodes
        ),
        right=("PRICE", "COST", "HEALTH"),
    )
    if page.next:
        say(f"more: --cursor {page.next}")


def health(view: NodeInfo) -> str | None:
    """`healthy 1`; None before the fleet watch saw the node."""
    return None if view.health is None else f"{view.health.value} {view.health_score:g}"


def node(
    name: Name,
    events: Annotated[bool, typer.Option("--events", help="Its history as well.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """One node, and with --events all that was seen and done of it."""
    with session().client() as client:
        view = client.node(name)
        history = _history(client, name) if events else None
    if as_json:
        write_json(view if history is None else {"node": view, "events": history})
        return
    mark = " · sandbox" if view.sandbox else ""
    state = " · ".join(part for part in (view.node_id, view.status.value, view.status_message) if part)
    say(f"{state}{mark}", style="bold")
    facts(
        (
            ("cluster", view.cluster_name),
            ("launch", view.launch_id),
            ("model", view.model_name),
            ("engine", view.engine),
            ("endpoint", view.endpoint_url),
            ("health", health(view)),
            ("because", view.health_detail or None),
            ("signals", ", ".join(f"{name} {said}" for name, said in (view.signals or {}).items()) or None),
            ("requests", "yes" if view.routable else "none are sent here"),
            ("replaced by", view.replaced_by),
            ("heartbeat", ago(view.last_heartbeat_at)),
            ("where", place(view.provider, view.region, view.zone)),
            ("machine", f"{view.instance_type} · {bought(view.market)} · {price(view.cost_per_hour)}"),
            ("GPU", view.gpu_type),
            ("deployment", view.deployment),
            ("cost", money(view.cost)),
            ("registered", ago(view.registered_at)),
            ("terminated", ago(view.terminated_at)),
        )
    )
    for event in history or ():
        say(f"{event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<12} {event.message}")


def _history(client: SkyfleetClient, name: str) -> list[NodeEvent]:
    found: list[NodeEvent] = []
    while page := client.node_events(name, after=found[-1].id if found else 0, limit=200).events:
        found += page
    return found


def drain(
    name: Name,
    deadline: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="How long its requests may run: 90, 10m.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for its history.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Send a node no more requests, let those that run finish, then end it."""
    with session().client() as client:
        accepted = client.drain(name, reason=reason, seconds=deadline)
    if as_json:
        write_json(accepted)
    else:
        say(f"{accepted.subject}: {accepted.status}")


def replace(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for its history.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Ask for another node like this one. This one serves until the other is ready, and ends then."""
    with session().client() as client:
        accepted = client.replace(name, reason)
    if as_json:
        write_json(accepted)
    else:
        say(f"{accepted.subject} is being replaced; follow it: skyfleet node {accepted.subject} --events")


def terminate(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Until the cloud confirms that the machine is gone.")] = False,
    timeout: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="With --wait: for how long; exits 7 after it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """End a node and its machine. It is called terminated only once the cloud confirms it."""
    with session().client() as client:
        accepted = client.terminate(name)
        if not wait:
            if as_json:
                write_json(accepted)
            else:
                say(f"{name}: {accepted.status}")
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        view = client.node(name)
        shown = ""
        try:
            while view.status is not NodeStatus.TERMINATED:
                if not as_json and view.status_message != shown:
                    shown = view.status_message
                    say(f"{view.node_id}: {view.status.value} · {shown}")
                if deadline is not None and time.monotonic() > deadline:
                    errors().print(f"{view.node_id} is not gone yet; it is still being ended", style="red")
                    raise typer.Exit(Exit.TIMEOUT)
                time.sleep(0.5)
                view = client.node(name)
        except KeyboardInterrupt:
            errors().print(f"\n{view.node_id} is still being ended. Look: skyfleet node {view.node_id}")
            raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        write_json(view)
    else:
        say(f"{view.node_id}: terminated, confirmed by {view.provider} · cost {money(view.cost)}")
