"""States and stages of everything that has a life, and what a person is shown for each."""

from __future__ import annotations

from enum import StrEnum


class Market(StrEnum):
    """How a machine is bought."""

    SPOT = "spot"
    ON_DEMAND = "on_demand"


class MarketPolicy(StrEnum):
    """Which markets a launch may buy from, and in which order."""

    SPOT = "spot"
    SPOT_THEN_ON_DEMAND = "spot_then_on_demand"
    ON_DEMAND = "on_demand"


class LaunchStage(StrEnum):
    """Where a launch stands. The last three are terminal, and reached once the cloud confirmed what they say."""

    QUEUED = "QUEUED"
    VALIDATING = "VALIDATING"
    PLANNING = "PLANNING"
    REQUESTING = "REQUESTING"
    PROVISIONING = "PROVISIONING"
    INSTALLING = "INSTALLING"
    LOADING_MODEL = "LOADING_MODEL"
    STARTING_ENGINE = "STARTING_ENGINE"
    REGISTERING = "REGISTERING"
    TEARING_DOWN = "TEARING_DOWN"
    READY = "READY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """True when nothing follows."""
        return self in TERMINAL_STAGES


TERMINAL_STAGES = frozenset({LaunchStage.READY, LaunchStage.FAILED, LaunchStage.CANCELLED})

#: The stages that a person is shown, in order, with the progress figure (percent) of each once it is
#: reached. Source: design/contracts.md, "Stages and their progress figure".
SHOWN_STAGES: tuple[tuple[LaunchStage, str, int], ...] = (
    (LaunchStage.VALIDATING, "validating configuration", 10),
    (LaunchStage.REQUESTING, "requesting instance", 25),
    (LaunchStage.PROVISIONING, "provisioning instance", 45),
    (LaunchStage.INSTALLING, "installing dependencies", 65),
    (LaunchStage.LOADING_MODEL, "loading model", 80),
    (LaunchStage.STARTING_ENGINE, "starting the engine", 90),
    (LaunchStage.REGISTERING, "registering node", 100),
)

STAGE_LABEL: dict[LaunchStage, str] = {
    LaunchStage.QUEUED: "queued",
    LaunchStage.PLANNING: "choosing where to launch",
    LaunchStage.TEARING_DOWN: "tearing down",
    LaunchStage.READY: "ready",
    LaunchStage.FAILED: "failed",
    LaunchStage.CANCELLED: "cancelled",
    **{stage: label for stage, label, _ in SHOWN_STAGES},
}

#: Stages that only the node agent can observe, in order.
AGENT_STAGES = (LaunchStage.INSTALLING, LaunchStage.LOADING_MODEL, LaunchStage.STARTING_ENGINE)


class LaunchStatus(StrEnum):
    """The contract's coarse status of a launch (`GET /admin/instances/status`)."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


class AttemptState(StrEnum):
    """One try to get one machine at one place."""

    OPEN = "open"  # row written, create may or may not have reached the cloud
    CREATED = "created"  # the cloud said that the machine exists
    SUCCEEDED = "succeeded"  # its node registered
    CLOSING = "closing"  # given up; teardown under way
    CLOSED = "closed"  # given up; the cloud confirmed that nothing is left


class NodeStatus(StrEnum):
    """The life of a node after it registered."""

    READY = "ready"
    DRAINING = "draining"
    TERMINATING = "terminating"
    TERMINATED = "terminated"  # only when the cloud confirmed it


class NodeDirective(StrEnum):
    """What the control plane wants of a node; the answer to each heartbeat."""

    CONTINUE = "continue"
    DRAIN = "drain"
    SHUTDOWN = "shutdown"


class Role(StrEnum):
    """What an API key may do. Each role includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, needed: Role) -> bool:
        """Whether a holder of this role may do what `needed` asks for."""
        order = list(Role)
        return order.index(self) >= order.index(needed)
