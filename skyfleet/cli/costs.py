"""`costs` and `budgets`."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skyfleet.cli.common import (
    JsonFlag,
    ago,
    bought,
    dollars,
    facts,
    marked,
    moment,
    money,
    place,
    price,
    say,
    session,
    table,
    write_json,
)
from skyfleet.domain.cost import BudgetScope, CostKey, CostOutcome, HardStop
from skyfleet.domain.states import Market

if TYPE_CHECKING:
    from skyfleet.client import SkyfleetClient
    from skyfleet.domain.views import BudgetView, CostBreakdown, CostPart, CostSummary

budgets = typer.Typer(help="Budgets; alone, it lists them.", invoke_without_command=True, rich_markup_mode=None)

BudgetName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the budget.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(costs)
    app.add_typer(budgets, name="budgets")


def costs(
    by: Annotated[CostKey | None, typer.Option(help="What to tell costs apart by.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", parser=moment, metavar="TIME", help="Start, such as 2026-11-01; else this UTC month's."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", parser=moment, metavar="TIME", help="End, not included; else now.")
    ] = None,
    machines: Annotated[
        bool, typer.Option("--machines", help="Every machine that was paid for, failed attempts too.")
    ] = False,
    provider: Annotated[str | None, typer.Option(help="Only this cloud.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only this deployment.")] = None,
    user: Annotated[str | None, typer.Option(help="Only what this principal launched.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="With --machines: machines a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="With --machines: page to show.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What machines cost: this month, or with --by, --from and --to told apart over any period."""
    narrowed: dict[str, Any] = {
        "provider": provider,
        "model_name": model,
        "deployment": deployment,
        "user": user,
        "tenant": tenant,
    }
    with session().client() as client:
        if machines:
            if by is not None:
                raise typer.BadParameter("--machines and --by exclude each other")
            _machines(client, as_json, start=since, end=until, limit=limit, cursor=cursor, **narrowed)
            return
        if by is None and since is None and until is None and not (provider or model or deployment or user):
            summary = client.costs(tenant)
            if as_json:
                write_json(summary)
            else:
                _show_summary(summary)
            return
        found = client.cost_breakdown(by or CostKey.PROVIDER, start=since, end=until, **narrowed)
    if as_json:
        write_json(found)
    else:
        _show_breakdown(found)


def _show_summary(summary: CostSummary) -> None:
    saving = None
    if summary.spot_saving_fraction is not None:
        saving = f"{money(summary.spot_saving)} ({summary.spot_saving_fraction:.0%} less than on demand)"
    mark = " · sandbox" if summary.sandbox else ""
    say(f"{summary.month_start:%B %Y} (UTC){mark}", style="bold")
    facts(
        (
            ("so far", money(summary.month_to_date)),
            ("now", price(summary.hourly_rate)),
            ("forecast", f"{money(summary.forecast)} at the end of the month, if all runs on"),
            ("spot saved", saving),
            ("failed", f"{money(summary.failed_cost)} for machines that never were a node"),
        )
    )


def _show_breakdown(found: CostBreakdown) -> None:
    def line(part: CostPart, name: str) -> tuple[object, ...]:
        return (
            name,
            money(part.cost),
            money(part.spot_saving),
            money(part.failed_cost),
            part.machines,
            f"{part.hours:.2f}",
        )

    mark = " · sandbox" if found.sandbox else ""
    say(f"{found.start:%Y-%m-%d %H:%M} to {found.end:%Y-%m-%d %H:%M} UTC{mark}", style="bold")
    table(
        (found.by.value.upper().replace("_", " "), "COST", "SPOT SAVED", "FAILED", "MACHINES", "HOURS"),
        [*(line(part, part.key or "(none)") for part in found.parts), line(found.total, "total")],
        right=("COST", "SPOT SAVED", "FAILED", "MACHINES", "HOURS"),
    )
    if found.truncated:
        say("there are more than are shown; the total is of all")


def _machines(
    client: SkyfleetClient,
    as_json: bool,
    *,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    cursor: str | None,
    **narrowed: Any,
) -> None:
    page = client.cost_intervals(start=start, end=end, limit=limit, cursor=cursor, **narrowed)
    if as_json:
        write_json(page)
        return
    table(
        ("MACHINE", "CAME OF IT", "WHERE", "TYPE", "MARKET", "FROM (UTC)", "TO (UTC)", "HOURS", "PRICE", "COST", ""),
        (
            (
                one.machine,
                "failed attempt" if one.outcome is CostOutcome.FAILED else one.outcome.value,
                place(one.provider, one.region, one.zone),
                one.instance_type,
                bought(Market.SPOT if one.spot else Market.ON_DEMAND),
                f"{one.start:%m-%d %H:%M:%S}",
                f"{one.end:%m-%d %H:%M:%S}" if one.end else "still billed",
                f"{one.hours:.2f}",
                price(one.price_per_hour),
                money(one.total),
                marked(one.sandbox) or " ",
            )
            for one in page.intervals
        ),
        right=("HOURS", "PRICE", "COST"),
    )
    if page.next:
        say(f"more: --cursor {page.next}")


# --- budgets ----------------------------------------------------------------------------------------------------


def _show_budgets(known: list[BudgetView]) -> None:
    table(
        ("BUDGET", "OF", "AMOUNT", "SPENT", "", "FORECAST", "ALERTS AT", "GIVEN", "HARD STOP", "CHANGED"),
        (
            (
                one.name,
                one.scope.value if one.value is None else f"{one.scope.value} {one.value}",
                money(one.amount),
                money(one.spent),
                f"{one.spent / one.amount:.0%}",
                money(one.forecast),
                " ".join(f"{fraction:.0%}" for fraction in one.alert_fractions),
                " ".join(f"{alert.fraction:.0%}" for alert in one.alerts),
                f"{one.hard_stop.value}{', in force' if one.exhausted and one.hard_stop is not HardStop.NONE else ''}",
                ago(one.updated_at),
            )
            for one in known
        ),
        right=("AMOUNT", "SPENT", "FORECAST"),
    )


@budgets.callback()
def all_budgets(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Budgets; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_budgets(as_json)


@budgets.command("list")
def list_budgets(as_json: JsonFlag = False) -> None:
    """The budgets, and what is spent of each this UTC month."""
    with session().client() as client:
        known = client.budgets()
    if as_json:
        write_json(known)
    else:
        _show_budgets(known.budgets)


@budgets.command("set")
def set_budget(
    name: BudgetName,
    amount: Annotated[
        Decimal, typer.Argument(parser=dollars, metavar="AMOUNT", help="US dollars in a UTC calendar month.")
    ],
    scope: Annotated[BudgetScope, typer.Option(help="Whose money it counts.")] = BudgetScope.ALL,
    value: Annotated[str | None, typer.Option(help="Name of that tenant, user, …; not for the scope all.")] = None,
    alert_at: Annotated[
        list[str] | None,
        typer.Option(help="Part of the amount that is told of: 0.8, or 80%; repeatable. Else 50, 80 and 100 %."),
    ] = None,
    hard_stop: Annotated[
        HardStop, typer.Option(help="Once all is spent: nothing, refuse launches, or end the nodes as well.")
    ] = HardStop.NONE,
    as_json: JsonFlag = False,
) -> None:
    """Make a budget, or make the one of that name what is said here."""
    body = {
        "scope": scope.value,
        "value": value,
        "amount": amount,
        "alert_fractions": [_fraction(one) for one in alert_at] if alert_at else None,
        "hard_stop": hard_stop.value,
    }
    with session().client() as client:
        made = client.set_budget(name, body)
    if as_json:
        write_json(made)
    else:
        _show_budgets([made])


def _fraction(text: str) -> str:
    try:
        number = Decimal(text.removesuffix("%"))
    except ArithmeticError:
        raise typer.BadParameter(
            f"{text!r} is no part of an amount; write 0.8 or 80%", param_hint="--alert-at"
        ) from None
    return f"{number / 100 if text.endswith('%') else number:f}"


@budgets.command("delete")
def delete_budget(name: BudgetName, as_json: JsonFlag = False) -> None:
    """Delete a budget. What it stopped goes on."""
    with session().client() as client:
        client.delete_budget(name)
    if as_json:
        write_json({"deleted": name})
    else:
        say(f"{name}: deleted")
