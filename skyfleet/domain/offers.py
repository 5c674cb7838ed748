"""Offers (what a cloud sells), and the instances that are bought."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from skyfleet.domain.states import Market

#: Clouds that are clusters of one's own. A region is one cluster (a Kubernetes context), a zone a partition of Slurm,
#: an instance type a part of a node; so nothing but the name is common to two regions.
OWN_CLUSTERS = frozenset({"kubernetes", "slurm", "ssh"})


class Offer(BaseModel):
    """One instance type in one place and one market, as a catalog lists it.

    `cloud` is the provider a person names (`aws`, `azure`, …); `backend` the `Cloud` implementation that buys
    there (`local`, `skypilot`). Prices are US dollars an hour for the whole machine; memory is GiB.
    """

    model_config = ConfigDict(frozen=True)

    backend: str
    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    market: Market
    hourly_price: Decimal
    gpu: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float = 0.0  # of one GPU
    vcpus: int = 0
    memory_gb: float = 0.0
    sandbox: bool = False

    @property
    def key(self) -> str:
        """Identifies the offer: `aws/us-east-1/us-east-1a/g5.xlarge/spot`."""
        return "/".join((self.cloud, self.region, self.zone or "*", self.instance_type, self.market.value))

    @property
    def total_gpu_memory_gb(self) -> float:
        """GPU memory of the whole machine, GiB."""
        return self.gpu_memory_gb * self.gpu_count


class InstanceState(StrEnum):
    """A machine as its cloud reports it."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    TERMINATED = "terminated"


class CloudInstance(BaseModel):
    """A machine as its cloud reports it. `name` is ours and never used twice; `id` is the cloud's."""

    name: str
    id: str
    backend: str
    cloud: str
    region: str
    zone: str | None = None
    instance_type: str
    market: Market
    state: InstanceState
    hourly_price: Decimal
    owner: str
    created_at: datetime
    running_at: datetime | None = None
    terminated_at: datetime | None = None
    termination_reason: str | None = None  # "requested", "preempted", "shutdown", "boot_failed"
    address: str | None = None
    sandbox: bool = False
    tags: dict[str, str] = {}


class EngineSpec(BaseModel):
    """Which inference server a node runs, and how. `command` only for the `command` engine."""

    name: str
    args: list[str] = []
    command: list[str] = []


class NodeBoot(BaseModel):
    """What a machine is told at creation (its user data), and all that the node agent needs to start.

    Carries secrets (`registration_token`, values of `env`): it is built inside an activity, handed to the cloud,
    and never stored in a workflow history or a log.
    """

    control_plane_url: str
    node_id: str
    launch_id: str
    cluster_name: str
    registration_token: str
    agent_version: str
    agent_sha256: str
    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu_type: str | None = None
    spot_instance: bool = False
    model_name: str
    model_source: str | None = None  # where the weights are: a path, a hub id or a bucket URL
    engine: EngineSpec
    env: dict[str, str] = {}
    heartbeat_interval_s: float = 10.0
    engine_hang_after_s: float = 60.0
    sandbox: bool = False
    traceparent: str | None = None  # W3C trace context of the launch, where it is traced


class CreateRequest(BaseModel):
    """Ask a cloud for one machine. The same `name` always means the same machine."""

    name: str
    owner: str  # the control plane that pays for it
    offer: Offer
    boot: NodeBoot
    tags: dict[str, str] = {}


class InstanceProgress(BaseModel):
    """Something the cloud observed while a machine comes up."""

    at: datetime
    state: InstanceState
    message: str
    milestone: str | None = None  # a point that the launch's history should show, by a stable name


class CloudAccess(BaseModel):
    """Whether a backend may buy at a cloud; `reason` says, in the backend's words, why not and what to do."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    enabled: bool
    reason: str = ""
