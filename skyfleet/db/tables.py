"""The tables. Migrations make them (`skyfleet/db/migrations`); nothing calls `create_all`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Index, Numeric, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from skyfleet.domain.messages import DrainNode, NodeInput, PreemptionWarned, ReplaceNode, TerminateNode


def utcnow() -> datetime:
    """Now, timezone-aware."""
    return datetime.now(UTC)


def _time(*, nullable: bool = True, index: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable, index=index)


def _json(*, nullable: bool = False, default: str = "'{}'::jsonb") -> Any:
    return Column(JSONB, nullable=nullable, server_default=None if nullable else text(default))


def _price(*, nullable: bool = False) -> Any:
    return Column(Numeric(14, 6), nullable=nullable)


class ModelRow(SQLModel, table=True):
    """A model that can be served."""

    __tablename__ = "models"

    id: str = Field(primary_key=True)  # the name that a launch gives, as on its hub
    name: str
    family: str
    size: str  # parameter count as people write it: "8B"
    parameters: int | None = Field(default=None, sa_type=BigInteger)
    context_length: int | None = None
    vram_required_gb: float
    dtype: str | None = None  # of most of the weights: "bfloat16", "fp8", …
    weights_gb: float | None = None  # GiB, all files together
    # How `vram_required_gb` came about (skyfleet.domain.sizing), None where a person gave the figure.
    vram_estimate: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))
    source: str | None = None  # where the weights are: a hub id, a bucket URL or a path
    origin: str = "manual"  # "builtin", "manual" or "bucket"
    fingerprint: str | None = None  # of the files that a bucket's model was derived from
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    updated_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class LaunchRow(SQLModel, table=True):
    """A launch: the intent row, written before the workflow starts, and what became of it."""

    __tablename__ = "launches"
    __table_args__ = (
        UniqueConstraint("principal", "idempotency_key", name="uq_launches_idempotency"),
        Index("ix_launches_created_at_id", "created_at", "id"),
        # The sweep looks only at launches that have not ended.
        Index("ix_launches_open", "created_at", postgresql_where=text("ended_at IS NULL")),
    )

    id: str = Field(primary_key=True)
    tenant: str = Field(index=True)
    principal: str  # who asked: the API key's name, or "admin-token"
    idempotency_key: str | None = None
    request_hash: str  # SHA-256 of the canonical request body
    spec: dict[str, Any] = Field(sa_column=_json())  # skyfleet.domain.launches.LaunchSpec
    model_name: str = Field(index=True)
    deployment: str | None = Field(default=None, index=True)
    engine: str | None = None  # as settled by validation
    stage: str = Field(index=True)  # skyfleet.domain.states.LaunchStage
    reached: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))  # by the current attempt
    status: str = Field(index=True)
    attempt_count: int = 0
    last_event_seq: int = 0
    sandbox: bool = False
    # the current (at the end: the successful) attempt's choice
    provider: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    market: str | None = None
    hourly_price: Decimal | None = Field(default=None, sa_column=_price(nullable=True))
    node_id: str | None = None
    cluster_name: str | None = None
    replaces_node_id: str | None = None  # the lost node that this launch was asked for by itself
    error: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))  # ClassifiedError
    workflow_started_at: datetime | None = Field(default=None, sa_column=_time())
    cancel_requested_at: datetime | None = Field(default=None, sa_column=_time())
    cancel_requested_by: str | None = None
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    updated_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=_time())


class AttemptRow(SQLModel, table=True):
    """One try to get one machine: written before the create, so that every machine has an owner before it is."""

    __tablename__ = "launch_attempts"

    launch_id: str = Field(primary_key=True, foreign_key="launches.id")
    number: int = Field(primary_key=True)
    cluster_name: str = Field(unique=True)
    node_id: str = Field(unique=True)
    backend: str
    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    market: str
    hourly_price: Decimal = Field(sa_column=_price())
    gpu: str | None = None
    gpu_count: int = 0
    state: str = Field(index=True)  # AttemptState
    # SHA-256 of the one-time registration tokens. Each call of the cloud's create carries a token of its own, since
    # none is kept in the clear; whichever call made the machine, its token is valid. One use voids them all.
    token_hashes: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))
    token_used_at: datetime | None = Field(default=None, sa_column=_time())
    # SHA-256 of the Idempotency-Key that the agent registered with: a lost reply may be asked for again with it.
    registration_key_hash: str | None = None
    instance_id: str | None = None
    address: str | None = None
    last_agent_stage: str | None = None
    error: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))  # ClassifiedError
    opened_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    provision_started_at: datetime | None = Field(default=None, sa_column=_time())
    created_at: datetime | None = Field(default=None, sa_column=_time())  # the cloud's: billing starts here
    running_at: datetime | None = Field(default=None, sa_column=_time())
    closing_at: datetime | None = Field(default=None, sa_column=_time())
    closed_at: datetime | None = Field(default=None, sa_column=_time())  # confirmed gone: billing ends here
    teardown_alerted_at: datetime | None = Field(default=None, sa_column=_time())


class LaunchEventRow(SQLModel, table=True):
    """One line of a launch's history, in the order of `seq`. A trigger notifies listeners on insert."""

    __tablename__ = "launch_events"
    __table_args__ = (UniqueConstraint("launch_id", "dedupe", name="uq_launch_events_dedupe"),)

    launch_id: str = Field(primary_key=True, foreign_key="launches.id")
    seq: int = Field(primary_key=True)
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    kind: str  # "stage", "attempt", "progress", "plan", "alert", "end"
    stage: str  # the launch's stage after this event
    attempt: int | None = None
    message: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    dedupe: str | None = None  # an activity that runs twice writes the same event once


class NodeRow(SQLModel, table=True):
    """A machine whose agent registered, until the cloud confirms that it is gone."""

    __tablename__ = "nodes"

    id: str = Field(primary_key=True)
    launch_id: str = Field(foreign_key="launches.id", index=True)
    attempt: int
    cluster_name: str = Field(unique=True)
    tenant: str = Field(index=True)
    backend: str
    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu_type: str | None = None
    market: str
    hourly_price: Decimal = Field(sa_column=_price())
    model_name: str = Field(index=True)
    deployment: str | None = Field(default=None, index=True)
    engine: str | None = None
    endpoint_url: str
    agent_version: str | None = None
    sandbox: bool = False
    status: str = Field(index=True)  # NodeStatus
    status_message: str = ""
    # What the fleet watch found (skyfleet.domain.health); None until its first look.
    health: str | None = None  # Health
    health_detail: str = Field(default="", sa_column_kwargs={"server_default": ""})
    health_score: float | None = None
    health_state: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))  # NodeHealth
    signals: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))  # as of `health_state`
    routable: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    reached_at: datetime | None = Field(default=None, sa_column=_time())  # its engine first answered a poll of ours
    heartbeat_key_hash: str
    first_heartbeat_at: datetime | None = Field(default=None, sa_column=_time())
    last_heartbeat_at: datetime | None = Field(default=None, sa_column=_time())
    heartbeat_sequence: int = 0
    last_heartbeat: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))
    termination_warning: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))
    terminate_requested_at: datetime | None = Field(default=None, sa_column=_time())
    terminate_requested_by: str | None = None
    terminate_reason: str | None = None
    drain_requested_at: datetime | None = Field(default=None, sa_column=_time())
    drain_requested_by: str | None = None
    drain_reason: str | None = None
    drain_seconds: float | None = None  # how long its requests may still run
    replace_requested_at: datetime | None = Field(default=None, sa_column=_time())
    replace_requested_by: str | None = None
    replace_reason: str | None = None
    replaced_by: str | None = None  # the launch that was asked for in its place
    workflow_heard_at: datetime | None = Field(default=None, sa_column=_time())  # its workflow last took a step
    max_life_seconds: int | None = None
    idle_shutdown_seconds: int | None = None
    idle_since: datetime | None = Field(default=None, sa_column=_time())
    billed_from: datetime = Field(sa_column=_time(nullable=False))
    registered_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False, index=True))
    terminated_at: datetime | None = Field(default=None, sa_column=_time())

    def workflow_input(self) -> NodeInput:
        """What starts the workflow that ends this node."""
        return NodeInput(
            node_id=self.id,
            launch_id=self.launch_id,
            attempt=self.attempt,
            cluster_name=self.cluster_name,
            backend=self.backend,
            cloud=self.provider,
            region=self.region,
            market=self.market,
            tenant=self.tenant,
            hourly_price=self.hourly_price,
            deployment=self.deployment,
        )

    def terminate_command(self) -> TerminateNode:
        """The end that was asked for."""
        return TerminateNode(requested_by=self.terminate_requested_by or "unknown", reason=self.terminate_reason or "")

    def preemption_warned(self) -> PreemptionWarned | None:
        """The cloud's notice that it takes the machine, if there was one."""
        if self.termination_warning is None or self.termination_warning.get("kind", "preemption") != "preemption":
            return None
        return PreemptionWarned.model_validate(self.termination_warning)

    def drain_command(self) -> DrainNode:
        """The drain that was asked for."""
        return DrainNode(
            requested_by=self.drain_requested_by or "unknown",
            reason=self.drain_reason or "",
            seconds=self.drain_seconds if self.drain_seconds is not None else DrainNode(requested_by="").seconds,
        )

    def replace_command(self) -> ReplaceNode:
        """The replacement that was asked for. A node out of rotation serves nobody: its end waits for nothing."""
        return ReplaceNode(
            requested_by=self.replace_requested_by or "unknown",
            reason=self.replace_reason or "",
            at_once=not self.routable,
        )


class NodeEventRow(SQLModel, table=True):
    """One line of a node's history, in the order of `id`."""

    __tablename__ = "node_events"
    __table_args__ = (
        UniqueConstraint("node_id", "dedupe", name="uq_node_events_dedupe"),
        Index("ix_node_events_node_id_id", "node_id", "id"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    node_id: str = Field(foreign_key="nodes.id")
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    kind: str  # "health", "alert", "command", "status", "preemption", "replacement"
    message: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    dedupe: str | None = None  # an activity that runs twice writes the same event once


class FleetWatchRow(SQLModel, table=True):
    """What the fleet watch last saw of the whole: one row."""

    __tablename__ = "fleet_watch"

    id: int = Field(default=1, primary_key=True)
    looked_at: datetime = Field(sa_column=_time(nullable=False))
    serving: int = 0
    sick: int = 0
    breaker_open_since: datetime | None = Field(default=None, sa_column=_time())
    # a backend's name: when its machines were last listed, and what went wrong since
    clouds: dict[str, Any] = Field(default_factory=dict, sa_column=_json())


class AuditRow(SQLModel, table=True):
    """Who changed (or was refused to change) what, when, from where."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False, index=True))
    principal: str
    action: str = Field(index=True)  # "launch.create", "node.register", …
    subject: str = Field(index=True)
    outcome: str  # "accepted", "refused", "done"
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    remote: str | None = None


class ApiKeyRow(SQLModel, table=True):
    """An API key. Only the SHA-256 of its secret is kept: 256 random bits need no slow hash."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    role: str
    tenant: str
    secret_hash: str
    created_by: str
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=_time())
    revoked_at: datetime | None = Field(default=None, sa_column=_time())
    last_used_at: datetime | None = Field(default=None, sa_column=_time())


class RefusalRow(SQLModel, table=True):
    """The capacity memory: places that refused a moment ago, for all launches and all workers."""

    __tablename__ = "capacity_refusals"

    place: str = Field(primary_key=True)  # what was asked for and refused: one row a place and kind
    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu: str | None = None
    gpu_count: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    market: str
    kind: str
    scope: str
    message: str
    at: datetime = Field(sa_column=_time(nullable=False))
    until: datetime = Field(sa_column=_time(nullable=False, index=True))
    launch_id: str | None = None


class OfferRow(SQLModel, table=True):
    """The catalog: what the configured clouds sell, as the worker read it from them."""

    __tablename__ = "offers"

    key: str = Field(primary_key=True)  # Offer.key
    backend: str = Field(index=True)
    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    market: str
    hourly_price: Decimal = Field(sa_column=_price())
    gpu: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float = 0.0
    vcpus: int = 0
    memory_gb: float = 0.0
    sandbox: bool = False


class BackendRow(SQLModel, table=True):
    """A configured way of buying machines, and when its catalog was last read."""

    __tablename__ = "backends"

    name: str = Field(primary_key=True)
    engines: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))  # default first
    sandbox: bool = False
    synced_at: datetime | None = Field(default=None, sa_column=_time())
    offers_digest: str | None = None  # of its offers as written: tells whether there is anything to write or to read
    error: str | None = None


class CloudAccessRow(SQLModel, table=True):
    """Whether a backend may buy at a cloud, as it last checked, and why not."""

    __tablename__ = "cloud_access"

    backend: str = Field(primary_key=True)
    cloud: str = Field(primary_key=True)
    enabled: bool
    reason: str = ""  # in the backend's words
    checked_at: datetime = Field(sa_column=_time(nullable=False))


class GivenUpNameRow(SQLModel, table=True):
    """The name of a machine that was given up: no create of it may yield one, whoever still has it under way."""

    __tablename__ = "given_up_names"

    name: str = Field(primary_key=True)
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False, index=True))


class ModelBucketRow(SQLModel, table=True):
    """The model bucket, and how its last reading went."""

    __tablename__ = "model_buckets"

    url: str = Field(primary_key=True)
    attempted_at: datetime | None = Field(default=None, sa_column=_time())
    synced_at: datetime | None = Field(default=None, sa_column=_time())
    error: str | None = None
    models: int = 0
    # what looks like a model and could not be read: {"path", "reason"}
    skipped: list[dict[str, str]] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))


class AgentBundleRow(SQLModel, table=True):
    """A version of the node agent that some launch may name.

    Workers publish theirs, so that a machine finds the version it was told also while a release is rolled out.
    """

    __tablename__ = "agent_bundles"

    version: str = Field(primary_key=True)
    sha256: str
    content: bytes
    published_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class NotificationRow(SQLModel, table=True):
    """The outbox: an event that people are to be told, written in the transaction of the fact."""

    __tablename__ = "notifications"
    __table_args__ = (Index("ix_notifications_unrouted", "id", postgresql_where=text("routed_at IS NULL")),)

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    kind: str = Field(index=True)  # skyfleet.domain.notifications.NotificationKind
    severity: str
    subject: str = Field(index=True)
    title: str
    body: str
    tenant: str | None = Field(default=None, index=True)  # None: of the whole fleet
    data: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    dedupe: str = Field(unique=True)
    routed_at: datetime | None = Field(default=None, sa_column=_time())  # which channels want it is settled


class NotificationChannelRow(SQLModel, table=True):
    """A place where people are told. `url` is a secret: nothing but the sending of messages reads it."""

    __tablename__ = "notification_channels"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    url: str
    masked_url: str  # what may be shown of it
    service: str  # in apprise's words: "Slack", "JSON"
    kinds: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))  # none: all
    tenants: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))  # none: all
    min_severity: str
    throttle_count: int  # messages of one kind in `throttle_seconds`
    throttle_seconds: int
    enabled: bool = True
    created_by: str
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    updated_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class NotificationDeliveryRow(SQLModel, table=True):
    """One notification on its way to one channel. It outlives the channel, by its name."""

    __tablename__ = "notification_deliveries"
    __table_args__ = (
        UniqueConstraint("notification_id", "channel_id", name="uq_notification_deliveries_once"),
        Index("ix_notification_deliveries_pending", "channel_id", "kind", postgresql_where=text("state = 'pending'")),
        Index("ix_notification_deliveries_sent", "channel_id", "kind", "ended_at"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    notification_id: int = Field(foreign_key="notifications.id", sa_type=BigInteger)
    channel_id: str | None = Field(default=None, foreign_key="notification_channels.id", ondelete="SET NULL")
    channel_name: str
    kind: str  # the notification's, for the throttle
    state: str  # skyfleet.domain.notifications.DeliveryState
    held_at: datetime | None = Field(default=None, sa_column=_time())  # the throttle held it back
    released_at: datetime | None = Field(default=None, sa_column=_time())  # the throttle let it through
    attempts: int = 0
    next_attempt_at: datetime | None = Field(default=None, sa_column=_time())  # while being sent: when that is lost
    error: str | None = None  # of the last attempt, or why it is not sent
    summary_id: int | None = Field(default=None, foreign_key="notifications.id", sa_type=BigInteger)
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=_time())  # sent, given up or suppressed


class CostIntervalRow(SQLModel, table=True):
    """What one machine costs: from the cloud's creation to its confirmed end, at the price of its creation.

    Written from what the cloud says, not from what was planned. A machine that no launch claimed (a stray) has no
    tenant, user, model, launch, attempt and node.
    """

    __tablename__ = "cost_intervals"
    __table_args__ = (
        Index("ix_cost_intervals_started", "started_at", "cluster_name"),
        Index("ix_cost_intervals_ended", "ended_at"),
    )

    cluster_name: str = Field(primary_key=True)  # used once, so that it is the machine's
    instance_id: str  # the cloud's
    backend: str
    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    market: str
    hourly_price: Decimal = Field(sa_column=_price())
    on_demand_price: Decimal | None = Field(default=None, sa_column=_price(nullable=True))  # there and then, an hour
    tenant: str | None = None
    principal: str | None = None  # who asked for the launch
    model_name: str | None = None
    deployment: str | None = None
    experiment: str | None = None
    launch_id: str | None = None
    attempt: int | None = None
    node_id: str | None = None  # that it would become, or became
    sandbox: bool = False
    started_at: datetime = Field(sa_column=_time(nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=_time())  # None: it is billed still


class BudgetRow(SQLModel, table=True):
    """A limit on what a part of the fleet may cost in a UTC calendar month."""

    __tablename__ = "budgets"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    scope: str  # skyfleet.domain.budgets.BudgetScope
    value: str | None = None  # of the scope: the tenant's name, …; None for all
    period: str = "monthly"
    amount: Decimal = Field(sa_column=_price())
    alert_fractions: list[str] = Field(default_factory=list, sa_column=_json(default="'[]'::jsonb"))  # ascending
    hard_stop: str  # skyfleet.domain.budgets.HardStop
    created_by: str
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    updated_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class BudgetAlertRow(SQLModel, table=True):
    """A fraction of a budget was spent: told once a month."""

    __tablename__ = "budget_alerts"

    budget_id: str = Field(sa_column=Column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True))
    period_start: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    fraction: Decimal = Field(sa_column=Column(Numeric(6, 4), primary_key=True))
    spent: Decimal = Field(sa_column=_price())
    amount: Decimal = Field(sa_column=_price())  # the budget's then
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
