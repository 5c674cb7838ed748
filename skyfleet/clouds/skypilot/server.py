"""SkyPilot's API server, through SkyPilot's own SDK, as coroutines over plain data.

The SDK blocks, so each call runs in a thread. It is imported with this module (seconds, 200 MB): only the worker that
provisions with SkyPilot imports it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

# A machine's record belongs to the server that it was asked of. One that the SDK started by itself, because the
# configured one is away for a moment, would know nothing of the machines.
os.environ["SKYPILOT_DISABLE_LOCAL_API_SERVER"] = "1"
os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")

import requests
import sky
from sky import exceptions
from sky.client import sdk
from sky.server import common as server_common

from skyfleet.domain.errors import CloudError, CloudUnreachable

_log = logging.getLogger(__name__)

#: SDK calls at once. Each is short but `down` and a forced `status`, which last as long as the cloud's answer.
_THREADS: Final = 64
#: A request whose answer SkyPilot's server never gives must not hold its caller for ever.
_ANSWER_SECONDS: Final = 300.0
_LAUNCH: Final = "sky.launch"


class RequestState(StrEnum):
    """How far SkyPilot is with a request (`sky.server.requests.requests.RequestStatus`)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def active(self) -> bool:
        """True while SkyPilot may still do something for it."""
        return self in (RequestState.PENDING, RequestState.RUNNING)


@dataclass(frozen=True)
class LaunchRequest:
    """A launch that the server was asked for since it started: a restart forgets all of them."""

    id: str
    state: RequestState
    created_at: datetime
    finished_at: datetime | None


class ClusterState(StrEnum):
    """What SkyPilot's record says of a cluster (`sky.ClusterStatus`)."""

    INIT = "INIT"
    UP = "UP"
    STOPPED = "STOPPED"
    AUTOSTOPPING = "AUTOSTOPPING"


@dataclass(frozen=True)
class Cluster:
    """SkyPilot's record of a cluster. `cloud` is in lower case; `address` is the head node's, from outside."""

    name: str
    name_on_cloud: str
    state: ClusterState
    launched_at: datetime
    cloud: str
    region: str | None
    zone: str | None
    instance_type: str | None
    spot: bool
    address: str | None
    labels: dict[str, str] = field(default_factory=dict)


class SkyPilotServer:
    """The API server that SkyPilot's own settings name (`SKYPILOT_API_SERVER_ENDPOINT`, `~/.sky/config.yaml`).

    All methods raise `CloudUnreachable` without an answer. What the server answers with an error of its own is raised
    as it is: an exception of SkyPilot's.
    """

    def __init__(self, owner: str) -> None:
        # SkyPilot puts the user's hash into the name of every machine. Ours must stay the same wherever the worker
        # runs: a second hash would be a second machine under the same name.
        os.environ.setdefault("SKYPILOT_USER_ID", hashlib.sha256(owner.encode()).hexdigest()[:8])
        os.environ.setdefault("SKYPILOT_USER", "skyfleet")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="skypilot")

    @property
    def endpoint(self) -> str:
        """Its address."""
        return str(server_common.get_server_url())

    async def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of the SDK returns (for most: the id of a request)."""
        work = functools.partial(_translated, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of the request that a function of the SDK makes."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await self.run(lambda: sdk.get(call(*args, **kwargs)))

    async def launch(self, task: dict[str, Any], name: str) -> str:
        """Ask for a cluster; the request's id. SkyPilot makes one cluster of a name, however often it is asked."""

        def ask() -> Any:
            return sdk.launch(sky.Task.from_yaml_config(task), cluster_name=name)

        return str(await self.run(ask))

    async def launches(self, name: str) -> list[LaunchRequest]:
        """The launches of a cluster that the server remembers, oldest first."""
        rows = await self.run(_requests_of, name)
        found = [
            LaunchRequest(
                id=row["request_id"],
                state=RequestState(row["status"]),
                created_at=_time(row["created_at"]),
                finished_at=_time(row["finished_at"]) if row.get("finished_at") else None,
            )
            for row in rows
            if row["name"] == _LAUNCH and row.get("cluster_name") == name
        ]
        return sorted(found, key=lambda launch: launch.created_at)

    async def outcome(self, request_id: str) -> Exception | None:
        """What a finished request failed with; None if it did not fail."""
        try:
            await self.call(lambda: request_id)
        except (CloudUnreachable, TimeoutError):
            raise
        except Exception as failure:
            return failure
        return None

    async def cancel(self, request_ids: list[str]) -> None:
        """Stop requests where they are; what they made in the cloud stays."""
        await self.call(sdk.api_cancel, request_ids=request_ids, silent=True)

    async def cluster(self, name: str, *, refresh: bool = False) -> Cluster | None:
        """The record of a cluster. With `refresh` the cloud is asked, and a record without a machine goes."""
        clusters = await self._status([name], refresh=refresh)
        return clusters[0] if clusters else None

    async def clusters(self, *, refresh: bool = False) -> list[Cluster]:
        """All records, of all users."""
        return await self._status(None, refresh=refresh)

    async def _status(self, names: list[str] | None, *, refresh: bool) -> list[Cluster]:
        mode = sky.StatusRefreshMode.FORCE if refresh else sky.StatusRefreshMode.NONE
        rows = await self.call(sdk.status, names, refresh=mode, all_users=True)
        return [_cluster(row) for row in rows if row.handle is not None]

    async def has_job(self, name: str) -> bool:
        """Whether the task of a cluster that is up ever got as far as its machine."""
        return bool(await self.call(sdk.queue, name, all_users=True))

    async def down(self, name: str) -> None:
        """End a cluster and what is under way for it; returns once the cloud confirmed. A name unknown is no error."""
        try:
            await self.call(sdk.down, name)
        except exceptions.ClusterDoesNotExist:
            return

    async def provision_log(self, name: str) -> str:
        """The log of the cluster's latest provisioning, as far as it is written; empty if there is none."""
        log = io.StringIO()
        try:
            await self.run(sdk.tail_provision_logs, name, follow=False, output_stream=log)
        except exceptions.CommandError as failure:
            if failure.returncode == requests.codes.not_found:
                return ""
            raise
        return log.getvalue()

    def close(self) -> None:
        """Start no more calls; those under way are left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _requests_of(name: str) -> list[dict[str, Any]]:
    # Not `sdk.api_status`: where the server is on this machine that looks for its process, and takes one that it does
    # not find (in another container, or being started again) for "no requests".
    answer = server_common.make_authenticated_request(
        "GET", "/api/status", params={"all_status": True, "cluster_name": name}, timeout=(5, 30)
    )
    answer.raise_for_status()
    rows: list[dict[str, Any]] = answer.json()
    return rows


def _cluster(row: Any) -> Cluster:
    handle = row.handle
    resources = handle.launched_resources
    return Cluster(
        name=row.name,
        name_on_cloud=handle.cluster_name_on_cloud,
        state=ClusterState(row.status.value),
        launched_at=_time(row.launched_at),
        cloud=str(resources.cloud).lower(),
        region=resources.region,
        zone=resources.zone,
        instance_type=resources.instance_type,
        spot=bool(resources.use_spot),
        address=handle.head_ip,
        labels=dict(resources.labels or {}),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _translated(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _as_ours():
        return call(*args, **kwargs)


@contextmanager
def _as_ours() -> Iterator[None]:
    try:
        yield
    except (
        exceptions.ApiServerConnectionError,
        exceptions.ServerTemporarilyUnavailableError,
        exceptions.RequestInterruptedError,
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as failure:
        raise CloudUnreachable(f"SkyPilot's API server at {_where()} does not answer: {failure}") from failure
    except (exceptions.ApiServerAuthenticationError, exceptions.APIVersionMismatchError) as failure:
        raise CloudError("skypilot", f"{type(failure).__name__}: {failure}", code=type(failure).__name__) from failure
    except RuntimeError as failure:
        # All that the SDK says where it would have started a server of its own.
        if "SKYPILOT_DISABLE_LOCAL_API_SERVER" in str(failure):
            raise CloudUnreachable(f"no SkyPilot API server answers at {_where()}") from failure
        raise


def _where() -> str:
    return str(server_common.get_server_url())
