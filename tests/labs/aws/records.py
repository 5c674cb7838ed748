"""What the lab's cloud is told and what it tells, over its control paths (`/_lab/…`, JSON)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, model_validator

Market = Literal["spot", "on_demand"]


class Fault(BaseModel):
    """A rule: the AWS calls that match all fields that are set fare as it says. The oldest rule that matches holds.

    `code` answers with that error, in AWS's own words unless `message` has others. `drop_reply` lets the call take
    effect and closes the connection without an answer. Without either, the call is only late: `delay_s` before it takes
    effect, `delay_after_s` after, and no longer than the rule is there.
    """

    code: str | None = None
    message: str | None = None
    drop_reply: bool = False
    delay_s: float = 0.0
    delay_after_s: float = 0.0
    #: How many calls it catches; None for all.
    times: int | None = None

    service: str | None = None
    action: str | None = "RunInstances"
    region: str | None = None
    zone: str | None = None
    market: Market | None = None
    instance_type: str | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Fault:
        if self.code and self.drop_reply:
            raise ValueError("a call is refused or its reply is dropped, not both")
        return self


class Rule(Fault):
    """A fault in force, and how often it struck."""

    id: int
    hits: int = 0


class Preemption(BaseModel):
    """An instance that the cloud takes away, and how long before it says so in the instance's metadata."""

    instance_id: str
    notice_s: float = 0.0


class Call(BaseModel):
    """One call of the AWS API. `at` is seconds since the epoch; the last three are for RunInstances only."""

    at: float
    service: str
    region: str
    action: str
    #: "200", the code of an injected error, "dropped", or None while the call is under way.
    result: str | None = None
    zone: str | None = None
    market: Market | None = None
    instance_type: str | None = None


class Instance(BaseModel):
    """One row of the cloud's ledger: an instance that it ever made. `state` is EC2's own name of the state."""

    id: str
    region: str
    zone: str
    state: str
    instance_type: str
    market: Market
    public_ip: str | None
    private_ip: str
    tags: dict[str, str]

    @property
    def ended(self) -> bool:
        """True when it costs nothing any more and never will."""
        return self.state == "terminated"
