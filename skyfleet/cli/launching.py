"""`launch`, `status`, `events`, `launches`, `cancel`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from skyfleet.cli.common import (
    JsonFlag,
    ago,
    bought,
    clock,
    console,
    dollars,
    errors,
    facts,
    marked,
    money,
    pairs,
    place,
    price,
    say,
    seconds,
    session,
    table,
    write_json,
)
from skyfleet.cli.exits import Exit
from skyfleet.domain.states import SHOWN_STAGES, LaunchStage, LaunchStatus

if TYPE_CHECKING:
    from skyfleet.client import SkyfleetClient
    from skyfleet.domain.views import AttemptView, LaunchEvent, LaunchStatusView

_PERCENT = {stage: percent for stage, _, percent in SHOWN_STAGES} | {LaunchStage.READY: 100}

Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of the launch, as `launch` printed it.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (launch, status, events, launches, cancel):
        app.command()(command)


def launch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the catalog (`skyfleet models`).")],
    provider: Annotated[str | None, typer.Option(help="Cloud. Any, if left out.")] = None,
    region: Annotated[str | None, typer.Option(help="Region of that cloud.")] = None,
    zone: Annotated[str | None, typer.Option(help="Zone of that region.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="The cloud's name of a machine type.")] = None,
    gpu: Annotated[str | None, typer.Option(help="A GPU by name, when no instance type is given.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Buy spot.")] = False,
    fallback_region: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Region to fall back to; repeatable, or `any`.")
    ] = None,
    fallback_cloud: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Cloud to fall back to; repeatable, or `any`.")
    ] = None,
    fallback_on_demand: Annotated[
        bool, typer.Option("--fallback-on-demand", help="Buy on-demand once no spot is left. Needs --spot.")
    ] = False,
    max_hourly_cost: Annotated[
        Decimal | None, typer.Option(parser=dollars, metavar="USD", help="Most that the machine may cost an hour.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=200, help="Places to try at most.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Deployment that the node belongs to.")] = None,
    engine: Annotated[str | None, typer.Option(help="Inference server. The cloud's default, if left out.")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the engine; repeatable.")
    ] = None,
    engine_command: Annotated[
        str | None, typer.Option(help="Command line of the engine `command`, split as a shell would, run without one.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment of the engine; repeatable.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Tag; repeatable.")] = None,
    replace_lost: Annotated[
        bool | None,
        typer.Option(
            "--replace-lost/--no-replace-lost",
            help="Ask for another when the node is preempted or lost. [default: if it has a deployment]",
        ),
    ] = None,
    max_life: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="Drain and end the node after: 8h.")
    ] = None,
    idle_shutdown: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="End the node after so long without a request.")
    ] = None,
    provision_deadline: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="For each machine to run: 90, 15m, 1h.")
    ] = None,
    registration_deadline: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="For its node to register after that.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and request is the same launch, however often it is asked for.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id of the launch and leave.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Get a GPU node for MODEL, and follow it until it is ready.

    Ctrl-C leaves the launch running. With --json each line has a `type`: `accepted`, then `event`s, then `status`;
    with --detach the one document is the API's answer.
    """
    if fallback_on_demand and not spot:
        raise typer.BadParameter(
            "on-demand is what is bought anyway; it needs --spot", param_hint="--fallback-on-demand"
        )
    body: dict[str, Any] = {
        "model_name": model,
        "provider": provider,
        "region": region,
        "zone": zone,
        "instance_type": instance_type,
        "gpu": gpu,
        "use_spot": spot,
        "max_hourly_cost": max_hourly_cost,
        "max_attempts": max_attempts,
        "deployment": deployment,
        "engine": engine,
        "engine_args": [f"--{argument.removeprefix('--')}" for argument in engine_arg or []] or None,
        "engine_command": _split(engine_command),
        "env": pairs("--env")(env) or None,
        "tags": pairs("--tag")(tag) or None,
        "replace_lost": replace_lost,
        "max_life_seconds": None if max_life is None else int(max_life),
        "idle_shutdown_seconds": None if idle_shutdown is None else int(idle_shutdown),
        "fallback": {
            "regions": _anywhere(fallback_region),
            "clouds": _anywhere(fallback_cloud),
            "on_demand": fallback_on_demand,
        },
        "deadlines": _given(provision_seconds=provision_deadline, registration_seconds=registration_deadline),
    }
    with session().client() as client:
        accepted = client.launch(body, idempotency_key)
        if detach:
            if as_json:
                write_json(accepted)
            else:
                say(accepted.job_id)
            return
        if as_json:
            write_json({"type": "accepted", **accepted.model_dump(mode="json")})
        else:
            mark = " · sandbox" if accepted.sandbox else ""
            say(f"{accepted.job_id} accepted · estimated time: {accepted.estimated_time}{mark}", style="bold")
        raise typer.Exit(_follow(client, accepted.job_id, 0, as_json=as_json, wrapped=True))


def status(
    job: Job,
    live: Annotated[bool, typer.Option("--live", help="Ask the workflow itself as well.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Where a launch stands: its stages, its attempts, its error. Exits 0 whatever its state."""
    with session().client() as client:
        view = client.status(job, live)
    if as_json:
        write_json(view)
    else:
        _show(view)


def events(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the launch has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a sequence number above this.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """What happened to a launch, from the start. With --follow, the exit code is that of the launch."""
    with session().client() as client:
        if follow:
            raise typer.Exit(_follow(client, job, after, as_json=as_json))
        for event in client.events(job, after, live=False):
            if as_json:
                write_json(event)
            else:
                _plain_event(event)


def launches(
    status: Annotated[
        list[LaunchStatus] | None, typer.Option(help="Only launches with this status; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only launches of this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only launches on this cloud.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only launches of this deployment.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Launches a page.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Page to show, as the page before named it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The history of launches, newest first."""
    with session().client() as client:
        page = client.launches(
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
        ("JOB", "STATUS", "STAGE", "%", "MODEL", "WHERE", "TYPE", "MARKET", "PRICE", "TRIES", "CREATED", "", "ERROR"),
        (
            (
                one.job_id,
                one.status.value,
                one.stage.value,
                one.progress,
                one.model_name,
                place(one.provider, one.region, one.zone),
                one.instance_type,
                bought(one.market),
                price(one.hourly_price),
                one.attempt_count,
                ago(one.created_at),
                marked(one.sandbox) or " ",
                one.error_message,
            )
            for one in page.launches
        ),
        right=("%", "PRICE", "TRIES"),
    )
    if page.next:
        say(f"more: --cursor {page.next}")


def cancel(
    job: Job,
    wait: Annotated[bool, typer.Option("--wait", help="Until the cloud confirms that nothing is left.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Cancel a launch. With --wait: 0 once it is cancelled, 1 when it ended otherwise before that."""
    with session().client() as client:
        accepted = client.cancel(job)
        if not wait:
            if as_json:
                write_json(accepted)
            else:
                say(f"{job}: {accepted.status}")
            return
        with _left_running(job):
            for event in client.events(job, lost=_lost):
                if not as_json:
                    _plain_event(event)
        view = client.status(job)
    if as_json:
        write_json(view)
    raise typer.Exit(Exit.OK if view.status is LaunchStatus.CANCELLED else Exit.FAILED)


# --- following --------------------------------------------------------------------------------------------------


class _Screen(Protocol):
    def event(self, event: LaunchEvent) -> None: ...


def _follow(client: SkyfleetClient, job: str, after: int, *, as_json: bool, wrapped: bool = False) -> Exit:
    """Show every event until the launch has ended; the exit code that says how."""
    with _left_running(job):
        if as_json:
            for event in client.events(job, after, lost=_lost):
                write_json({"type": "event", **event.model_dump(mode="json")} if wrapped else event)
        else:
            with _screen() as screen:
                for event in client.events(job, after, lost=_lost):
                    screen.event(event)
        view = client.status(job)
    if as_json:
        if wrapped:
            write_json({"type": "status", **view.model_dump(mode="json")})
    else:
        _show_end(view)
    return {
        LaunchStatus.COMPLETED: Exit.OK,
        LaunchStatus.CANCELLED: Exit.CANCELLED,
        LaunchStatus.TIMEOUT: Exit.TIMEOUT,
    }.get(view.status, Exit.FAILED)


def _lost(why: str) -> None:
    errors().print(f"the API does not answer ({why}); the launch goes on without it, looking again …", style="yellow")


@contextmanager
def _left_running(job: str) -> Iterator[None]:
    """Ctrl-C ends the looking, not the launch."""
    try:
        yield
    except KeyboardInterrupt:
        errors().print(f"\n{job} goes on. Follow it: skyfleet events {job} --follow · end it: skyfleet cancel {job}")
        raise typer.Exit(Exit.INTERRUPTED) from None


class _Lines:
    """One line an event, for a pipe or a log."""

    def event(self, event: LaunchEvent) -> None:
        _plain_event(event)


class _Bar:
    """The events, above a bar that shows the furthest stage that the API observed, and never anything else."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def event(self, event: LaunchEvent) -> None:
        from rich.text import Text

        style = "red" if event.data.get("error") else "green" if event.stage is LaunchStage.READY else None
        self._progress.console.print(Text.assemble((f"{clock(event.at)}  ", "dim"), (event.message, style or "")))
        if event.stage in _PERCENT:
            self._progress.update(self._task, completed=_PERCENT[event.stage])
        elif event.stage is LaunchStage.PLANNING:  # a new attempt: what the last one reached says nothing of it
            self._progress.update(self._task, completed=_PERCENT[LaunchStage.VALIDATING])
        self._progress.update(self._task, description=event.stage.value.lower().replace("_", " "))


@contextmanager
def _screen() -> Iterator[_Screen]:
    if not sys.stdout.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(), transient=True) as progress:
        yield _Bar(progress, progress.add_task("queued", total=100))


def _plain_event(event: LaunchEvent) -> None:
    percent = f"{_PERCENT[event.stage]:>3}%" if event.stage in _PERCENT else "    "
    say(f"{clock(event.at)}  {percent}  {event.message}")


# --- showing ----------------------------------------------------------------------------------------------------


def _show(view: LaunchStatusView) -> None:
    mark = " · sandbox" if view.sandbox else ""
    say(f"{view.job_id} · {view.status.value} · {view.progress}% · {view.stage_label}{mark}", style="bold")
    for line in view.stages:
        say(f"  {line}")
    facts(
        (
            ("model", view.model_name),
            ("where", place(view.provider, view.region, view.zone)),
            ("machine", _machine(view.instance_type, bought(view.market), price(view.hourly_price))),
            ("engine", view.engine),
            ("node", view.node_id),
            ("endpoint", view.endpoint_url),
            ("cost", money(view.cost)),
            ("created", ago(view.created_at)),
            ("cancel", "asked for" if view.cancel_requested and not view.stage.terminal else None),
            ("workflow", view.workflow_url),
        )
    )
    if view.attempts:
        _show_attempts(view.attempts)
    _show_error(view)
    if view.live is not None:
        say("the workflow itself says:")
        console().print_json(data=view.live)


def _show_end(view: LaunchStatusView) -> None:
    mark = " · sandbox" if view.sandbox else ""
    if view.status is LaunchStatus.COMPLETED:
        took = f"{((view.ended_at or view.updated_at) - view.created_at).total_seconds():.1f} s"
        say(f"✓ ready in {took}{mark}", style="bold green")
        facts(
            (
                ("node", view.node_id),
                ("endpoint", view.endpoint_url),
                ("where", place(view.provider, view.region, view.zone)),
                ("machine", _machine(view.instance_type, bought(view.market), price(view.hourly_price))),
                ("cost so far", money(view.cost)),
                ("workflow", view.workflow_url),
                ("end it", f"skyfleet terminate {view.node_id}"),
            )
        )
        return
    say(f"✗ {view.status.value}{mark} · cost {money(view.cost)}", style="bold red")
    if view.attempts:
        _show_attempts(view.attempts)
    _show_error(view)
    facts([("workflow", view.workflow_url)])


def _show_attempts(attempts: list[AttemptView]) -> None:
    table(
        ("#", "WHERE", "TYPE", "MARKET", "PRICE", "STATE", "COST", "ERROR"),
        (
            (
                one.number,
                place(one.provider, one.region, one.zone),
                one.instance_type,
                bought(one.market),
                price(one.hourly_price),
                one.state.value,
                money(one.cost),
                one.error.message if one.error else None,
            )
            for one in attempts
        ),
        right=("#", "PRICE", "COST"),
    )


def _show_error(view: LaunchStatusView) -> None:
    if view.error is None:
        if view.error_message:
            say(view.error_message, style="red")
        return
    say(view.error.message, style="red")
    for step in view.error.next_steps:
        say(f"  try: {step}")
    if view.raw_error and view.raw_error != view.error.message:
        say("the cloud said:", style="dim")
        for line in view.raw_error.splitlines():
            say(f"  {line}", style="dim")


def _machine(*parts: str | None) -> str | None:
    return " · ".join(part for part in parts if part) or None


def _anywhere(named: list[str] | None) -> str | list[str]:
    return "any" if named and "any" in named else named or []


def _given(**values: float | None) -> dict[str, float] | None:
    return {name: value for name, value in values.items() if value is not None} or None


def _split(command: str | None) -> list[str] | None:
    if command is None:
        return None
    import shlex

    try:
        return shlex.split(command)
    except ValueError as error:
        raise typer.BadParameter(f"{command!r}: {error}", param_hint="--engine-command") from None
