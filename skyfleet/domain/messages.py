"""What goes in and out of workflows, activities, signals, updates and queries: one model each way.

A new field gets a default, so that a history written by an older version still replays. No secret is in here:
activities read tokens and environment values from the database.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel

from skyfleet.domain.errors import ClassifiedError
from skyfleet.domain.launches import Deadlines, Fallback, LaunchSpec
from skyfleet.domain.offers import Offer
from skyfleet.domain.planner import Refusal
from skyfleet.domain.states import LaunchStage, MarketPolicy

# --- LaunchWorkflow ---------------------------------------------------------------------------------------


class LaunchInput(BaseModel):
    """Starts a `LaunchWorkflow`. The request itself is in the database; what is repeated here is for its reader."""

    launch_id: str
    tenant: str
    model_name: str
    provider: str | None = None
    region: str | None = None
    instance_type: str | None = None
    gpu: str | None = None
    market: MarketPolicy = MarketPolicy.ON_DEMAND
    fallback: Fallback = Fallback()
    deployment: str | None = None
    deadlines: Deadlines = Deadlines()
    max_attempts: int = 20

    @classmethod
    def of(cls, launch_id: str, tenant: str, spec: LaunchSpec) -> LaunchInput:
        """The input for a launch as the database holds it; `env` stays there."""
        return cls(
            launch_id=launch_id,
            tenant=tenant,
            **{name: getattr(spec, name) for name in cls.model_fields if name in LaunchSpec.model_fields},
        )


class LaunchOutcome(BaseModel):
    """How a launch ended."""

    launch_id: str
    stage: LaunchStage
    attempts: int
    node_id: str | None = None
    cluster_name: str | None = None
    endpoint_url: str | None = None
    error: ClassifiedError | None = None


class AttemptRef(BaseModel):
    """Names one attempt of one launch, and the machine and node that it stands for."""

    launch_id: str
    number: int
    cluster_name: str
    node_id: str


class AttemptView(BaseModel):
    """One attempt, as the workflow remembers it."""

    ref: AttemptRef
    offer: Offer
    error: ClassifiedError | None = None
    torn_down: bool = False


class LaunchView(BaseModel):
    """Answer of the `status` query."""

    launch_id: str
    stage: LaunchStage
    attempts: list[AttemptView]
    cancel_requested: bool
    error: ClassifiedError | None = None


class CancelLaunch(BaseModel):
    """The `cancel` update."""

    requested_by: str
    reason: str = ""


class Accepted(BaseModel):
    """An update was accepted; its effect follows."""

    stage: str


class NodeRegistered(BaseModel):
    """Signal: the agent of this attempt registered."""

    node_id: str
    attempt: int
    endpoint_url: str
    at: datetime


class StageReached(BaseModel):
    """Signal: the agent of this attempt reached a stage."""

    node_id: str
    attempt: int
    stage: LaunchStage
    at: datetime


class EngineFailed(BaseModel):
    """Signal: the agent could not start the engine."""

    node_id: str
    attempt: int
    detail: str
    log_tail: list[str] = []


# --- activities of a launch ---------------------------------------------------------------------------------


class ValidateInput(BaseModel):
    """`validate_launch`."""

    launch_id: str


class ValidateResult(BaseModel):
    """What validation settled: how many offers of the catalog fit before the capacity memory is asked."""

    fitting_offers: int


class PlanInput(BaseModel):
    """`plan_launch`: what is next, given what this launch met so far."""

    launch_id: str
    attempt: int
    tried: list[Refusal] = []


class PlanResult(BaseModel):
    """The next offer to try (None: nothing is left), how many stand behind it, and why others were left out."""

    offer: Offer | None
    alternatives: int = 0
    left_out: dict[str, int] = {}
    last_resort: bool = False
    nothing_left: ClassifiedError | None = None


class OpenAttemptInput(BaseModel):
    """`open_attempt`: write the attempt down before anything is created."""

    launch_id: str
    number: int
    offer: Offer


class ProvisionInput(BaseModel):
    """`provision_machine`: adopt or create the machine and see it run."""

    attempt: AttemptRef
    offer: Offer
    deadline_seconds: float


class ProvisionResult(BaseModel):
    """The machine runs, as the cloud says. Not the node: only the agent's registration says that."""

    instance_id: str
    address: str | None = None
    adopted: bool = False


class CheckRegistrationInput(BaseModel):
    """`check_registration`: did the node register although no signal came, and is its machine still there?"""

    attempt: AttemptRef
    offer: Offer


class CheckRegistrationResult(BaseModel):
    """The registration that the database holds, or the last stage that the agent reported.

    `machine_lost` is set when the cloud says that the machine is gone; an answer that was not had leaves it None.
    """

    registered: NodeRegistered | None = None
    last_stage: LaunchStage | None = None
    machine_lost: ClassifiedError | None = None


class CloseAttemptInput(BaseModel):
    """`close_attempt`: the attempt is given up; remember why, and refuse its agent from now on."""

    attempt: AttemptRef
    offer: Offer
    error: ClassifiedError | None = None  # None: cancelled
    refusal: Refusal | None = None


class TerminateInput(BaseModel):
    """`terminate_machine`: end the machine, and ask until the cloud says that it is gone."""

    backend: str
    cluster_name: str
    reason: str
    launch_id: str | None  # None: a machine that nobody wrote down
    attempt: int | None = None
    node_id: str | None = None


class TerminateResult(BaseModel):
    """The cloud confirmed that the machine is gone."""

    confirmed_at: datetime
    existed: bool


class CompleteInput(BaseModel):
    """`complete_launch`: the node is READY."""

    attempt: AttemptRef


class FinishInput(BaseModel):
    """`finish_launch`: FAILED or CANCELLED, with nothing left in the cloud."""

    launch_id: str
    stage: LaunchStage
    error: ClassifiedError | None = None


class Done(BaseModel):
    """An activity did what its name says."""


# --- NodeWorkflow -------------------------------------------------------------------------------------------


class NodeInput(BaseModel):
    """Starts a `NodeWorkflow`."""

    node_id: str
    launch_id: str
    attempt: int
    cluster_name: str
    backend: str
    cloud: str
    region: str
    market: str
    tenant: str
    hourly_price: Decimal
    deployment: str | None = None


class TerminateNode(BaseModel):
    """The `terminate` update of a node."""

    requested_by: str
    reason: str = ""


class DrainNode(BaseModel):
    """The `drain` update: no new requests, those that run may finish for so long, then the machine is ended."""

    requested_by: str
    reason: str = ""
    seconds: float = 600.0


class ReplaceNode(BaseModel):
    """The `replace` update: another node is asked for, and this one ended.

    `at_once`: this one serves nobody, so its end waits for nothing; else it serves until the other is READY.
    """

    requested_by: str
    reason: str = ""
    at_once: bool = False


class PreemptionWarned(BaseModel):
    """Signal: the cloud gave notice that it will take the machine; when, if it said so."""

    source: str
    deadline: datetime | None = None


class NodeView(BaseModel):
    """Answer of a node's `status` query."""

    node_id: str
    status: str
    terminate_requested_by: str | None = None
    terminate_reason: str | None = None
    doing: str = ""
    replaced_by: str | None = None


class MarkNodeInput(BaseModel):
    """`mark_node`: write the node's new status. `kept`: it is not replaced after all, and may be asked to be again."""

    node_id: str
    status: str
    message: str = ""
    kept: bool = False


class ReplacementInput(BaseModel):
    """`request_replacement`: ask for another node like this one. `preempted`: not where this one was taken away."""

    node_id: str
    reason: str
    preempted: bool = False


class ReplacementResult(BaseModel):
    """The launch that was asked for, or why none was."""

    launch_id: str | None = None
    why_not: str = ""


class CheckReplacementInput(BaseModel):
    """`check_replacement`: how far the other node's launch is."""

    launch_id: str


class CheckReplacementResult(BaseModel):
    """Its stage, and why it failed if it did."""

    stage: LaunchStage
    error: str = ""


class CheckDrainInput(BaseModel):
    """`check_drain`: has the node finished what it was serving since then?"""

    node_id: str
    since: datetime


class CheckDrainResult(BaseModel):
    """`drained`: nothing runs or waits; `silent`: nothing was heard of it for so long that it is gone."""

    drained: bool = False
    silent: bool = False


# --- FleetWatchWorkflow --------------------------------------------------------------------------------------


class WatchInput(BaseModel):
    """One stretch of the fleet watch."""


class WatchResult(BaseModel):
    """How many looks at the whole fleet were taken."""

    looks: int


# --- SweepWorkflow ------------------------------------------------------------------------------------------


class SweepInput(BaseModel):
    """One run of the sweep. `recheck`: where the clouds may be bought at too, however lately that was checked."""

    dry_run: bool = False
    recheck: bool = False


class SweepResult(BaseModel):
    """What one sweep found and did, by finding."""

    restarted_launches: list[str] = []
    redelivered_cancels: list[str] = []
    redelivered_terminations: list[str] = []
    redelivered_commands: list[str] = []
    ended_strays: list[str] = []
    lost_nodes: list[str] = []
    offers: int = 0
    budget_alerts: list[str] = []  # as in CheckBudgetsResult
    budget_drains: list[str] = []


class CheckBudgetsResult(BaseModel):
    """`check_budgets`: the alerts given, as `budget:fraction`, and the nodes whose end a budget asked for."""

    alerts: list[str] = []
    drained_nodes: list[str] = []


# --- ModelRefreshWorkflow -----------------------------------------------------------------------------------


class RefreshModelsInput(BaseModel):
    """One reading of the model bucket. Its address and keys are the worker's settings, and in no history."""


class RefreshModelsResult(BaseModel):
    """What one reading of the model bucket changed in the catalog: numbers of models."""

    models: int
    read: int
    removed: int
    skipped: int


# --- NotificationWorkflow -----------------------------------------------------------------------------------


class DeliverInput(BaseModel):
    """One delivery of what people are to be told."""


class DeliverResult(BaseModel):
    """What one delivery did: numbers of messages. `failed` will be tried again, `given_up` not."""

    sent: int = 0
    failed: int = 0
    given_up: int = 0
    held: int = 0  # by a channel's throttle, for a summary


class ChannelTestInput(BaseModel):
    """`test_channel`. The channel's address is in the database, and in no history."""

    channel_id: str
    requested_by: str


class ChannelTestResult(BaseModel):
    """Whether the channel's receiver took a message now, and if not, what it said."""

    ok: bool
    detail: str = ""
