"""`LaunchWorkflow`: from a request to READY, FAILED or CANCELLED, with exactly one machine or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.signatures import LaunchSteps, MachineSteps
    from skyfleet.domain import messages as m
    from skyfleet.domain.classifier import engine_error, timeout_error
    from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
    from skyfleet.domain.offers import Offer
    from skyfleet.domain.outcome import final_error
    from skyfleet.domain.planner import Refusal, memory_until
    from skyfleet.domain.states import AGENT_STAGES, STAGE_LABEL, LaunchStage
    from workflows import options, search_attributes

_In = TypeVar("_In")
_Out = TypeVar("_Out")

#: How often a launch that waits for its node looks whether the machine is still there, and whether the
#: registration's signal was lost.
_LOOK_EVERY = timedelta(seconds=60)


class _AttemptFailed(Exception):
    """This attempt is over; the launch may go on elsewhere."""

    def __init__(self, error: ClassifiedError) -> None:
        super().__init__(error.message)
        self.error = error


@workflow.defn(name="LaunchWorkflow")
class LaunchWorkflow:
    """Owns the attempts of one launch, the fall-back chain, and the compensation."""

    @workflow.init
    def __init__(self, request: m.LaunchInput) -> None:
        self._request = request
        self._stage = LaunchStage.QUEUED
        self._attempts: list[m.AttemptView] = []
        self._tried: list[Refusal] = []
        self._open: m.AttemptView | None = None  # the attempt whose machine may exist
        self._registered: m.NodeRegistered | None = None
        self._engine_failed: m.EngineFailed | None = None
        self._cancel: m.CancelLaunch | None = None
        self._committed = False  # the node serves: too late to cancel
        self._error: ClassifiedError | None = None
        self._work: asyncio.Task[m.LaunchOutcome] | None = None

    @workflow.run
    async def run(self, request: m.LaunchInput) -> m.LaunchOutcome:
        """Launch; whatever goes wrong or is asked for, end with nothing left in the cloud but the READY node."""
        try:
            if self._cancel is not None:  # asked for before the first step
                return await self._finish(LaunchStage.CANCELLED)
            self._work = asyncio.create_task(self._launch())
            return await self._work
        except BaseException as failure:
            # The compensation must outlive a cancellation, of our own kind or from the Temporal Web UI.
            if is_cancelled_exception(failure):
                return await _uninterrupted(self._give_up(LaunchStage.CANCELLED))
            if isinstance(failure, _AttemptFailed):
                self._error = failure.error
                return await _uninterrupted(self._give_up(LaunchStage.FAILED))
            if isinstance(failure, FailureError):
                # An end of Temporal's own making. Whatever it was, it must not leave a machine without an owner.
                self._error = _unforeseen(failure)
                return await _uninterrupted(self._give_up(LaunchStage.FAILED))
            raise

    # --- the way up -----------------------------------------------------------------------------------------

    async def _launch(self) -> m.LaunchOutcome:
        launch_id = self._request.launch_id
        self._stage = LaunchStage.VALIDATING
        await self._step(LaunchSteps.validate_launch, m.ValidateInput(launch_id=launch_id))
        while True:
            offer = await self._next_offer()
            attempt = await _uninterrupted(self._open_attempt(offer))
            _raise_if_cancelled()
            try:
                return await self._try(attempt)
            except _AttemptFailed as failure:
                attempt.error = failure.error
                await self._close(attempt)

    async def _next_offer(self) -> Offer:
        """The next place to try; `_AttemptFailed` with the launch's final error if there is none."""
        self._stage = LaunchStage.PLANNING
        number = len(self._attempts) + 1
        if number > self._request.max_attempts:
            raise _AttemptFailed(final_error(self._attempt_errors(), None))
        plan: m.PlanResult = await self._step(
            LaunchSteps.plan_launch,
            m.PlanInput(launch_id=self._request.launch_id, attempt=number, tried=self._tried),
            f"attempt {number}: where next?",
        )
        if plan.offer is None:
            raise _AttemptFailed(final_error(self._attempt_errors(), plan.nothing_left))
        return plan.offer

    async def _open_attempt(self, offer: Offer) -> m.AttemptView:
        number = len(self._attempts) + 1
        place = _place(offer)
        ref: m.AttemptRef = await self._step(
            LaunchSteps.open_attempt,
            m.OpenAttemptInput(launch_id=self._request.launch_id, number=number, offer=offer),
            f"attempt {number}: {place}",
        )
        attempt = m.AttemptView(ref=ref, offer=offer)
        self._attempts.append(attempt)
        self._open = attempt
        self._registered = self._engine_failed = None
        self._stage = LaunchStage.REQUESTING
        workflow.upsert_search_attributes(search_attributes.of_attempt(LaunchStage.PROVISIONING, offer))
        workflow.set_current_details(f"Attempt {number}: {place}, machine `{ref.cluster_name}`")
        return attempt

    async def _try(self, attempt: m.AttemptView) -> m.LaunchOutcome:
        """One attempt, to READY; raises `_AttemptFailed`."""
        deadlines = self._request.deadlines
        try:
            await workflow.execute_activity_method(
                MachineSteps.provision_machine,
                m.ProvisionInput(
                    attempt=attempt.ref, offer=attempt.offer, deadline_seconds=deadlines.provision_seconds
                ),
                summary=f"attempt {attempt.ref.number}: machine {attempt.ref.cluster_name}",
                **options.provision(deadlines.provision_seconds),
            )
        except ActivityError as failure:
            _raise_as_attempt_failure(failure)
        _raise_if_cancelled()
        if self._stage is LaunchStage.REQUESTING:
            self._stage = LaunchStage.PROVISIONING
        await self._await_registration(attempt)
        # From here the node serves. A cancel that comes now is refused, with the advice to terminate the node.
        self._committed = True
        return await _uninterrupted(self._complete(attempt))

    async def _await_registration(self, attempt: m.AttemptView) -> None:
        """Wait for the agent, and look after the machine meanwhile; raises `_AttemptFailed`."""
        seconds = self._request.deadlines.registration_seconds
        deadline = workflow.now() + timedelta(seconds=seconds)
        while not self._heard():
            left = deadline - workflow.now()
            try:
                await workflow.wait_condition(self._heard, timeout=min(left, _LOOK_EVERY))
            except TimeoutError:
                look: m.CheckRegistrationResult = await workflow.execute_activity_method(
                    MachineSteps.check_registration,
                    m.CheckRegistrationInput(attempt=attempt.ref, offer=attempt.offer),
                    summary="has the node registered? is its machine there?",
                    **options.LOOK,
                )
                _raise_if_cancelled()
                if self._heard():
                    break
                if look.registered is not None:
                    self._registered = look.registered
                elif look.machine_lost is not None:
                    raise _AttemptFailed(look.machine_lost) from None
                elif workflow.now() >= deadline:
                    stage = look.last_stage or LaunchStage.PROVISIONING
                    raise _AttemptFailed(
                        timeout_error(
                            attempt.offer.cloud,
                            STAGE_LABEL[stage],
                            seconds,
                            f"the node {attempt.ref.node_id} did not register",
                        )
                    ) from None
        if self._engine_failed is not None and self._registered is None:
            raise _AttemptFailed(
                engine_error(attempt.offer.cloud, self._engine_failed.detail, self._engine_failed.log_tail)
            )

    async def _complete(self, attempt: m.AttemptView) -> m.LaunchOutcome:
        """Say READY. The machine is the node's from here, whose row the registration wrote."""
        assert self._registered is not None
        ref = attempt.ref
        self._stage = LaunchStage.REGISTERING
        await self._step(LaunchSteps.complete_launch, m.CompleteInput(attempt=ref), f"READY: {ref.node_id}")
        self._open = None
        self._enter(LaunchStage.READY)
        return m.LaunchOutcome(
            launch_id=ref.launch_id,
            stage=LaunchStage.READY,
            attempts=len(self._attempts),
            node_id=ref.node_id,
            cluster_name=ref.cluster_name,
            endpoint_url=self._registered.endpoint_url,
        )

    # --- the way down ---------------------------------------------------------------------------------------

    async def _give_up(self, stage: LaunchStage) -> m.LaunchOutcome:
        """End as FAILED or CANCELLED, after the cloud confirmed that nothing is left."""
        if self._open is not None:
            await self._close(self._open)
        return await self._finish(stage)

    async def _close(self, attempt: m.AttemptView) -> None:
        """Give an attempt up: refuse its agent, remember the refusal, end the machine, hear that it is gone."""
        self._stage = LaunchStage.TEARING_DOWN
        error, ref = attempt.error, attempt.ref
        refusal = None
        if error is not None:
            refusal = self._refusal(attempt.offer, error)
            if refusal not in self._tried:
                self._tried.append(refusal)
        reason = error.message if error is not None else self._cancel_reason()
        await self._step(
            LaunchSteps.close_attempt,
            m.CloseAttemptInput(attempt=ref, offer=attempt.offer, error=error, refusal=refusal),
            f"attempt {ref.number} given up: {reason}"[:200],
        )
        await workflow.execute_activity_method(
            MachineSteps.terminate_machine,
            m.TerminateInput(
                backend=attempt.offer.backend,
                cluster_name=ref.cluster_name,
                reason=reason,
                launch_id=ref.launch_id,
                attempt=ref.number,
                node_id=ref.node_id,
            ),
            summary=f"end {ref.cluster_name}, until the cloud says that it is gone",
            **options.TEARDOWN,
        )
        attempt.torn_down = True
        self._open = None

    async def _finish(self, stage: LaunchStage) -> m.LaunchOutcome:
        await self._step(
            LaunchSteps.finish_launch,
            m.FinishInput(launch_id=self._request.launch_id, stage=stage, error=self._error),
            f"{stage.value}: {self._error.message if self._error else self._cancel_reason()}"[:200],
        )
        self._enter(stage)
        return m.LaunchOutcome(
            launch_id=self._request.launch_id, stage=stage, attempts=len(self._attempts), error=self._error
        )

    # --- what the world says --------------------------------------------------------------------------------

    @workflow.signal
    def node_registered(self, event: m.NodeRegistered) -> None:
        """The agent of an attempt registered."""
        if self._is_current(event.attempt):
            self._registered = event

    @workflow.signal
    def stage_reached(self, event: m.StageReached) -> None:
        """The agent of an attempt reached a stage."""
        if self._is_current(event.attempt) and event.stage in AGENT_STAGES and not self._committed:
            self._stage = event.stage

    @workflow.signal
    def engine_failed(self, event: m.EngineFailed) -> None:
        """The agent of an attempt could not start the engine."""
        if self._is_current(event.attempt):
            self._engine_failed = event

    @workflow.update
    def cancel(self, command: m.CancelLaunch) -> m.Accepted:
        """End the launch. It is CANCELLED once the cloud confirms that nothing is left."""
        if self._cancel is None:
            self._cancel = command
            if self._work is not None:
                self._work.cancel()
        return m.Accepted(stage=self._stage.value)

    @cancel.validator
    def _may_cancel(self, command: m.CancelLaunch) -> None:
        if self._committed:
            raise ApplicationError("the node is already up: terminate it instead", type="LaunchCompleted")
        if self._stage.terminal or self._error is not None:
            raise ApplicationError("the launch has already ended", type="LaunchEnded")

    @workflow.query
    def status(self) -> m.LaunchView:
        """Where the launch stands."""
        return m.LaunchView(
            launch_id=self._request.launch_id,
            stage=self._stage,
            attempts=self._attempts,
            cancel_requested=self._cancel is not None,
            error=self._error,
        )

    # --- small things ---------------------------------------------------------------------------------------

    def _heard(self) -> bool:
        return self._registered is not None or self._engine_failed is not None

    def _is_current(self, number: int) -> bool:
        return self._open is not None and self._open.ref.number == number

    def _attempt_errors(self) -> list[tuple[Offer, ClassifiedError]]:
        return [(item.offer, item.error) for item in self._attempts if item.error is not None]

    def _cancel_reason(self) -> str:
        if self._cancel is None:
            return "cancelled from Temporal"
        return f"cancelled by {self._cancel.requested_by}" + (f": {self._cancel.reason}" if self._cancel.reason else "")

    def _refusal(self, offer: Offer, error: ClassifiedError) -> Refusal:
        now = workflow.now()
        return Refusal(
            cloud=offer.cloud,
            region=offer.region,
            zone=offer.zone,
            instance_type=offer.instance_type,
            gpu=offer.gpu,
            gpu_count=offer.gpu_count,
            market=offer.market,
            kind=error.kind,
            scope=error.scope,
            at=now,
            until=memory_until(error.kind, now),
            message=error.message,
        )

    def _enter(self, stage: LaunchStage) -> None:
        self._stage = stage
        workflow.upsert_search_attributes(search_attributes.of_stage(stage))
        workflow.set_current_details("")

    async def _step(
        self, step: Callable[[Any, _In], Awaitable[_Out]], request: _In, summary: str | None = None
    ) -> _Out:
        """A step on our own database; what it refuses for good becomes the attempt's (or launch's) failure."""
        try:
            result: _Out = await workflow.execute_activity_method(step, request, summary=summary, **options.CONTROL)
        except ActivityError as failure:
            _raise_as_attempt_failure(failure)
        _raise_if_cancelled()
        return result


def _raise_if_cancelled() -> None:
    """Call after an activity: its result hides a cancel that reached the workflow in the same task."""
    current = asyncio.current_task()
    if current is not None and current.cancelling():
        raise asyncio.CancelledError


async def _uninterrupted(work: Coroutine[Any, Any, _Out]) -> _Out:
    """Run to the end whatever is cancelled around it: half a teardown would be a leak."""
    task = asyncio.ensure_future(work)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                return task.result()


def _place(offer: Offer) -> str:
    market = offer.market.value.replace("_", "-")
    return f"{offer.cloud}/{offer.region}/{offer.zone or '*'} {offer.instance_type} {market} at ${offer.hourly_price}/h"


def _raise_as_attempt_failure(failure: ActivityError) -> NoReturn:
    """Raise what a failed activity means for the attempt: its classified error, or the cancellation that it was."""
    cause = failure.cause
    if isinstance(cause, ApplicationError) and cause.details:
        raise _AttemptFailed(ClassifiedError.model_validate(cause.details[0])) from failure
    # The worker of a step died with the cancel on its way to it: then the step ends as timed out, not as cancelled.
    _raise_if_cancelled()
    raise failure


def _unforeseen(failure: FailureError) -> ClassifiedError:
    cause = failure.cause or failure
    return ClassifiedError(
        kind=ErrorKind.UNKNOWN,
        scope=ErrorScope.ZONE,
        retryable=True,
        cloud="",
        message=f"A step of the launch ended unforeseen: {cause}.",
        next_steps=["Look at the launch's history in the Temporal Web UI.", "Launch again."],
        raw=f"{type(cause).__name__}: {cause}",
    )
