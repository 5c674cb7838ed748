"""Reading SkyPilot's provision log: how far it is, and what the cloud itself said.

The lines are those of `sky/provision/provisioner.py` and `sky/provision/instance_setup.py`, SkyPilot 0.14.1, the same
for every cloud; the errors in between are the clouds'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX: Final = re.compile(r"^[DIWEC] \d\d-\d\d \d\d:\d\d:\d\d\.\d+ PID=\d+ [\w.]+:\d+\] ?")

#: What a line says, and what a person is told when it is reached. In the order of a launch.
_MILESTONES: Final = (
    ("asked", re.compile(r"^=+ Provisioning =+$"), "asking the cloud for the machine"),
    (
        "accepted",
        re.compile(r"^Waiting for instances of .* to be ready"),
        "the cloud accepted, waiting for the machine",
    ),
    ("ssh", re.compile(r"^Waiting for SSH to be available"), "the machine runs, waiting for SSH"),
    ("reached", re.compile(r"^SSH Connection ready"), "SSH answers"),
    ("runtime", re.compile(r"^-+Start: setup_runtime_on_cluster -+$"), "setting up SkyPilot's runtime"),
    ("ray", re.compile(r"^Starting Ray on the entire cluster"), "starting SkyPilot's runtime"),
)
#: A cloud's error as a program raised it: `botocore.exceptions.ClientError: …`, `GCPError: …`.
_RAISED: Final = re.compile(r"^[\w.]*(?:Error|Exception|Exceeded)\b.*")
#: AWS asks for patience, and SkyPilot has some: up to ten minutes of it, without a word to who waits.
_RETRYING: Final = re.compile(r"^create_instances: (\w+), retrying")
_AWS_CODE: Final = re.compile(r"An error occurred \(([\w.]{2,80})\) when calling")
#: Enough for the cause at both ends, small enough for a database row.
_MOST_ERRORS: Final = 20


@dataclass(frozen=True)
class Milestone:
    """A point that a launch passed. `name` is stable, `message` is for people."""

    name: str
    message: str


@dataclass(frozen=True)
class ProvisionLog:
    """What a provision log tells."""

    milestones: tuple[Milestone, ...] = ()
    errors: tuple[str, ...] = ()
    retrying: str | None = (
        None  # code of the error that the cloud last put SkyPilot off with, if that was its last word
    )

    @property
    def asked(self) -> bool:
        """The cloud was or is just being asked for a machine."""
        return any(milestone.name == "asked" for milestone in self.milestones)

    @property
    def accepted(self) -> bool:
        """The cloud has answered that it makes the machine."""
        return any(milestone.name == "accepted" for milestone in self.milestones)

    @property
    def code(self) -> str | None:
        """The cloud's own code of the first error, if it gives one: later ones may come of clearing up."""
        return next((found[1] for error in self.errors if (found := _AWS_CODE.search(error))), None)


def plain(text: str) -> str:
    """The text without a terminal's colours."""
    return _ANSI.sub("", text)


def read(text: str) -> ProvisionLog:
    """Read a log, whole or as far as it is written."""
    reached: dict[str, Milestone] = {}
    errors: dict[str, None] = {}
    retrying = None
    for raw in text.splitlines():
        line = _PREFIX.sub("", plain(raw)).strip()
        for name, pattern, message in _MILESTONES:
            if pattern.search(line):
                if name == "asked":  # the log goes on with another place or try: what was reached counts for this one
                    reached.clear()
                reached.setdefault(name, Milestone(name, message))
                retrying = None
        if put_off := _RETRYING.match(line):
            retrying = put_off[1]
        if _RAISED.match(line) and len(errors) < _MOST_ERRORS:
            errors.setdefault(line)
    return ProvisionLog(tuple(reached.values()), tuple(errors), retrying)
