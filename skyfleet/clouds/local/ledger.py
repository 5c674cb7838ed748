"""The ledger: every machine that this cloud ever rented out, and what each cost. The judge of "nothing leaks".

One SQLite file, written by the cloud alone and before each answer, so that a cloud killed at any moment knows after
its restart all that it had answered. `synchronous=NORMAL`: a commit survives the death of the process at once, and
that of the host from the next checkpoint on.

Billing rule: a machine is billed from `created_at` (the cloud accepted it) to `terminated_at` (nothing of it is
left), or to now while it lives, by the wall clock; begun seconds count whole, there is no minimum. Its price per hour
is the list price of its market at creation, and stays. Cost = price x seconds / 3600, rounded half up to a
millionth of a dollar. The bill runs while the machine is pending and stopping too, while its agent is dead, and
while the cloud's own process is down.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from skyfleet.clouds.local.world import BACKEND, Mode
from skyfleet.domain.offers import InstanceState
from skyfleet.domain.states import Market

_MICRODOLLAR = Decimal("0.000001")


def now() -> datetime:
    """The wall clock, UTC."""
    return datetime.now(UTC)


def billed_seconds(created_at: datetime, until: datetime) -> int:
    """Seconds on the bill; see the billing rule above."""
    return max(0, math.ceil((until - created_at).total_seconds()))


def cost(hourly_price: Decimal, seconds: int) -> Decimal:
    """Dollars for that many billed seconds; see the billing rule above."""
    return (hourly_price * seconds / 3600).quantize(_MICRODOLLAR, ROUND_HALF_UP)


@dataclass(slots=True)
class BootFaults:
    """What an injected fault does to a machine after it was accepted."""

    fails: str | None = None  # never comes up; the reason
    delay_s: float = 0.0  # comes up that much later
    never: bool = False  # stays pending for ever
    agent_dead: bool = False  # comes up, but its agent never starts


@dataclass(slots=True)
class Machine:
    """One machine: what the ledger stores of it, and what the cloud's process keeps in memory while it lives."""

    name: str
    id: str
    owner: str
    cloud: str
    region: str
    zone: str | None
    instance_type: str
    market: Market
    hourly_price: Decimal
    mode: Mode
    state: InstanceState
    created_at: datetime
    ready_at: datetime  # when it is due to run
    tags: dict[str, str]
    boot: str | None  # NodeBoot as JSON; forgotten when the machine ends, since it holds secrets
    faults: BootFaults = field(default_factory=BootFaults)
    port: int | None = None  # of its engine
    running_at: datetime | None = None
    terminated_at: datetime | None = None
    reason: str | None = None  # why it ends or ended
    message: str | None = None  # the same for people
    notice_at: datetime | None = None  # when its preemption was announced
    preempt_at: datetime | None = None  # when it is taken
    pid: int | None = None  # of the agent, which leads the machine's session
    pid_started: int | None = None  # that process's start, in clock ticks since the host's boot
    agent: str = "none"  # "none": not started yet, "started", "dead"
    heartbeat_key: str | None = None  # of a virtual node

    @property
    def place(self) -> tuple[str, str, str | None, str, Market]:
        """The pool of capacity that it was taken from."""
        return self.cloud, self.region, self.zone, self.instance_type, self.market

    @property
    def offer_key(self) -> str:
        """`Offer.key` of what was bought."""
        return "/".join((self.cloud, self.region, self.zone or "*", self.instance_type, self.market.value))

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self.state is InstanceState.RUNNING

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self.state is InstanceState.TERMINATED

    def view(self, address: str | None) -> dict[str, Any]:
        """`CloudInstance` as JSON, with `mode` and `message` besides."""
        return {
            "name": self.name,
            "id": self.id,
            "backend": BACKEND,
            "cloud": self.cloud,
            "region": self.region,
            "zone": self.zone,
            "instance_type": self.instance_type,
            "market": self.market.value,
            "state": self.state.value,
            "hourly_price": str(self.hourly_price),
            "owner": self.owner,
            "created_at": self.created_at.isoformat(),
            "running_at": _iso(self.running_at),
            "terminated_at": _iso(self.terminated_at),
            "termination_reason": self.reason,
            "address": address,
            "sandbox": True,
            "tags": self.tags,
            "mode": self.mode,
            "message": self.message,
        }

    def entry(self, at: datetime) -> dict[str, Any]:
        """The machine's line in the ledger as JSON, billed up to `at` while it lives."""
        seconds = billed_seconds(self.created_at, self.terminated_at or at)
        return {
            "name": self.name,
            "id": self.id,
            "owner": self.owner,
            "cloud": self.cloud,
            "region": self.region,
            "zone": self.zone,
            "instance_type": self.instance_type,
            "market": self.market.value,
            "mode": self.mode,
            "state": self.state.value,
            "hourly_price": str(self.hourly_price),
            "created_at": self.created_at.isoformat(),
            "running_at": _iso(self.running_at),
            "terminated_at": _iso(self.terminated_at),
            "termination_reason": self.reason,
            "message": self.message,
            "billed_seconds": seconds,
            "cost": str(cost(self.hourly_price, seconds)),
            "sandbox": True,
        }


_COLUMNS = tuple(Machine.__dataclass_fields__)
_TIMES = ("created_at", "ready_at", "running_at", "terminated_at", "notice_at", "preempt_at")

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS machines (
    {", ".join("name TEXT PRIMARY KEY" if column == "name" else column for column in _COLUMNS)}
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS machines_owner ON machines (owner);
CREATE INDEX IF NOT EXISTS machines_living ON machines (state) WHERE state != 'terminated';
CREATE TABLE IF NOT EXISTS tombstones (name TEXT PRIMARY KEY, at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS capacity (pool TEXT PRIMARY KEY, figure INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT NOT NULL, hits INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_SAVE = (
    f"INSERT INTO machines ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608
    f"ON CONFLICT (name) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _COLUMNS[1:])}"
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM machines"  # noqa: S608


class Ledger:
    """The SQLite file. Every write is committed when its method returns."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def save(self, machine: Machine) -> None:
        """Write the machine's present state."""
        self._db.execute(_SAVE, _row(machine))

    def find(self, name: str) -> Machine | None:
        """The machine of that name, ended or not."""
        row = self._db.execute(f"{_SELECT} WHERE name = ?", (name,)).fetchone()
        return None if row is None else _machine(row)

    def living(self) -> Iterator[Machine]:
        """All machines that have not ended."""
        return map(_machine, self._db.execute(f"{_SELECT} WHERE state != 'terminated' ORDER BY created_at"))

    def machines(
        self, *, owner: str | None = None, name: str | None = None, state: str | None = None
    ) -> Iterator[Machine]:
        """All machines there ever were, oldest first."""
        filters = {"owner": owner, "name": name, "state": state}
        used = {column: value for column, value in filters.items() if value is not None}
        where = f" WHERE {' AND '.join(f'{column} = ?' for column in used)}" if used else ""
        query = f"{_SELECT}{where} ORDER BY created_at, name"
        return map(_machine, self._db.execute(query, tuple(used.values())))

    def bury(self, name: str) -> None:
        """Retire a name: no machine of that name will be created from now on."""
        self._db.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?)", (name, now().isoformat()))

    def buried(self, name: str) -> bool:
        """Whether the name was retired."""
        return self._db.execute("SELECT 1 FROM tombstones WHERE name = ?", (name,)).fetchone() is not None

    def set_capacity(self, figures: dict[str, int | None]) -> None:
        """Override the capacity of pools, or with None no longer."""
        self._db.execute("BEGIN")
        for pool, figure in figures.items():
            if figure is None:
                self._db.execute("DELETE FROM capacity WHERE pool = ?", (pool,))
            else:
                self._db.execute("INSERT OR REPLACE INTO capacity VALUES (?, ?)", (pool, figure))
        self._db.execute("COMMIT")

    def capacity(self) -> dict[str, int]:
        """The overrides, by pool."""
        return dict(self._db.execute("SELECT pool, figure FROM capacity"))

    def add_fault(self, rule: str) -> int:
        """Store a fault rule (JSON); returns its id."""
        added = self._db.execute("INSERT INTO faults (rule) VALUES (?)", (rule,))
        assert added.lastrowid is not None
        return added.lastrowid

    def count_fault(self, fault_id: int, hits: int) -> None:
        """Store how often a rule struck."""
        self._db.execute("UPDATE faults SET hits = ? WHERE id = ?", (hits, fault_id))

    def faults(self) -> list[tuple[int, str, int]]:
        """Id, rule and hits of every fault rule, oldest first."""
        return list(self._db.execute("SELECT id, rule, hits FROM faults ORDER BY id"))

    def remove_faults(self, fault_id: int | None = None) -> int:
        """Remove one rule, or all; returns how many there were."""
        if fault_id is None:
            return self._db.execute("DELETE FROM faults").rowcount
        return self._db.execute("DELETE FROM faults WHERE id = ?", (fault_id,)).rowcount

    def meta(self, key: str) -> str | None:
        """A value that outlives the process."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Store such a value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _row(machine: Machine) -> list[Any]:
    values: list[Any] = []
    for column in _COLUMNS:
        value = getattr(machine, column)
        if isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, Decimal):
            value = str(value)
        elif isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, BootFaults):
            value = json.dumps(asdict(value))
        values.append(value)
    return values


def _machine(row: tuple[Any, ...]) -> Machine:
    values = dict(zip(_COLUMNS, row, strict=True))
    for column in _TIMES:
        if values[column] is not None:
            values[column] = datetime.fromisoformat(values[column])
    values["market"] = Market(values["market"])
    values["state"] = InstanceState(values["state"])
    values["hourly_price"] = Decimal(values["hourly_price"])
    values["tags"] = json.loads(values["tags"])
    values["faults"] = BootFaults(**json.loads(values["faults"]))
    return Machine(**values)
