"""Every metric of ours, by its one definition. Names and units follow Prometheus's conventions.

Labels are few, and of few values: never an id of a launch, a node, a tenant or a person.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric

from skyfleet import __version__
from skyfleet.domain.fleet import FleetFigures
from skyfleet.domain.states import LaunchStage, LaunchStatus
from skyfleet.domain.timing import seconds_by_stage

#: From the local cloud's fraction of a second to the hour of a big model on a slow cloud.
_LAUNCH_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_ACTIVITY_SECONDS: Final = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
_REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_HEARTBEAT_AGES: Final = (5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)

#: A node is late after so many of its intervals without a heartbeat.
LATE_INTERVALS: Final = 3

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, which nobody asks for

#: What only an API, and only a worker, tells.
API: Final = CollectorRegistry()
WORKER: Final = CollectorRegistry()

_BUILD = Info("skyfleet_build", "The version that runs.")
_BUILD.info({"version": __version__})

_REQUESTS = Histogram(
    "skyfleet_http_request_duration_seconds",
    "Requests to the API, until their answer began.",
    ["method", "route", "status"],
    buckets=_REQUEST_SECONDS,
    registry=API,
)
_ACTIVITIES = Histogram(
    "skyfleet_activity_duration_seconds",
    "Runs of activities by this worker.",
    ["activity", "outcome"],
    buckets=_ACTIVITY_SECONDS,
    registry=WORKER,
)
_STAGES = Histogram(
    "skyfleet_launch_stage_duration_seconds",
    "Time that a launch spent in a stage, all its attempts together; observed when it has ended.",
    ["stage"],
    buckets=_LAUNCH_SECONDS,
    registry=WORKER,
)
_LAUNCHES = Histogram(
    "skyfleet_launch_duration_seconds",
    "Launches from their request to their end.",
    ["outcome"],
    buckets=_LAUNCH_SECONDS,
    registry=WORKER,
)
_ATTEMPTS = Counter(
    "skyfleet_attempts", "Attempts of launches that were decided.", ["cloud", "outcome"], registry=WORKER
)

# There from the start, so that a rate over them has a beginning.
for _status in LaunchStatus:
    if _status is not LaunchStatus.IN_PROGRESS:
        _LAUNCHES.labels(_status.value)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def request_answered(method: str, route: str | None, status: int, seconds: float) -> None:
    """The API began to answer a request. `route` is its template, None if there is none for it."""
    known = method if method in _METHODS else "other"
    _REQUESTS.labels(known, route or "none", f"{status // 100}xx").observe(seconds)


def activity_ran(activity: str, outcome: str, seconds: float) -> None:
    """One run of an activity ended: `completed`, `failed` or `cancelled`."""
    _ACTIVITIES.labels(activity, outcome).observe(seconds)


def launch_ended(outcome: LaunchStatus, timeline: Sequence[tuple[LaunchStage, datetime]]) -> None:
    """A launch ended; `timeline` as `skyfleet.domain.timing` takes it. To be called once a launch."""
    stages = seconds_by_stage(timeline)
    for stage, seconds in stages.items():
        _STAGES.labels(stage.value).observe(seconds)
    _LAUNCHES.labels(outcome.value).observe(sum(stages.values()))


def attempt_decided(cloud: str, outcome: str) -> None:
    """An attempt ended `succeeded`, `cancelled`, or with a kind of error. To be called once an attempt."""
    _ATTEMPTS.labels(cloud, outcome).inc()


class _Families:
    """What an encoder collects from."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(accept: str, own: CollectorRegistry, more: Iterable[Metric] = ()) -> tuple[bytes, str]:
    """What every process tells, what this one does (`own`) and `more`; and the media type.

    That is OpenMetrics if the header `Accept` asks for it, else text.
    """
    encode, media_type = choose_encoder(accept)
    return encode(_Families([*REGISTRY.collect(), *own.collect(), *more])), media_type


def fleet_families(figures: FleetFigures | None, heartbeat_interval_s: float) -> list[Metric]:
    """The fleet as gauges; None when the database could not be read: then nothing is said of it but that.

    A figure that is not known is left out, rather than 0.
    """
    up = GaugeMetricFamily("skyfleet_database_up", "Whether the API could read the database.")
    up.add_metric([], 0 if figures is None else 1)
    if figures is None:
        return [up]
    nodes = GaugeMetricFamily(
        "skyfleet_nodes", "Nodes that are not terminated, by what they are.", labels=["provider", "status"]
    )
    for count in figures.nodes:
        nodes.add_metric([count.provider, count.status], count.nodes)
    launches = GaugeMetricFamily("skyfleet_open_launches", "Launches that have not ended, by stage.", labels=["stage"])
    oldest = GaugeMetricFamily(
        "skyfleet_open_launch_stage_age_seconds",
        "How long the slowest open launch of a stage has been in it.",
        labels=["stage"],
    )
    by_stage = {row.stage: row for row in figures.open_launches}
    for stage in LaunchStage:
        if not stage.terminal:
            row = by_stage.get(stage.value)
            launches.add_metric([stage.value], row.launches if row else 0)
            oldest.add_metric([stage.value], row.oldest_seconds if row else 0)
    queue = GaugeMetricFamily(
        "skyfleet_queued_attempts", "Attempts that are written down and wait for a worker to ask the cloud."
    )
    queue.add_metric([], figures.queued_attempts)
    rate = GaugeMetricFamily(
        "skyfleet_cost_rate_dollars_per_hour",
        "Price of the machines that the clouds bill now, US dollars an hour.",
        labels=["provider", "market"],
    )
    for cost in figures.cost_rates:
        rate.add_metric([cost.provider, cost.market], float(cost.hourly_price))
    teardowns = GaugeMetricFamily("skyfleet_teardowns", "Machines whose end was asked for and not yet confirmed.")
    teardowns.add_metric([], figures.teardowns)
    unconfirmed = GaugeMetricFamily(
        "skyfleet_teardown_age_seconds", "How long the oldest of these has been waited for; 0 if there is none."
    )
    unconfirmed.add_metric([], figures.oldest_teardown_seconds)
    catalog = GaugeMetricFamily(
        "skyfleet_catalog_age_seconds", "Since the offers of a backend were last read.", labels=["backend"]
    )
    for known in figures.catalogs:
        catalog.add_metric([known.backend], known.seconds)
    return [
        *(up, nodes, launches, oldest, queue, rate, teardowns, unconfirmed, catalog),
        *_heartbeats(figures, LATE_INTERVALS * heartbeat_interval_s),
    ]


def _heartbeats(figures: FleetFigures, late_after_s: float) -> list[Metric]:
    ages = sorted(age for beats in figures.heartbeats for age in beats.seconds)
    lag = GaugeHistogramMetricFamily(
        "skyfleet_heartbeat_age_seconds",
        "Since the last heartbeat of each node whose end nobody has asked for.",
        buckets=[
            *((str(limit), float(bisect_right(ages, limit))) for limit in _HEARTBEAT_AGES),
            ("+Inf", float(len(ages))),
        ],
        gsum_value=sum(ages),
    )
    oldest = GaugeMetricFamily("skyfleet_heartbeat_age_max_seconds", "The highest of these; 0 if there is none.")
    oldest.add_metric([], ages[-1] if ages else 0)
    late = GaugeMetricFamily(
        "skyfleet_late_nodes",
        f"Nodes whose last heartbeat is more than {LATE_INTERVALS} intervals old.",
        labels=["provider"],
    )
    for beats in figures.heartbeats:
        late.add_metric([beats.provider], sum(age > late_after_s for age in beats.seconds))
    return [lag, oldest, late]
