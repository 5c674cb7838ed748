"""What the API answers, as the client, the CLI and the dashboard read it.

Money is US dollars as a decimal string in JSON; times are ISO 8601 in UTC; memory is GB.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel

from skyfleet.domain.cost import BudgetScope, CostKey, CostOutcome, HardStop
from skyfleet.domain.errors import ClassifiedError
from skyfleet.domain.health import Condition, Signal
from skyfleet.domain.model_bucket import SkippedPath
from skyfleet.domain.notifications import DeliveryState, NotificationKind, Severity
from skyfleet.domain.sizing import VramEstimate
from skyfleet.domain.states import AttemptState, LaunchStage, LaunchStatus, Market, NodeDirective, NodeStatus, Role


class ModelView(BaseModel):
    """A model of the catalog.

    `vram_required_gb` is the GPU memory that serving it takes, `vram_estimate` how that figure came about (None: it was
    given), `weights_gb` the size of its weight files; in GB of 2^30 bytes. `dtype` is what most weights are kept in.
    """

    id: str
    name: str
    family: str
    size: str
    vram_required_gb: float
    parameters: int | None = None
    dtype: str | None = None
    weights_gb: float | None = None
    context_length: int | None = None
    vram_estimate: VramEstimate | None = None
    source: str | None = None
    origin: str


class ModelList(BaseModel):
    """`GET /admin/models/r2`."""

    models: list[ModelView]


class ModelBucketView(BaseModel):
    """`GET /admin/models/bucket`: the bucket that models are read from, and how its last reading went.

    `url` is None when none is configured. `attempted_at` is when the last reading that ended began, `synced_at` when
    the last that succeeded began, `error` why the last one failed, `models` how many there were.
    """

    url: str | None = None
    attempted_at: datetime | None = None
    synced_at: datetime | None = None
    error: str | None = None
    models: int = 0
    skipped: list[SkippedPath] = []


class ModelRefreshAccepted(BaseModel):
    """A reading of the model bucket was asked for: it is done when `attempted_at` is not before `requested_at`."""

    status: Literal["refreshing"] = "refreshing"
    url: str
    requested_at: datetime


class OfferView(BaseModel):
    """One thing on sale. `fits` and `why_not` are given when the question named a model.

    `spot_saving` is what a spot machine saves against the same type on-demand in the same place, as a fraction of that
    price (0.6: it costs 60 % less); None where it is not sold on-demand.
    """

    cloud: str
    region: str
    zone: str | None
    instance_type: str
    market: Market
    hourly_price: Decimal
    spot_saving: float | None = None
    gpu: str | None
    gpu_count: int
    gpu_memory_gb: float
    vcpus: int
    memory_gb: float
    sandbox: bool
    fits: bool | None = None
    why_not: str | None = None


class OfferList(BaseModel):
    """`GET /admin/offers`, cheapest first; pass `next` as `cursor` for the page that follows. `total`: of all pages."""

    offers: list[OfferView]
    total: int
    next: str | None = None


class ProviderRegion(BaseModel):
    """A region of a provider: how many offers it has, and the cheapest machine's price an hour."""

    region: str
    offers: int
    cheapest_price: Decimal


class ProviderView(BaseModel):
    """A cloud. `reason` says, in the backend's words, why it is not enabled and what to do.

    `checked_at` is None while the backend has not said yet whether it may buy there. `gpus` and `regions` are those
    that it sells, `cheapest_price` is an hour of its cheapest machine.
    """

    cloud: str
    backend: str
    enabled: bool
    reason: str = ""
    checked_at: datetime | None = None
    sandbox: bool = False
    offers: int = 0
    cheapest_price: Decimal | None = None
    gpus: list[str] = []
    regions: list[ProviderRegion] = []


class BackendView(BaseModel):
    """A way of buying machines. `read_at` is when its catalog was last read, `error` why that failed since."""

    name: str
    engines: list[str]
    sandbox: bool
    read_at: datetime | None = None
    error: str | None = None


class ProviderList(BaseModel):
    """`GET /admin/providers`: the clouds by name, those that are enabled first; and what buys there."""

    providers: list[ProviderView]
    backends: list[BackendView]


class ProviderRefreshAccepted(BaseModel):
    """A check of the clouds was asked for: a backend's is done when its `checked_at` are not before `requested_at`."""

    status: Literal["refreshing"] = "refreshing"
    requested_at: datetime


class LaunchAccepted(BaseModel):
    """202 of a launch. `estimated_time` is what launches like it took here lately, or says that none is known."""

    status: Literal["launching"] = "launching"
    job_id: str
    estimated_time: str
    sandbox: bool = False


class AttemptView(BaseModel):
    """One try at one place. `cost` is what its machine cost so far, US dollars."""

    number: int
    state: AttemptState
    provider: str
    region: str
    zone: str | None
    instance_type: str
    market: Market
    hourly_price: Decimal
    cluster_name: str
    opened_at: datetime
    created_at: datetime | None = None
    running_at: datetime | None = None
    closed_at: datetime | None = None
    cost: Decimal = Decimal(0)
    error: ClassifiedError | None = None


class LaunchSummary(BaseModel):
    """One line of the launch history."""

    job_id: str
    status: LaunchStatus
    stage: LaunchStage
    progress: int
    model_name: str
    provider: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    market: Market | None = None
    hourly_price: Decimal | None = None
    attempt_count: int
    deployment: str | None = None
    engine: str | None = None
    tenant: str
    requested_by: str
    error_message: str | None = None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    sandbox: bool


class LaunchStatusView(LaunchSummary):
    """`GET /admin/instances/status`. `stages` are the contract's lines; `error` is the readable error, `raw_error` the
    cloud's own words."""

    stage_label: str
    stages: list[str]
    attempts: list[AttemptView]
    cancel_requested: bool
    requested: dict[str, Any]  # what was asked for, without the values of `env`
    node_id: str | None = None
    cluster_name: str | None = None
    endpoint_url: str | None = None
    cost: Decimal = Decimal(0)  # of all attempts so far, US dollars
    error: ClassifiedError | None = None
    raw_error: str | None = None
    workflow_id: str
    workflow_url: str  # in the Temporal Web UI
    live: dict[str, Any] | None = None  # the workflow's own answer (Temporal query), when asked for


class LaunchList(BaseModel):
    """`GET /admin/instances/launches`; pass `next` as `cursor` for the page that follows."""

    launches: list[LaunchSummary]
    next: str | None = None


class LaunchEvent(BaseModel):
    """One server-sent event, and one WebSocket message, of a launch."""

    seq: int
    at: datetime
    kind: str
    stage: LaunchStage
    attempt: int | None = None
    message: str
    data: dict[str, Any] = {}


class NodeInfo(BaseModel):
    """One node, as `GET /admin/nodes` lists it.

    `health`, its detail, its score (0 to 1) and the signals are the fleet watch's, None until its first look;
    `routable`: whether requests may be sent there.
    """

    node_id: str
    cluster_name: str
    launch_id: str
    status: NodeStatus
    status_message: str
    health: Condition | None = None
    health_detail: str = ""
    health_score: float | None
    signals: dict[str, Signal] | None = None
    routable: bool = True
    last_heartbeat_at: datetime | None
    endpoint_url: str
    model_name: str
    deployment: str | None = None
    engine: str | None = None
    provider: str
    region: str
    zone: str | None
    instance_type: str
    gpu_type: str | None
    market: Market
    cost_per_hour: Decimal
    cost: Decimal  # since the cloud created it, US dollars
    registered_at: datetime
    terminated_at: datetime | None = None
    max_life_seconds: int | None = None
    idle_shutdown_seconds: int | None = None
    idle_since: datetime | None = None
    replaced_by: str | None = None  # the launch of the node that takes its place
    tenant: str
    sandbox: bool


class NodeEvent(BaseModel):
    """One line of a node's history; `id` grows with time."""

    id: int
    at: datetime
    kind: str
    message: str
    data: dict[str, Any] = {}


class NodeEventList(BaseModel):
    """`GET /admin/nodes/{name}/events`, oldest first."""

    events: list[NodeEvent]


class NodeList(BaseModel):
    """`GET /admin/nodes`; pass `next` as `cursor` for the page that follows."""

    nodes: list[NodeInfo]
    next: str | None = None


class Registered(BaseModel):
    """Answer to a registration. The heartbeat key is shown here and nowhere else."""

    status: Literal["registered"] = "registered"
    node_id: str
    heartbeat_key: str
    heartbeat_interval_seconds: float


class HeartbeatAnswer(BaseModel):
    """What the control plane wants of the node."""

    directive: NodeDirective


class Recorded(BaseModel):
    """A report of the agent was written down."""

    status: Literal["recorded"] = "recorded"


class CommandAccepted(BaseModel):
    """A command was accepted; its effect follows, and shows in the status of its subject."""

    status: str
    subject: str


class CostSummary(BaseModel):
    """`GET /admin/costs`: this UTC calendar month up to `as_of`, in US dollars.

    `forecast` is what the month comes to if all that runs now runs to its end: `month_to_date` plus `hourly_rate` times
    the hours left. `spot_saving` is what spot machines would have cost more on demand, `spot_saving_fraction` the same
    as a part of that price (0.6: 60 % less; None: nothing to compare). `failed_cost` is what went to machines that
    never were a node.
    """

    as_of: datetime
    month_start: datetime
    month_end: datetime
    month_to_date: Decimal
    forecast: Decimal
    hourly_rate: Decimal
    spot_saving: Decimal
    spot_saving_fraction: float | None = None
    failed_cost: Decimal
    sandbox: bool


class CostPart(BaseModel):
    """What the machines of one key cost in a period, US dollars. `key` None: those that have none.

    `machines` is how many cost something, `hours` for how long together; the others are as in `CostSummary`.
    """

    key: str | None = None
    cost: Decimal
    spot_saving: Decimal
    failed_cost: Decimal
    machines: int
    hours: float


class CostBreakdown(BaseModel):
    """`GET /admin/costs/breakdown`: the dearest key first, days in order. `truncated`: there are more than are shown.

    From `start` to before `end`; machines that run are billed up to `as_of`.
    """

    by: CostKey
    start: datetime
    end: datetime
    as_of: datetime
    total: CostPart
    parts: list[CostPart]
    truncated: bool = False
    sandbox: bool


class CostInterval(BaseModel):
    """One billed machine: from the cloud's creation to its confirmed end (None: it is billed still).

    Prices are US dollars an hour when it was created, `on_demand_price` that of the same type and place on demand
    (None: not known). `hours` and `total` are up to its end, or now.
    """

    machine: str  # the name that the cloud knows it by
    instance_id: str
    start: datetime
    end: datetime | None = None
    hours: float
    price_per_hour: Decimal
    on_demand_price: Decimal | None = None
    total: Decimal
    outcome: CostOutcome
    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    spot: bool
    tenant: str | None = None
    user: str | None = None
    model_name: str | None = None
    deployment: str | None = None
    experiment: str | None = None
    launch_id: str | None = None
    attempt: int | None = None
    node_id: str | None = None
    sandbox: bool


class CostIntervalList(BaseModel):
    """`GET /admin/costs/intervals`, newest first; pass `next` as `cursor` for the page that follows."""

    intervals: list[CostInterval]
    next: str | None = None


class BudgetAlertView(BaseModel):
    """A fraction of a budget that was found spent; `spent` and `amount` as they were then, US dollars."""

    fraction: Decimal
    spent: Decimal
    amount: Decimal
    at: datetime


class BudgetView(BaseModel):
    """A budget, and this UTC calendar month of it, in US dollars. `forecast` is as in `CostSummary`.

    `alerts` are those given this month. `exhausted`: all is spent, and `hard_stop` is in force.
    """

    id: str
    name: str
    scope: BudgetScope
    value: str | None = None
    period: Literal["monthly"] = "monthly"
    amount: Decimal
    alert_fractions: list[Decimal]
    hard_stop: HardStop
    spent: Decimal
    forecast: Decimal
    hourly_rate: Decimal
    exhausted: bool
    alerts: list[BudgetAlertView] = []
    created_by: str
    created_at: datetime
    updated_at: datetime


class BudgetList(BaseModel):
    """`GET /admin/budgets`, by name."""

    budgets: list[BudgetView]


class ApiKeyView(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    role: Role
    tenant: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class ApiKeyCreated(ApiKeyView):
    """A new key; `key` is shown once."""

    key: str


class ApiKeyList(BaseModel):
    """`GET /admin/api-keys`."""

    api_keys: list[ApiKeyView]


class AuditEntry(BaseModel):
    """One line of the audit log."""

    id: int
    at: datetime
    principal: str
    action: str
    subject: str
    outcome: str
    detail: dict[str, Any]
    remote: str | None = None


class AuditList(BaseModel):
    """`GET /admin/audit`, newest first; pass `next` as `cursor` for the page that follows."""

    entries: list[AuditEntry]
    next: str | None = None


class ChannelView(BaseModel):
    """A notification channel. Its address is never shown, only `masked_url`.

    No `kinds`, no `tenants`: all. At most `throttle_count` messages of one kind in `throttle_seconds`; what is over
    comes as one summary.
    """

    id: str
    name: str
    masked_url: str
    service: str
    kinds: list[NotificationKind]
    tenants: list[str]
    min_severity: Severity
    throttle_count: int
    throttle_seconds: int
    enabled: bool
    created_by: str
    created_at: datetime
    updated_at: datetime


class ChannelList(BaseModel):
    """`GET /admin/notification-channels`, by name."""

    channels: list[ChannelView]


class ChannelTested(BaseModel):
    """How a test message to a channel went: whether its receiver took it, what it said if not, in how long."""

    channel: str
    ok: bool
    detail: str = ""
    seconds: float


class DeliveryView(BaseModel):
    """One notification on its way to one channel.

    `held`: the channel's throttle keeps it back. `error` is that of the last attempt, or why it is not sent by itself;
    `summary_id` is the notification that tells it then.
    """

    channel_id: str | None
    channel: str
    state: DeliveryState
    held: bool = False
    attempts: int
    error: str | None = None
    summary_id: int | None = None
    created_at: datetime
    next_attempt_at: datetime | None = None
    ended_at: datetime | None = None


class NotificationView(BaseModel):
    """Something that people are told. `tenant` is None for what concerns the whole fleet."""

    id: int
    at: datetime
    kind: NotificationKind
    severity: Severity
    subject: str
    title: str
    body: str
    tenant: str | None = None
    data: dict[str, Any]
    deliveries: list[DeliveryView]


class NotificationList(BaseModel):
    """`GET /admin/notifications`, newest first; pass `next` as `cursor` for the page that follows."""

    notifications: list[NotificationView]
    next: str | None = None


class Identity(BaseModel):
    """`GET /admin/whoami`: who the credentials stand for."""

    principal: str
    role: Role
    tenant: str


class ComponentHealth(BaseModel):
    """One thing that the API needs."""

    ok: bool
    detail: str = ""


class Health(BaseModel):
    """`GET /health`: `ok` when launches are accepted and carried out."""

    ok: bool
    version: str
    sandbox: bool
    components: dict[str, ComponentHealth]


class FieldProblem(BaseModel):
    """One field that was refused, and what it accepts."""

    field: str
    message: str
    accepted: list[str] | None = None


class Problem(BaseModel):
    """RFC 9457 problem details, as every error answers (`application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
