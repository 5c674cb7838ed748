"""What machines cost, and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime

from api.paging import Cursor, Limit, decode_cursor, encode_cursor
from api.presenting import budget_view, cost_interval, cost_part
from api.problems import ProblemError, not_found, refused_field
from api.schemas import BudgetRequest, Name
from api.security import Admin, Principal, Viewer, remote
from api.services import Svc
from skyfleet.db.repositories import AuditRepository, BudgetRepository, CostRepository
from skyfleet.db.session import Session
from skyfleet.db.tables import BudgetRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain.budgets import Budget
from skyfleet.domain.cost import CostKey, CostOutcome, forecast, month_of
from skyfleet.domain.states import Market
from skyfleet.domain.views import (
    BudgetList,
    BudgetView,
    CommandAccepted,
    CostBreakdown,
    CostIntervalList,
    CostSummary,
)

router = APIRouter(prefix="/admin", tags=["costs"])

_MOST_DAYS: Final = 1_100

From = Annotated[
    AwareDatetime | None,
    Query(
        alias="from", description="Start of the period, with its offset from UTC.", examples=["2026-11-01T00:00:00Z"]
    ),
]
To = Annotated[
    AwareDatetime | None,
    Query(alias="to", description="End of the period, which is not part of it.", examples=["2026-12-01T00:00:00Z"]),
]
_Filter = Annotated[str | None, Query(max_length=200)]
BudgetName = Annotated[Name, Path(description="Name of the budget.")]


def _tenant(principal: Principal, asked: str | None) -> str | None:
    """The tenant whose costs are shown; None for all, which admins may see."""
    if principal.scope is not None and asked not in (None, principal.scope):
        raise ProblemError(403, f"{principal.name} sees the costs of the tenant {principal.scope} alone")
    return principal.scope or asked


def _check_period(since: datetime | None, until: datetime | None) -> None:
    for field, moment in (("from", since), ("to", until)):
        if moment is not None and not 1970 <= moment.year <= 9000:
            raise refused_field(field, "must be in the years 1970 to 9000")
    if since is not None and until is not None and since >= until:
        raise refused_field("from", f"must be before `to`, which is {until.isoformat()}")


# --- costs ------------------------------------------------------------------------------------------------------


@router.get("/costs", response_model=CostSummary, summary="This month's costs")
async def costs(services: Svc, principal: Viewer, tenant: _Filter = None) -> CostSummary:
    """Spent so far, the forecast, what is spent an hour now, and what spot saves. Months are those of UTC."""
    whose = _tenant(principal, tenant)
    now = utcnow()
    start, end = month_of(now)
    async with services.database.transaction() as session:
        ledger = CostRepository(session)
        month, _ = await ledger.totals(start, now, now, tenant=whose)
        rate = await ledger.hourly_rate(tenant=whose)
    return CostSummary(
        as_of=now,
        month_start=start,
        month_end=end,
        month_to_date=month.cost,
        forecast=forecast(month.cost, rate, now, end),
        hourly_rate=rate,
        spot_saving=month.saving,
        spot_saving_fraction=round(float(month.saving / month.on_demand_cost), 4) if month.on_demand_cost else None,
        failed_cost=month.failed_cost,
        sandbox=services.settings.sandbox,
    )


@router.get("/costs/breakdown", response_model=CostBreakdown, summary="Costs by anything, over any period")
async def breakdown(
    services: Svc,
    principal: Viewer,
    by: Annotated[CostKey, Query(description="What to tell costs apart by.", examples=["provider"])],
    since: From = None,
    until: To = None,
    provider: _Filter = None,
    model_name: _Filter = None,
    deployment: _Filter = None,
    user: _Filter = None,
    tenant: _Filter = None,
    limit: Annotated[int, Query(ge=1, le=5_000, description="Keys shown at most; the total is of all.")] = 1_200,
) -> CostBreakdown:
    """From the start of this UTC month until now, unless `from` and `to` say otherwise. Parts add up to the whole."""
    now = utcnow()
    _check_period(since, until)
    since, until = since or month_of(until or now)[0], until or now
    _check_period(since, until)
    if by is CostKey.DAY and until - since > timedelta(days=_MOST_DAYS):
        raise refused_field("from", f"is more than {_MOST_DAYS} days before `to`: too many days to tell apart")
    async with services.database.transaction() as session:
        total, parts = await CostRepository(session).totals(
            since,
            until,
            now,
            by=by,
            limit=limit + 1,
            provider=provider,
            model_name=model_name,
            deployment=deployment,
            user=user,
            tenant=_tenant(principal, tenant),
        )
    return CostBreakdown(
        by=by,
        start=since,
        end=until,
        as_of=now,
        total=cost_part(total),
        parts=[cost_part(part) for part in parts[:limit]],
        truncated=len(parts) > limit,
        sandbox=services.settings.sandbox,
    )


@router.get("/costs/intervals", response_model=CostIntervalList, summary="The cost ledger")
async def intervals(
    services: Svc,
    principal: Viewer,
    since: From = None,
    until: To = None,
    billed: Annotated[bool | None, Query(description="Only those that are billed still, or only the others.")] = None,
    outcome: CostOutcome | None = None,
    provider: _Filter = None,
    region: _Filter = None,
    instance_type: _Filter = None,
    market: Market | None = None,
    model_name: _Filter = None,
    deployment: _Filter = None,
    experiment: _Filter = None,
    user: _Filter = None,
    tenant: _Filter = None,
    launch_id: _Filter = None,
    node_id: _Filter = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> CostIntervalList:
    """The machines that cost something in the period, newest first. Failed attempts cost too: see `outcome`."""
    _check_period(since, until)
    now = utcnow()
    async with services.database.transaction() as session:
        rows = await CostRepository(session).page(
            now,
            since=since,
            until=until,
            billed=billed,
            before=decode_cursor(cursor),
            limit=limit + 1,
            outcome=outcome,
            provider=provider,
            region=region,
            instance_type=instance_type,
            market=market,
            model_name=model_name,
            deployment=deployment,
            experiment=experiment,
            user=user,
            tenant=_tenant(principal, tenant),
            launch_id=launch_id,
            node_id=node_id,
        )
    shown = rows[:limit]
    following = encode_cursor(shown[-1].started_at, shown[-1].cluster_name) if len(rows) > limit else None
    return CostIntervalList(intervals=[cost_interval(row, now) for row in shown], next=following)


# --- budgets ----------------------------------------------------------------------------------------------------


async def _views(session: Session, budgets: Sequence[Budget], now: datetime) -> list[BudgetView]:
    alerts = await BudgetRepository(session).alerts(now, [budget.id for budget in budgets])
    return [budget_view(one, [row for row in alerts if row.budget_id == one.id], now) for one in budgets]


@router.get("/budgets", response_model=BudgetList, summary="List budgets")
async def budgets(services: Svc, principal: Viewer) -> BudgetList:
    """By name, with what is spent this month. Without the role `admin`: those of one's own tenant, and one's own."""
    now = utcnow()
    async with services.database.transaction() as session:
        known = await BudgetRepository(session).spending(now, tenant=principal.scope, user=principal.name)
        return BudgetList(budgets=await _views(session, known, now))


async def _one(session: Session, principal: Principal, name: str, now: datetime) -> BudgetView:
    known = await BudgetRepository(session).spending(now, name=name, tenant=principal.scope, user=principal.name)
    if not known:
        raise not_found(f"no budget {name!r}")
    return (await _views(session, known, now))[0]


@router.get("/budgets/{name}", response_model=BudgetView, summary="One budget")
async def budget(services: Svc, principal: Viewer, name: BudgetName) -> BudgetView:
    """With what is spent of it this month, and the alerts that were given."""
    async with services.database.transaction() as session:
        return await _one(session, principal, name, utcnow())


@router.put(
    "/budgets/{name}",
    response_model=BudgetView,
    summary="Make a budget, or change it",
    responses={201: {"model": BudgetView, "description": "It is new."}},
)
async def set_budget(
    request: Request, response: Response, services: Svc, principal: Admin, name: BudgetName, body: BudgetRequest
) -> BudgetView:
    """Make the budget of that name what the body says. Fractions that are not spent of a new amount alert again."""
    now = utcnow()
    wanted: dict[str, Any] = {
        "scope": body.scope.value,
        "value": body.value,
        "amount": body.amount,
        "alert_fractions": [f"{fraction:f}" for fraction in body.alert_fractions],
        "hard_stop": body.hard_stop.value,
    }
    async with services.database.transaction() as session:
        known = BudgetRepository(session)
        row = BudgetRow(id=ids.new_budget_id(), name=name, created_by=principal.name, **wanted)
        created = await known.add_once(row)
        before = None
        if not created:
            row = await known.get(name, lock=True) or row
            before = {field: getattr(row, field) for field in wanted}
            for field, value in wanted.items():
                setattr(row, field, value)
            row.updated_at = now
            await session.flush()
            [budget] = await known.spending(now, name=name)
            await known.forget_alerts(budget, now)
        AuditRepository(session).add(
            principal=principal.name,
            action="budget.set",
            subject=name,
            outcome="done",
            detail={**_plain(wanted), "before": _plain(before) if before else None},
            remote=remote(request),
        )
        view = await _one(session, principal, name, now)
    services.stops.forget()
    if created:
        response.status_code = 201
    return view


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "amount": f"{values['amount']:f}"}


@router.delete("/budgets/{name}", response_model=CommandAccepted, summary="Delete a budget")
async def delete_budget(request: Request, services: Svc, principal: Admin, name: BudgetName) -> CommandAccepted:
    """It stops nothing any more, and its alerts are forgotten; the audit log keeps them."""
    async with services.database.transaction() as session:
        known = BudgetRepository(session)
        row = await known.get(name, lock=True)
        if row is None:
            raise not_found(f"no budget {name!r}")
        await known.delete(row.id)
        AuditRepository(session).add(
            principal=principal.name,
            action="budget.delete",
            subject=name,
            outcome="done",
            detail={"scope": row.scope, "value": row.value, "amount": f"{row.amount:f}"},
            remote=remote(request),
        )
    services.stops.forget()
    return CommandAccepted(status="deleted", subject=name)
