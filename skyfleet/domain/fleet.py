"""The whole fleet in figures, as the database knows it at one moment."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict


class NodeCount(BaseModel):
    """How many nodes of a provider have a status."""

    provider: str
    status: str
    nodes: int


class OpenLaunches(BaseModel):
    """Launches that have not ended and stand in one stage, and how long the slowest of them has, in seconds."""

    stage: str
    launches: int
    oldest_seconds: float


class CostRate(BaseModel):
    """What machines of a provider and market cost at the moment, US dollars an hour."""

    provider: str
    market: str
    hourly_price: Decimal


class HeartbeatAges(BaseModel):
    """How long ago each node of a provider that should report last did, in seconds."""

    provider: str
    seconds: list[float]


class CatalogAge(BaseModel):
    """How long ago the offers of a backend were last read, in seconds."""

    backend: str
    seconds: float


class FleetFigures(BaseModel):
    """Counts, rates and ages. Nodes that are terminated and launches that have ended are not counted."""

    model_config = ConfigDict(frozen=True)

    nodes: list[NodeCount]
    open_launches: list[OpenLaunches]
    queued_attempts: int  # written down, and no cloud asked yet
    cost_rates: list[CostRate]
    heartbeats: list[HeartbeatAges]
    teardowns: int  # machines whose end was asked for and not confirmed
    oldest_teardown_seconds: float
    catalogs: list[CatalogAge]
