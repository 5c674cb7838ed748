"""Rows as the views that the API answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from sqlalchemy import Row

from skyfleet.db.repositories.costs import CostTotal
from skyfleet.db.tables import (
    ApiKeyRow,
    AttemptRow,
    BudgetAlertRow,
    CostIntervalRow,
    LaunchRow,
    ModelRow,
    NodeRow,
    NotificationChannelRow,
    NotificationDeliveryRow,
    NotificationRow,
    utcnow,
)
from skyfleet.domain import ids
from skyfleet.domain.budgets import Budget
from skyfleet.domain.cost import CostOutcome, forecast, interval_cost, month_of
from skyfleet.domain.errors import ClassifiedError
from skyfleet.domain.health import Condition, Signal
from skyfleet.domain.launches import progress_of, stage_marks
from skyfleet.domain.notifications import DeliveryState
from skyfleet.domain.states import STAGE_LABEL, AttemptState, LaunchStage, LaunchStatus, Market, NodeStatus, Role
from skyfleet.domain.views import (
    ApiKeyView,
    AttemptView,
    BudgetAlertView,
    BudgetView,
    ChannelView,
    CostInterval,
    CostPart,
    DeliveryView,
    LaunchStatusView,
    LaunchSummary,
    ModelView,
    NodeInfo,
    NotificationView,
)
from skyfleet.settings import Settings


def model_view(row: ModelRow) -> ModelView:
    """A model of the catalog."""
    return ModelView.model_validate(row, from_attributes=True)


def _reached(row: LaunchRow) -> set[LaunchStage]:
    return {LaunchStage(stage) for stage in row.reached}


def _summary(row: LaunchRow) -> dict[str, Any]:
    spec = row.spec
    stage = LaunchStage(row.stage)
    return {
        "job_id": row.id,
        "status": LaunchStatus(row.status),
        "stage": stage,
        "progress": 100 if stage is LaunchStage.READY else progress_of(_reached(row)),
        "model_name": row.model_name,
        # Before the first attempt: what was asked for.
        "provider": row.provider or spec.get("provider"),
        "region": row.region or spec.get("region"),
        "zone": row.zone or spec.get("zone"),
        "instance_type": row.instance_type or spec.get("instance_type"),
        "market": None if row.market is None else Market(row.market),
        "hourly_price": row.hourly_price,
        "attempt_count": row.attempt_count,
        "deployment": row.deployment,
        "engine": row.engine or spec.get("engine"),
        "tenant": row.tenant,
        "requested_by": row.principal,
        "error_message": (row.error or {}).get("message"),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "ended_at": row.ended_at,
        "sandbox": row.sandbox,
    }


def launch_summary(row: LaunchRow) -> LaunchSummary:
    """One line of the history."""
    return LaunchSummary(**_summary(row))


def launch_status(
    row: LaunchRow,
    attempts: Sequence[AttemptRow],
    node: NodeRow | None,
    billed: Mapping[str, CostIntervalRow],
    settings: Settings,
    live: dict[str, Any] | None,
) -> LaunchStatusView:
    """All that is known of a launch. `billed`: what the ledger has of its machines, by name."""
    now = utcnow()
    stage = LaunchStage(row.stage)
    error = None if row.error is None else ClassifiedError.model_validate(row.error)
    views = [_attempt_view(item, billed.get(item.cluster_name), now) for item in attempts]
    workflow_id = ids.launch_workflow_id(row.id)
    return LaunchStatusView(
        **_summary(row),
        stage_label=STAGE_LABEL[stage],
        stages=[mark.line for mark in stage_marks(stage, _reached(row))],
        attempts=views,
        cancel_requested=row.cancel_requested_at is not None,
        requested={**row.spec, "env": sorted(row.spec.get("env", {}))},
        node_id=row.node_id,
        cluster_name=row.cluster_name,
        endpoint_url=None if node is None else node.endpoint_url,
        cost=sum((view.cost for view in views), Decimal(0)),
        error=error,
        raw_error=None if error is None else error.raw,
        workflow_id=workflow_id,
        workflow_url=(
            f"{settings.temporal_ui_url.rstrip('/')}/namespaces/{quote(settings.temporal_namespace, safe='')}"
            f"/workflows/{quote(workflow_id, safe='')}"
        ),
        live=live,
    )


def _attempt_view(row: AttemptRow, billed: CostIntervalRow | None, now: datetime) -> AttemptView:
    return AttemptView(
        number=row.number,
        state=AttemptState(row.state),
        provider=row.cloud,
        region=row.region,
        zone=row.zone,
        instance_type=row.instance_type,
        market=Market(row.market),
        hourly_price=row.hourly_price if billed is None else billed.hourly_price,
        cluster_name=row.cluster_name,
        opened_at=row.opened_at,
        created_at=row.created_at,
        running_at=row.running_at,
        closed_at=row.closed_at,
        cost=_cost(billed, now),
        error=None if row.error is None else ClassifiedError.model_validate(row.error),
    )


def _cost(billed: CostIntervalRow | None, now: datetime) -> Decimal:
    """What a machine cost until `now` or its end; nothing before the cloud is known to have it."""
    if billed is None:
        return Decimal(0)
    return interval_cost(billed.hourly_price, billed.started_at, billed.ended_at or now)


def node_info(row: NodeRow, billed: CostIntervalRow | None) -> NodeInfo:
    """One node. `billed`: what the ledger has of its machine."""
    ended = row.status == NodeStatus.TERMINATED.value
    return NodeInfo(
        node_id=row.id,
        cluster_name=row.cluster_name,
        launch_id=row.launch_id,
        status=NodeStatus(row.status),
        status_message=row.status_message,
        health=Condition(row.health) if row.health and not ended else None,
        health_detail="" if ended else row.health_detail,
        health_score=None if ended else row.health_score,
        signals={name: Signal(said) for name, said in row.signals.items()} if row.signals else None,
        routable=row.routable,
        last_heartbeat_at=row.last_heartbeat_at,
        endpoint_url=row.endpoint_url,
        model_name=row.model_name,
        deployment=row.deployment,
        engine=row.engine,
        provider=row.provider,
        region=row.region,
        zone=row.zone,
        instance_type=row.instance_type,
        gpu_type=row.gpu_type,
        market=Market(row.market),
        cost_per_hour=row.hourly_price if billed is None else billed.hourly_price,
        cost=_cost(billed, utcnow()),
        registered_at=row.registered_at,
        terminated_at=row.terminated_at,
        max_life_seconds=row.max_life_seconds,
        idle_shutdown_seconds=row.idle_shutdown_seconds,
        idle_since=row.idle_since,
        replaced_by=row.replaced_by,
        tenant=row.tenant,
        sandbox=row.sandbox,
    )


def api_key_view(row: ApiKeyRow) -> ApiKeyView:
    """An API key without its secret."""
    return ApiKeyView(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        tenant=row.tenant,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


def channel_view(row: NotificationChannelRow) -> ChannelView:
    """A notification channel, without its address."""
    return ChannelView.model_validate(row, from_attributes=True)


def notification_view(row: NotificationRow, deliveries: Sequence[NotificationDeliveryRow]) -> NotificationView:
    """A notification, and what became of it."""
    return NotificationView(
        **row.model_dump(exclude={"dedupe", "routed_at"}), deliveries=[_delivery_view(one) for one in deliveries]
    )


def _delivery_view(row: NotificationDeliveryRow) -> DeliveryView:
    pending = row.state == DeliveryState.PENDING.value
    return DeliveryView(
        channel_id=row.channel_id,
        channel=row.channel_name,
        state=DeliveryState(row.state),
        held=pending and row.held_at is not None and row.released_at is None,
        attempts=row.attempts,
        error=row.error,
        summary_id=row.summary_id,
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at if pending else None,
        ended_at=row.ended_at,
    )


def cost_part(total: CostTotal) -> CostPart:
    """What the machines of one key cost."""
    return CostPart(
        key=total.key,
        cost=total.cost,
        spot_saving=total.saving,
        failed_cost=total.failed_cost,
        machines=total.machines,
        hours=round(total.billed_seconds / 3600, 4),
    )


def cost_interval(row: Row[Any], now: datetime) -> CostInterval:
    """A line of the ledger, as `CostRepository.page` gives it."""
    seconds = max(0, math.ceil(((row.ended_at or now) - row.started_at).total_seconds()))
    return CostInterval(
        machine=row.cluster_name,
        instance_id=row.instance_id,
        start=row.started_at,
        end=row.ended_at,
        hours=round(seconds / 3600, 4),
        price_per_hour=row.hourly_price,
        on_demand_price=row.on_demand_price,
        total=row.cost,
        outcome=CostOutcome(row.outcome),
        provider=row.provider,
        region=row.region,
        zone=row.zone,
        instance_type=row.instance_type,
        spot=row.market == Market.SPOT,
        tenant=row.tenant,
        user=row.principal,
        model_name=row.model_name,
        deployment=row.deployment,
        experiment=row.experiment,
        launch_id=row.launch_id,
        attempt=row.attempt,
        node_id=row.node_id,
        sandbox=row.sandbox,
    )


def budget_view(budget: Budget, alerts: Sequence[BudgetAlertRow], now: datetime) -> BudgetView:
    """A budget and its alerts of the month that `now` is in."""
    return BudgetView(
        **budget.model_dump(),
        exhausted=budget.exhausted,
        forecast=forecast(budget.spent, budget.hourly_rate, now, month_of(now)[1]),
        alerts=[BudgetAlertView.model_validate(row, from_attributes=True) for row in alerts],
    )
