"""What a person asks for when launching, and what is remembered of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from skyfleet.domain.states import SHOWN_STAGES, LaunchStage, LaunchStatus, MarketPolicy

_STRICT = ConfigDict(extra="forbid")


class Fallback(BaseModel):
    """Where a launch may go when the first choice refuses. Zones of the chosen region are always tried.

    `regions` and `clouds` are `"any"`, or the names allowed, in order of preference. `on_demand` lets a spot
    launch buy on-demand once no spot offer is left.
    """

    model_config = _STRICT

    regions: Literal["any"] | list[str] = []
    clouds: Literal["any"] | list[str] = []
    on_demand: bool = False


class Deadlines(BaseModel):
    """How long one attempt may take, in seconds, before it is torn down and the next offer is tried.

    Defaults follow Karpenter's split of launch and registration, widened to what GPU clouds need.
    """

    model_config = _STRICT

    provision_seconds: float = Field(default=900.0, gt=0, le=86_400)
    registration_seconds: float = Field(default=1_200.0, gt=0, le=86_400)


class LaunchSpec(BaseModel):
    """A validated request for one node. Stored with the launch; `env` values never leave the database.

    `provider`, `region`, `zone` and `instance_type` narrow the choice; None means any. `gpu` asks for a GPU by
    name when no instance type is given.
    """

    model_config = _STRICT

    model_name: str
    provider: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    gpu: str | None = None
    market: MarketPolicy = MarketPolicy.ON_DEMAND
    fallback: Fallback = Fallback()
    max_hourly_cost: Decimal | None = Field(default=None, gt=0)  # USD an hour for the machine
    vram_required_gb: float = 0.0  # of the model, as the catalog had it when the launch was accepted
    deployment: str | None = None
    engine: str | None = None  # None: the backend's default
    engine_args: list[str] = []
    engine_command: list[str] = []  # only for the `command` engine
    env: dict[str, str] = {}
    deadlines: Deadlines = Deadlines()
    max_attempts: int = Field(default=20, ge=1, le=200)
    tags: dict[str, str] = {}
    #: Ask for another when the node is lost (preempted, dead, out of order). None: if it belongs to a deployment.
    replace_lost: bool | None = None
    max_life_seconds: int | None = Field(default=None, ge=60)  # from registration; then it drains and ends
    idle_shutdown_seconds: int | None = Field(default=None, ge=60)  # without a request for so long, it ends

    @property
    def replaced_when_lost(self) -> bool:
        """Whether a lost node of this launch is replaced by itself."""
        return self.deployment is not None if self.replace_lost is None else self.replace_lost


class StageMark(BaseModel):
    """One line of the stage list that a person sees."""

    stage: LaunchStage
    label: str
    progress: int
    state: Literal["done", "current", "pending", "failed", "skipped"]

    @property
    def line(self) -> str:
        """The contract's one-line form: `✓ …`, `→ …`, `✗ …` or two spaces for a stage not (or never) reached."""
        sign = {"done": "✓", "current": "→", "failed": "✗", "pending": " ", "skipped": " "}[self.state]
        return f"{sign} {self.label}"


def status_of(stage: LaunchStage, *, timed_out: bool = False) -> LaunchStatus:
    """The contract's status for a stage; a failed launch whose last error was a deadline is `timeout`."""
    match stage:
        case LaunchStage.READY:
            return LaunchStatus.COMPLETED
        case LaunchStage.CANCELLED:
            return LaunchStatus.CANCELLED
        case LaunchStage.FAILED:
            return LaunchStatus.TIMEOUT if timed_out else LaunchStatus.FAILED
        case _:
            return LaunchStatus.IN_PROGRESS


def progress_of(reached: set[LaunchStage]) -> int:
    """Percent figure of the furthest shown stage among those that the current attempt reached."""
    return max((percent for stage, _, percent in SHOWN_STAGES if stage in reached), default=0)


def stage_marks(stage: LaunchStage, reached: set[LaunchStage]) -> list[StageMark]:
    """The stage list for a launch in `stage` whose current attempt has `reached` these stages, no others.

    A stage that was passed over without being observed (a virtual machine has no engine to install) is `skipped`,
    never shown as done.
    """
    order = [shown for shown, _, _ in SHOWN_STAGES]
    reached_shown = [shown for shown in order if shown in reached]
    furthest = reached_shown[-1] if reached_shown else None
    marks = []
    for shown, label, percent in SHOWN_STAGES:
        if shown not in reached:
            passed = furthest is not None and order.index(shown) < order.index(furthest)
            state: Literal["done", "current", "pending", "failed", "skipped"] = (
                "skipped" if passed or stage.terminal else "pending"
            )
        elif shown is furthest and stage is not LaunchStage.READY:
            failed = stage in (LaunchStage.FAILED, LaunchStage.CANCELLED)
            state = "failed" if failed else "current"
        else:
            state = "done"
        marks.append(StageMark(stage=shown, label=label, progress=percent, state=state))
    return marks
