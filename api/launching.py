"""Accepting one launch: validate, commit the intent, start the workflow."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from api.problems import ProblemError
from api.schemas import LaunchRequest
from api.security import Principal
from api.services import START_TIMEOUT_S, Services
from api.temporal import WorkflowsUnavailable
from api.validation import Verdict, validate
from skyfleet.db.repositories import LaunchRepository
from skyfleet.db.repositories.launches import NewLaunch
from skyfleet.domain import ids
from skyfleet.domain.budgets import Spender, refusing
from skyfleet.domain.messages import LaunchInput

_log = logging.getLogger("skyfleet.api")


@dataclass(frozen=True, slots=True)
class AcceptedLaunch:
    """A launch that is written down. `replayed`: by an earlier request with the same Idempotency-Key."""

    launch_id: str
    sandbox: bool
    estimated_time: str
    replayed: bool = False


async def accept(
    services: Services, principal: Principal, request: LaunchRequest, key: str | None, remote: str | None
) -> AcceptedLaunch:
    """Write the launch down and start its workflow.

    The launch counts as accepted once its row is committed: when Temporal does not answer, the sweep starts it later.
    Raises problems: 402 for a budget that is spent, 409 for a key that was used with another request, 422 for what
    cannot be launched, 429, 503.
    """
    services.limiter.take(principal)
    request_hash = hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    try:
        verdict = await _validated(services, request)
        await _check_budgets(services, principal, verdict)
    except ProblemError:
        # What was accepted stays accepted, whatever became of the catalog meanwhile.
        if key is not None and (earlier := await _earlier(services, principal, key, request_hash)) is not None:
            return earlier
        raise
    spec = verdict.spec
    launch = NewLaunch(
        id=ids.new_launch_id(),
        tenant=principal.tenant,
        principal=principal.name,
        idempotency_key=key,
        request_hash=request_hash,
        spec=spec.model_dump(mode="json"),
        model_name=spec.model_name,
        deployment=spec.deployment,
        engine=spec.engine,
        sandbox=verdict.sandbox,
        audit_detail={"model_name": spec.model_name, "provider": spec.provider, "region": spec.region},
        remote=remote,
    )
    estimate = await services.estimates.of(request.provider)
    if not await services.intents.write(launch):
        assert key is not None  # what else could be there already
        earlier = await _earlier(services, principal, key, request_hash)
        assert earlier is not None  # intents are never deleted
        return earlier
    try:
        await services.workflows.start_launch(LaunchInput.of(launch.id, launch.tenant, spec), timeout_s=START_TIMEOUT_S)
    except WorkflowsUnavailable as error:
        _log.warning("%s is accepted but not started, the sweep will start it: %s", launch.id, error)
        estimate = "unknown: accepted and written down, but Temporal does not answer; it starts when Temporal is back"
    else:
        services.marker.started(launch.id)
    return AcceptedLaunch(launch.id, launch.sandbox, estimate)


async def _validated(services: Services, request: LaunchRequest) -> Verdict:
    snapshot = await services.catalog.snapshot()
    try:
        return validate(request, snapshot)
    except ProblemError:
        # It may exist since a moment ago.
        newer = await services.catalog.refreshed()
        if newer is snapshot:
            raise
        return validate(request, newer)


async def _check_budgets(services: Services, principal: Principal, verdict: Verdict) -> None:
    """A 402 problem if a spent budget stops the launch."""
    async with services.database.transaction() as session:
        budgets = await services.stops.read(session)
    if not any(budget.stops for budget in budgets):
        return
    sold = {cloud for _, cloud in (await services.catalog.snapshot()).sales}
    spender = Spender(tenant=principal.tenant, user=principal.name, deployment=verdict.spec.deployment)
    budget = refusing(budgets, spender, verdict.spec, sold)
    if budget is not None:
        raise ProblemError(402, f"no launch: {budget.told()}; ask an admin to raise it, or wait for the next month")


async def _earlier(services: Services, principal: Principal, key: str, request_hash: str) -> AcceptedLaunch | None:
    async with services.database.transaction() as session:
        launch = await LaunchRepository(session).by_idempotency_key(principal.name, key)
    if launch is None:
        return None
    if launch.request_hash != request_hash:
        raise ProblemError(409, f"this Idempotency-Key was used for {launch.id}, whose request was another")
    return AcceptedLaunch(
        launch.id, launch.sandbox, await services.estimates.of(launch.spec.get("provider")), replayed=True
    )
