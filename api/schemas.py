"""What requests carry. A person's request with an unknown field is refused; an agent of another version is heard."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from skyfleet.domain import ids
from skyfleet.domain.cost import BudgetScope, HardStop
from skyfleet.domain.launches import Deadlines, Fallback
from skyfleet.domain.model_config import Dtype
from skyfleet.domain.notifications import NotificationKind, Severity
from skyfleet.domain.states import AGENT_STAGES, MarketPolicy, Role

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
_LENIENT = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)

_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_ENV_MAX = 100
_ENV_VALUE_MAX_BYTES = 8192
_RESERVED_ENV_PREFIX = "SKYFLEET_"

#: Deployment and tag names: letters, digits, dots, dashes and underscores, as every cloud's tags allow.
Name = Annotated[str, Field(pattern=_NAME, max_length=63)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
ModelId = Annotated[str, Field(pattern=ids.MODEL_ID, max_length=ids.MODEL_ID_CHARS)]
Scalar = Annotated[str, Field(max_length=2000)] | bool | int | float


class LaunchRequest(BaseModel):
    """Ask for one node. What is left out of provider, region and instance type may be any."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "model_name": "meta-llama/Llama-3.1-8B-Instruct",
                    "provider": "azure",
                    "region": "eastus",
                    "instance_type": "Standard_NV36ads_A10_v5",
                },
                {
                    "model_name": "meta-llama/Llama-3.1-8B-Instruct",
                    "provider": "aws",
                    "region": "us-east-1",
                    "instance_type": "g5.xlarge",
                    "use_spot": True,
                    "fallback": {"regions": "any", "on_demand": True},
                    "max_hourly_cost": "1.50",
                },
            ]
        },
    )

    model_name: Word = Field(description="Id of a model of the catalog.")
    provider: Word | None = Field(default=None, description="Cloud; any if left out.")
    region: Word | None = None
    zone: Word | None = Field(default=None, description="Needs a region.")
    instance_type: Word | None = None
    gpu: Word | None = Field(default=None, description="GPU by name, when no instance type is given.")
    use_spot: bool = Field(default=False, description="Buy spot; `fallback.on_demand` allows on-demand after that.")
    fallback: Fallback = Fallback()
    max_hourly_cost: Decimal | None = Field(
        default=None, gt=0, le=100_000, decimal_places=6, description="US dollars an hour for the machine, at most."
    )
    deployment: Name | None = None
    engine: Name | None = Field(default=None, description="Inference server; the cloud's default if left out.")
    engine_args: dict[Annotated[str, Field(max_length=200)], Any] | list[Scalar] = Field(
        default=[], max_length=200, description="Arguments of the engine, as an object or as an argument vector."
    )
    engine_command: list[Annotated[str, Field(max_length=4000)]] = Field(
        default=[], max_length=200, description="The argument vector of the engine `command`."
    )
    env: dict[str, str] = Field(default={}, description="Environment of the engine; the values are never shown again.")
    deadlines: Deadlines = Deadlines()
    max_attempts: int = Field(default=20, ge=1, le=200)
    tags: dict[Name, Annotated[str, Field(max_length=255)]] = Field(default={}, max_length=50)
    replace_lost: bool | None = Field(
        default=None, description="Ask for another when the node is lost. If left out: when it has a deployment."
    )
    max_life_seconds: int | None = Field(
        default=None, ge=60, le=31_536_000, description="From registration; then the node drains and ends."
    )
    idle_shutdown_seconds: int | None = Field(
        default=None, ge=60, le=31_536_000, description="Without a request for so long, the node ends."
    )

    @field_validator("env")
    @classmethod
    def _check_env(cls, env: dict[str, str]) -> dict[str, str]:
        if len(env) > _ENV_MAX:
            raise ValueError(f"has {len(env)} variables; at most {_ENV_MAX} are allowed")
        for name, value in env.items():
            if _ENV_NAME.fullmatch(name) is None or len(name) > 255:
                raise ValueError(f"{name[:80]!r} is no variable name: capital letters, digits and _ only")
            if name.startswith(_RESERVED_ENV_PREFIX):
                raise ValueError(f"{name[:80]} is reserved: {_RESERVED_ENV_PREFIX}… belongs to the node agent")
            if len(value.encode("utf-8", "surrogatepass")) > _ENV_VALUE_MAX_BYTES:
                raise ValueError(f"the value of {name[:80]} is over {_ENV_VALUE_MAX_BYTES} bytes")
        return env

    @field_validator("fallback")
    @classmethod
    def _check_fallback(cls, fallback: Fallback) -> Fallback:
        for names in (fallback.regions, fallback.clouds):
            if isinstance(names, list) and len(names) > 100:
                raise ValueError("names more than 100 places; `any` means all of them")
        return fallback

    @model_validator(mode="after")
    def _check_zone(self) -> Self:
        if self.zone is not None and self.region is None:
            raise ValueError("zone: a zone is part of a region; name the region as well")
        return self

    @property
    def market(self) -> MarketPolicy:
        """Which markets the request may buy from."""
        if not self.use_spot:
            return MarketPolicy.ON_DEMAND
        return MarketPolicy.SPOT_THEN_ON_DEMAND if self.fallback.on_demand else MarketPolicy.SPOT


class ModelRequest(BaseModel):
    """Put a model into the catalog. One of `vram_required_gb`, `parameters` and `weights_gb` must be given."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"id": "meta-llama/Llama-3.1-8B-Instruct", "parameters": 8_030_000_000}]},
    )

    id: ModelId = Field(description="The name that launches give, as on the model's hub.")
    name: Word | None = None
    family: Word | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    parameters: int | None = Field(default=None, ge=1, le=100_000_000_000_000)
    dtype: Dtype | None = Field(default=None, description="What most weights are kept in.")
    weights_gb: float | None = Field(
        default=None, gt=0, le=100_000, description="Size of the weight files, in GB of 2^30 bytes."
    )
    config: dict[str, Any] | None = Field(
        default=None, description="The model's config.json: its family, longest context and shape are taken from it."
    )
    context_length: int | None = Field(default=None, ge=1, le=2_000_000_000)
    vram_required_gb: float | None = Field(default=None, ge=0, le=100_000, description="GPU memory that serving takes.")
    source: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="Where the weights are: a hub id, a bucket URL or a path. Default: the id."
    )

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.vram_required_gb is None and self.parameters is None and self.weights_gb is None:
            raise ValueError("vram_required_gb: give it, or `parameters` or `weights_gb` to estimate it from")
        return self


class TerminateRequest(BaseModel):
    """Why a node is ended. The body may be left out."""

    model_config = _STRICT

    reason: Annotated[str, Field(max_length=500)] = ""


class DrainRequest(BaseModel):
    """How a node is drained. The body may be left out."""

    model_config = _STRICT

    reason: Annotated[str, Field(max_length=500)] = ""
    seconds: float = Field(default=600.0, ge=0, le=86_400, description="How long its requests may still run.")


class ReplaceRequest(BaseModel):
    """Why a node is replaced. The body may be left out."""

    model_config = _STRICT

    reason: Annotated[str, Field(max_length=500)] = ""


class ApiKeyRequest(BaseModel):
    """Make an API key."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"name": "ci", "role": "operator", "tenant": "research"}]},
    )

    name: Name
    role: Role
    tenant: Name = "default"
    expires_at: AwareDatetime | None = None


class BudgetRequest(BaseModel):
    """Make a budget, or change it. A budget counts the machines in its scope in each UTC calendar month."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {"scope": "all", "amount": "5000"},
                {
                    "scope": "tenant",
                    "value": "research",
                    "amount": "800.00",
                    "alert_fractions": ["0.5", "0.9", "1"],
                    "hard_stop": "refuse",
                },
            ]
        },
    )

    scope: BudgetScope = Field(default=BudgetScope.ALL, description="Whose money it counts.")
    value: Word | None = Field(default=None, description="Name of the tenant, user, …; left out for `all`.")
    amount: Decimal = Field(gt=0, lt=100_000_000, decimal_places=6, description="US dollars a month.")
    alert_fractions: list[Annotated[Decimal, Field(gt=0, le=2, decimal_places=4)]] = Field(
        default=[Decimal("0.5"), Decimal("0.8"), Decimal(1)],
        max_length=20,
        description="Parts of the amount, above 0 and up to 2, that are told of when they are spent.",
    )
    hard_stop: HardStop = Field(
        default=HardStop.NONE,
        description="Once all is spent: nothing, refuse launches in the scope, or end its nodes as well.",
    )

    @field_validator("alert_fractions")
    @classmethod
    def _sorted(cls, fractions: list[Decimal]) -> list[Decimal]:
        return sorted({fraction.normalize() for fraction in fractions})

    @model_validator(mode="after")
    def _check_value(self) -> Self:
        if (self.scope is BudgetScope.ALL) != (self.value is None):
            needs = "takes no value" if self.scope is BudgetScope.ALL else "needs the name that it is for"
            raise ValueError(f"value: the scope `{self.scope.value}` {needs}")
        return self


#: Of services that people ask for first; any address of apprise's is taken.
CHANNEL_URLS = (
    "slack://TOKEN_A/TOKEN_B/TOKEN_C/#channel",
    "mailtos://user:password@host?from=a@example.org&to=b@example.org",
    "jsons://host/path (a webhook; json:// without TLS)",
)

ChannelUrl = Annotated[
    SecretStr,
    Field(max_length=2000, description="Where to send, as apprise writes it. A secret: never shown again."),
]
_Kinds = Annotated[list[NotificationKind], Field(max_length=20, description="None: all.")]
_Tenants = Annotated[list[Name], Field(max_length=200, description="None: all, and what concerns the whole fleet.")]
_Severity = Annotated[Severity, Field(description="The least that is told.")]
_ThrottleCount = Annotated[int, Field(ge=1, le=100, description="Messages of one kind in `throttle_seconds`.")]
_ThrottleSeconds = Annotated[int, Field(ge=1, le=86_400)]


class ChannelRequest(BaseModel):
    """Make a notification channel."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "on-call",
                    "url": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#gpu",
                    "min_severity": "warning",
                },
                {
                    "name": "launches",
                    "url": "jsons://hooks.example.org/skyfleet",
                    "kinds": ["launch_failed"],
                    "tenants": ["research"],
                    "throttle_count": 5,
                    "throttle_seconds": 600,
                },
            ]
        },
    )

    name: Name
    url: ChannelUrl
    kinds: _Kinds = []
    tenants: _Tenants = []
    min_severity: _Severity = Severity.INFO
    throttle_count: _ThrottleCount = 10
    throttle_seconds: _ThrottleSeconds = 300
    enabled: bool = True


class ChannelChange(BaseModel):
    """Change a notification channel; what is left out stays as it is."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, json_schema_extra={"examples": [{"enabled": False}]}
    )

    name: Name | None = None
    url: ChannelUrl | None = None
    kinds: _Kinds | None = None
    tenants: _Tenants | None = None
    min_severity: _Severity | None = None
    throttle_count: _ThrottleCount | None = None
    throttle_seconds: _ThrottleSeconds | None = None
    enabled: bool | None = None


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValueError("must be http:// or https:// with a host and a port")
    if parts.username is not None or parts.query or parts.fragment or any(char.isspace() for char in url):
        raise ValueError("must be an address without user, query or fragment")
    if re.fullmatch(r"[A-Za-z0-9._-]+", parts.hostname) is None:
        ipaddress.ip_address(parts.hostname.partition("%")[0])
    return url


class StageReport(BaseModel):
    """A stage that the agent reached, and when."""

    model_config = _LENIENT

    stage: Annotated[str, Field(max_length=40)]
    at: AwareDatetime


class RegisterRequest(BaseModel):
    """The agent's registration. Fields of a newer agent are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "provider": "azure",
                    "region": "eastus",
                    "model_name": "meta-llama/Llama-3.1-8B-Instruct",
                    "endpoint_url": "http://10.0.0.4:8000",
                    "gpu_type": "A10",
                    "instance_type": "Standard_NV36ads_A10_v5",
                    "spot_instance": False,
                    "registration_token": "the token that the machine was booted with",
                }
            ]
        },
    )

    provider: Word
    region: Word
    model_name: Word
    endpoint_url: Annotated[str, Field(max_length=500), AfterValidator(_endpoint)]
    gpu_type: Annotated[str, Field(max_length=200)] | None = None
    instance_type: Word
    spot_instance: bool = False
    registration_token: Annotated[str, Field(min_length=1, max_length=500)]
    engine: Annotated[str, Field(max_length=100)] | None = None
    agent_version: Annotated[str, Field(max_length=100)] | None = None
    stages: list[StageReport] = Field(default=[], max_length=20)


class NodeStageReport(BaseModel):
    """A stage that the agent reached on its way to registration, or `ENGINE_FAILED`."""

    model_config = _LENIENT

    stage: Literal["INSTALLING", "LOADING_MODEL", "STARTING_ENGINE", "ENGINE_FAILED"]
    at: AwareDatetime
    detail: Annotated[str, Field(max_length=4000)] = ""
    log_tail: list[Annotated[str, Field(max_length=4000)]] = Field(default=[], max_length=200)


assert {stage.value for stage in AGENT_STAGES} | {"ENGINE_FAILED"} == set(
    NodeStageReport.model_fields["stage"].annotation.__args__  # type: ignore[union-attr]
)

_Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
_Tally = Annotated[int, Field(ge=0, lt=2**64)]
_Figure = Annotated[float, Field(ge=0, le=1e12)]


class EngineFigures(BaseModel):
    """The engine, as the agent polls it. `kv_cache_usage` is a fraction of 1.

    `state`: `starting`, `serving`, `restarting` (none runs at the moment), `draining`, `stopped`, or `failing`, which
    means five restarts within the last half hour, whether it serves just now or not.
    """

    model_config = _LENIENT

    healthy: bool
    state: Annotated[str, Field(max_length=20)] | None = None
    running: _Count | None = None
    waiting: _Count | None = None
    kv_cache_usage: _Figure | None = None
    tokens_per_second: _Figure | None = None


class GpuFigures(BaseModel):
    """One GPU. `utilization` in percent, memory in GB, temperature in degrees Celsius.

    `ecc_uncorrected_errors` counts since the driver was loaded. `last_xid` is the last critical error that the driver
    reported by that number since the agent looks; `problem` is why figures could not be read.
    """

    model_config = _LENIENT

    index: _Count
    name: Annotated[str, Field(max_length=200)] = ""
    utilization: _Figure | None = None
    memory_used_gb: _Figure | None = None
    memory_total_gb: _Figure | None = None
    temperature_c: float | None = Field(default=None, ge=-300, le=10_000)
    ecc_uncorrected_errors: _Tally | None = None
    last_xid: _Tally | None = None
    last_xid_at: AwareDatetime | None = None
    problem: Annotated[str, Field(max_length=500)] = ""


class AgentFigures(BaseModel):
    """The agent itself, and how often it had to start its engine anew: after a crash, or because it hung."""

    model_config = _LENIENT

    version: Annotated[str, Field(max_length=100)] = ""
    uptime_s: _Figure | None = None
    engine_restarts: _Count = 0
    engine_last_restart_at: AwareDatetime | None = None
    engine_last_restart_reason: Annotated[str, Field(max_length=500)] | None = None


class HeartbeatRequest(BaseModel):
    """A heartbeat. `sequence` grows with each; one that is not above the last is not written down."""

    model_config = _LENIENT

    at: AwareDatetime
    sequence: int = Field(ge=0, le=2_147_483_647)
    engine: EngineFigures
    gpus: list[GpuFigures] = Field(default=[], max_length=64)
    agent: AgentFigures = AgentFigures()


class TerminationWarning(BaseModel):
    """The cloud's notice about the machine.

    `kind`: it will be taken away (`preemption`), it is at a raised risk of that (`rebalance`), or it will be worked on
    (`maintenance`).
    """

    model_config = _LENIENT

    kind: Literal["preemption", "rebalance", "maintenance"] = "preemption"
    deadline: AwareDatetime | None = None
    source: Annotated[str, Field(min_length=1, max_length=100)]
    detail: Annotated[str, Field(max_length=2000)] = ""


def utc_text(moment: datetime) -> str:
    """A time as people read it in messages."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
