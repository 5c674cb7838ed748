"""The steps of a launch on our own database."""

from __future__ import annotations

import asyncio
import time

from temporalio import activity

from activities.failures import final
from activities.signatures import LaunchSteps
from activities.specs import SpecCache, invalid
from skyfleet.db.budget_stops import BudgetStops
from skyfleet.db.repositories import (
    AttemptRepository,
    AuditRepository,
    CatalogRepository,
    LaunchRepository,
    ModelRepository,
    NodeRepository,
    NotificationRepository,
    RefusalRepository,
)
from skyfleet.db.session import Database, Session
from skyfleet.db.tables import AttemptRow, LaunchRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.budgets import Spender, closed_providers, refusal, refusing
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.launches import LaunchSpec, status_of
from skyfleet.domain.notifications import launch_failed
from skyfleet.domain.offers import Offer
from skyfleet.domain.planner import Plan, plan
from skyfleet.domain.states import AttemptState, LaunchStage, NodeStatus
from skyfleet.telemetry import metrics

#: Offers change seldom; a burst of launches looks once in this time whether they did.
_CATALOG_SECONDS = 2.0


class LaunchActivities(LaunchSteps):
    """Steps of `LaunchWorkflow`; each is one transaction, and harmless when it runs twice."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._specs = SpecCache()
        self._models: set[str] = set()
        self._offers: list[Offer] = []
        self._engines: dict[str, str] = {}  # by backend: what it runs unless asked otherwise
        self._version: tuple[str, ...] | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()  # a burst reads it once
        self._stops = BudgetStops()

    @activity.defn
    async def validate_launch(self, request: m.ValidateInput) -> m.ValidateResult:
        """Check that the model is still known and that something on sale fits, apart from who refused lately."""
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            spec = await self._specs.of(launches, request.launch_id)
            await launches.record(
                request.launch_id,
                kind="stage",
                stage=LaunchStage.VALIDATING,
                message="validating configuration",
                dedupe="validating",
            )
            offers = await self._catalog(session)
            if spec.model_name not in self._models:
                raise final(invalid(f"The model {spec.model_name} is no longer in the catalog."))
            fitting = plan(spec, offers, [], [], utcnow())
            if not fitting.offers:
                raise final(_nothing_left(spec, fitting))
            stops = await self._stops.read(session)
            if any(budget.stops for budget in stops):
                launch = await launches.get(request.launch_id)
                assert launch is not None
                spender = Spender(tenant=launch.tenant, user=launch.principal, deployment=launch.deployment)
                stopped = refusing(stops, spender, spec, {offer.cloud for offer in offers})
                if stopped is not None:
                    raise final(refusal(stopped))
            return m.ValidateResult(fitting_offers=len(fitting.offers))

    @activity.defn
    async def plan_launch(self, request: m.PlanInput) -> m.PlanResult:
        """Ask the planner, with the capacity memory as it is now."""
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            spec = await self._specs.of(launches, request.launch_id)
            offers = await self._catalog(session)
            refusals = await RefusalRepository(session).live()
            closed = closed_providers(await self._stops.read(session))
            open_to_it = [offer for offer in offers if offer.cloud not in closed] if closed else offers
            chosen = plan(spec, open_to_it, refusals, request.tried, utcnow())
            left_out = chosen.summary()
            if not chosen.offers:
                error = _nothing_left(spec, chosen)
                if closed:
                    elsewhere = plan(spec, offers, refusals, request.tried, utcnow()).offers
                    error = next((refusal(closed[one.cloud]) for one in elsewhere if one.cloud in closed), error)
                await launches.record(
                    request.launch_id,
                    kind="plan",
                    stage=LaunchStage.PLANNING,
                    attempt=request.attempt,
                    message=error.message,
                    data={"left_out": left_out},
                    dedupe=f"plan:{request.attempt}",
                )
                return m.PlanResult(offer=None, left_out=left_out, nothing_left=error)
            offer, rest = chosen.offers[0], len(chosen.offers) - 1
            note = "; the only place left, though it refused a moment ago" if chosen.last_resort else ""
            await launches.record(
                request.launch_id,
                kind="plan",
                stage=LaunchStage.PLANNING,
                attempt=request.attempt,
                message=f"chose {offer.key} at ${offer.hourly_price}/h; {rest} more could be tried{note}",
                data={
                    "offer": offer.model_dump(mode="json"),
                    "next": [item.key for item in chosen.offers[1:6]],
                    "left_out": left_out,
                    # Only what memory or this launch's own attempts ruled out: the rest was never asked for.
                    "refused": {
                        item.offer.key: item.text
                        for item in chosen.excluded
                        if item.reason in ("refused_recently", "tried")
                    },
                },
                dedupe=f"plan:{request.attempt}",
            )
            return m.PlanResult(offer=offer, alternatives=rest, left_out=left_out, last_resort=chosen.last_resort)

    @activity.defn
    async def open_attempt(self, request: m.OpenAttemptInput) -> m.AttemptRef:
        """Write the attempt, with the name of its machine, before the cloud hears of it."""
        offer, number = request.offer, request.number
        ref = m.AttemptRef(
            launch_id=request.launch_id,
            number=number,
            cluster_name=ids.cluster_name(request.launch_id, number),
            node_id=ids.node_id(request.launch_id, number),
        )
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            spec = await self._specs.of(launches, request.launch_id)
            engine = spec.engine or await self._default_engine(session, offer.backend)
            if not await launches.choose(ref.launch_id, offer, ref, engine):
                # This step outlived the launch that cancelled it.
                raise final(invalid("The launch has already ended."))
            await AttemptRepository(session).open_once(
                AttemptRow(
                    launch_id=ref.launch_id,
                    number=number,
                    cluster_name=ref.cluster_name,
                    node_id=ref.node_id,
                    backend=offer.backend,
                    cloud=offer.cloud,
                    region=offer.region,
                    zone=offer.zone,
                    instance_type=offer.instance_type,
                    market=offer.market.value,
                    hourly_price=offer.hourly_price,
                    gpu=offer.gpu,
                    gpu_count=offer.gpu_count,
                    state=AttemptState.OPEN.value,
                )
            )
            await launches.record(
                ref.launch_id,
                kind="attempt",
                attempt=number,
                message=f"attempt {number}: {offer.key} at ${offer.hourly_price}/h as {ref.cluster_name}",
                data={"offer": offer.model_dump(mode="json"), "state": AttemptState.OPEN.value},
                dedupe=f"open:{number}",
            )
        return ref

    @activity.defn
    async def close_attempt(self, request: m.CloseAttemptInput) -> m.Done:
        """From here on the attempt's agent is refused (410), and other launches know that the place refused."""
        ref, error = request.attempt, request.error
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            launch = await _locked(launches, ref.launch_id)
            attempt = await AttemptRepository(session).get(ref.launch_id, ref.number, lock=True)
            assert attempt is not None
            if attempt.state not in (AttemptState.CLOSING.value, AttemptState.CLOSED.value):
                attempt.state = AttemptState.CLOSING.value
                attempt.closing_at = utcnow()
                attempt.error = error.model_dump(mode="json") if error else None
                node = await NodeRepository(session).get(ref.node_id, lock=True)
                if node is not None:  # it registered in the moment in which it was given up
                    node.status = NodeStatus.TERMINATING.value
                    node.status_message = "its launch was given up"
            closed = await launches.record(
                launch.id,
                kind="attempt",
                stage=LaunchStage.TEARING_DOWN,
                attempt=ref.number,
                message=f"attempt {ref.number} given up: {error.message if error else 'cancelled'}",
                data={"error": error.model_dump(mode="json") if error else None, "state": AttemptState.CLOSING.value},
                dedupe=f"close:{ref.number}",
            )
            refusal = request.refusal
            if refusal is not None and refusal.until is not None and refusal.until > utcnow():
                await RefusalRepository(session).remember(refusal, ref.launch_id)
        if closed:  # counted once it is committed, by the one run that wrote it
            metrics.attempt_decided(request.offer.cloud, error.kind.value if error else "cancelled")
        return m.Done()

    @activity.defn
    async def complete_launch(self, request: m.CompleteInput) -> m.Done:
        """READY: the node serves, and its workflow owns it."""
        ref = request.attempt
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            node = await NodeRepository(session).place(ref.node_id)
            if node is None:
                raise final(invalid(f"There is no node {ref.node_id} in the database."))
            ended = await launches.record(
                ref.launch_id,
                kind="end",
                stage=LaunchStage.READY,
                attempt=ref.number,
                message=f"ready: {ref.node_id} at {node.endpoint_url}",
                data={"node_id": ref.node_id, "endpoint_url": node.endpoint_url},
                dedupe="end",
            )
            await AttemptRepository(session).succeeded(ref.launch_id, ref.number)
            await RefusalRepository(session).forget(
                node.provider, node.region, node.zone, node.instance_type, node.market
            )
            timeline = await launches.timeline(ref.launch_id)
        if ended:
            metrics.attempt_decided(node.provider, "succeeded")
            metrics.launch_ended(status_of(LaunchStage.READY), timeline)
        return m.Done()

    @activity.defn
    async def finish_launch(self, request: m.FinishInput) -> m.Done:
        """FAILED or CANCELLED; every machine of the launch is confirmed gone."""
        async with self._database.transaction() as session:
            launches = LaunchRepository(session)
            launch = await _locked(launches, request.launch_id)
            if launch.ended_at is not None:
                return m.Done()
            unused: list[str] = []
            for attempt in await AttemptRepository(session).of_launch(request.launch_id):
                if attempt.state == AttemptState.OPEN.value:  # written down, and cancelled before any create
                    unused.append(attempt.cloud)
                    attempt.state = AttemptState.CLOSED.value
                    attempt.closing_at = attempt.closed_at = utcnow()
            error = request.error
            timed_out = error is not None and error.kind is ErrorKind.TIMEOUT
            launch.error = error.model_dump(mode="json") if error else None
            ended = await launches.record(
                launch.id,
                kind="end",
                stage=request.stage,
                timed_out=timed_out,
                message=error.message if error else "cancelled; the cloud confirmed that nothing is left",
                data={"error": launch.error},
                dedupe="end",
            )
            AuditRepository(session).add(
                principal="skyfleet",
                action=f"launch.{request.stage.value.lower()}",
                subject=launch.id,
                outcome="done",
                detail={"error": error.message if error else None, "attempts": launch.attempt_count},
            )
            if request.stage is LaunchStage.FAILED:
                await NotificationRepository(session).add(
                    launch_failed(
                        launch.id,
                        tenant=launch.tenant,
                        model_name=launch.model_name,
                        attempts=launch.attempt_count,
                        message=error.message if error else "it failed without a reason",
                        next_steps=error.next_steps if error else (),
                    )
                )
            timeline = await launches.timeline(launch.id)
        if ended:
            for cloud in unused:
                metrics.attempt_decided(cloud, "cancelled")
            metrics.launch_ended(status_of(request.stage, timed_out=timed_out), timeline)
        return m.Done()

    async def _catalog(self, session: Session) -> list[Offer]:
        async with self._reading:
            if time.monotonic() - self._read_at > _CATALOG_SECONDS:
                catalog = CatalogRepository(session)
                version = await catalog.fingerprint()
                if version != self._version:
                    self._models = await ModelRepository(session).ids()
                    self._offers = await catalog.offers()
                    self._engines = {row.name: row.engines[0] for row in await catalog.backends() if row.engines}
                    self._version = version
                self._read_at = time.monotonic()
            return self._offers

    async def _default_engine(self, session: Session, backend: str) -> str | None:
        await self._catalog(session)
        return self._engines.get(backend)


async def _locked(launches: LaunchRepository, launch_id: str) -> LaunchRow:
    launch = await launches.get(launch_id, lock=True)
    if launch is None:
        raise final(invalid(f"There is no launch {launch_id} in the database."))
    return launch


def _nothing_left(spec: LaunchSpec, chosen: Plan) -> ClassifiedError:
    """Why no offer can be tried, in words, with what a person can do."""
    counts = ", ".join(f"{count} for {reason.replace('_', ' ')}" for reason, count in chosen.summary().items())
    wanted = " ".join(
        part for part in (spec.provider, spec.region, spec.instance_type or spec.gpu, spec.market.value) if part
    )
    message = f"Nothing on sale fits {wanted} for {spec.model_name}. Left out: {counts or 'the catalog is empty'}."
    reasons = chosen.summary()
    steps = []
    if "refused_recently" in reasons:
        steps.append("wait a few minutes: places that refused are tried again")
    if "region" in reasons and spec.fallback.regions != "any":
        steps.append("allow fall-back to other regions")
    if "market" in reasons and spec.market != "on_demand":
        steps.append("allow fall-back to on-demand")
    if "price" in reasons:
        steps.append("raise the price limit")
    if "gpu_memory" in reasons:
        steps.append("choose an instance type with more GPU memory")
    return ClassifiedError(
        kind=ErrorKind.CAPACITY if "refused_recently" in reasons else ErrorKind.CONFIG,
        scope=ErrorScope.ACCOUNT,
        retryable="refused_recently" in reasons,
        cloud=spec.provider or "",
        message=message,
        next_steps=steps,
        raw=message,
    )
