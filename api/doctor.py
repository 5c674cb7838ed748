"""What `skyfleet doctor` asks the control plane: what is configured, what is missing, and how to mend it.

Every look has its own deadline and its own answer, so that one that fails hides no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import socket
from collections.abc import Awaitable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, GetSystemInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError

from skyfleet import __version__
from skyfleet.agent import bundle
from skyfleet.db.migrate import newest_revision
from skyfleet.db.repositories import CatalogRepository, ModelBucketRepository
from skyfleet.db.repositories.server import ServerRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, CloudAccessRow, ModelBucketRow, utcnow
from skyfleet.domain import queues
from skyfleet.domain.doctor import (
    GIVE_PUBLIC_URL,
    QUOTA_HINTS,
    Check,
    CheckStatus,
    Reach,
    failed,
    judge_pollers,
    note,
    ok,
    reach,
    warning,
)
from skyfleet.settings import Settings

_log = logging.getLogger("skyfleet.api")

#: How long one look may take, seconds.
_LOOK_SECONDS: Final = 5.0
#: What each queue holds.
_TASKS: Final = {
    queues.CONTROL: (TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
    queues.PROVISION: (TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,),
    queues.TEARDOWN: (TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,),
}
_SKYPILOT: Final = "skypilot"  # the backend's name
_WORKER_LOG: Final = "Read the worker's log (with `skyfleet up`: DATA/logs/worker.log)."


class Doctor:
    """Looks at what this control plane depends on, from where the API stands."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    async def examine(self) -> list[Check]:
        """All checks, in the order in which one would mend them."""
        found = await asyncio.gather(
            _within(self._stored(), "database"),
            _within(self._temporal(), "temporal"),
            _within(self._skypilot_server(), "skypilot server"),
            _within(self._public_url(), "public url"),
        )
        stored, temporal, skypilot, public_url = found
        return [
            ok("api", f"Skyfleet {__version__}, Python {platform.python_version()}"),
            *stored[:2],
            *temporal,
            *skypilot,
            *stored[2:],
            *public_url,
            self._admin_token(),
        ]

    # --- what the database knows ----------------------------------------------------------------------------

    async def _stored(self) -> list[Check]:
        """The database, its migrations, and what workers wrote into it of clouds and models."""
        mend = "Start PostgreSQL, and check SKYFLEET_DATABASE_URL."
        try:
            async with self._database.transaction() as session:
                server = ServerRepository(session)
                version, revision = await server.version(), await server.revision()
        except Exception as error:  # whatever the driver raises, it is the answer
            return [failed("database", f"PostgreSQL does not answer: {_words(error)}", mend)]
        newest = await asyncio.to_thread(newest_revision)
        database = ok("database", f"PostgreSQL {version}")
        if revision != newest:
            have = "has no tables yet" if revision is None else f"is at {revision}"
            migrate = "Run `python -m skyfleet.db.migrate` (Compose: the service `migrate`), then restart the others."
            return [database, failed("migrations", f"the database {have}; this version needs {newest}", migrate)]
        async with self._database.transaction() as session:
            catalog = CatalogRepository(session)
            backends = {row.name: row for row in await catalog.backends()}
            access = await catalog.access()
            bucket = await ModelBucketRepository(session).get()
        return [
            database,
            ok("migrations", f"at {newest}, the newest"),
            *self._clouds(backends, access),
            _bucket(bucket),
        ]

    def _clouds(self, backends: dict[str, BackendRow], access: Sequence[CloudAccessRow]) -> list[Check]:
        checks = [_backend(row) for row in backends.values()]
        if not self._settings.skypilot:
            how = "To use them: `skyfleet up --cloud skypilot`, or SKYFLEET_SKYPILOT=1 for API and workers."
            return [*checks, note("real clouds", "not used", how)]
        if _SKYPILOT not in backends:
            checks.append(failed(_SKYPILOT, "no worker has looked at SkyPilot's clouds yet", _WORKER_LOG))
        mine = [row for row in access if row.backend == _SKYPILOT]
        for row in mine:
            checks.append(_cloud(row))
            if row.enabled and row.cloud in QUOTA_HINTS:
                checks.append(note(f"quota {row.cloud}", QUOTA_HINTS[row.cloud]))
        if mine and not any(row.enabled for row in mine):
            how = (
                "Put the credentials of a cloud where SkyPilot's API server runs (docs/clouds.md says which), and run "
                "`sky check` there."
            )
            checks.append(failed("real clouds", "no cloud is enabled", how))
        return checks

    # --- what others run ------------------------------------------------------------------------------------

    async def _temporal(self) -> list[Check]:
        address, namespace = self._settings.temporal_address, self._settings.temporal_namespace
        mend = f"Start Temporal, or set SKYFLEET_TEMPORAL_ADDRESS (now {address})."
        try:
            client = await Client.connect(address, namespace=namespace)
            system = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            checks = [ok("temporal", f"{address}, server {system.server_version}, namespace {namespace}")]
            return checks + [await _workers(client, namespace, queue) for queue in _TASKS]
        except (RuntimeError, RPCError) as error:  # RuntimeError: it cannot connect
            return [failed("temporal", f"{address}, namespace {namespace}: {_words(error)}", mend)]

    async def _skypilot_server(self) -> list[Check]:
        if not self._settings.skypilot:
            return []
        url = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT", "").rstrip("/")
        name = "skypilot server"
        if not url:
            return [note(name, "this API is not told where it is (SKYPILOT_API_SERVER_ENDPOINT); the workers may be")]
        token = os.environ.get("SKYPILOT_SERVICE_ACCOUNT_TOKEN")
        mend = "Start it (`sky api start`), or check SKYPILOT_API_SERVER_ENDPOINT and SKYPILOT_SERVICE_ACCOUNT_TOKEN."
        try:
            async with _client(url) as http:
                response = await http.get(
                    f"{url}/api/health", headers={"Authorization": f"Bearer {token}"} if token else {}
                )
            response.raise_for_status()
            health: dict[str, Any] = response.json()
            status = health["status"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            return [failed(name, f"{url} does not answer as one: {_words(error)}", mend)]
        if status != "healthy":
            return [failed(name, f"{url} says {status!r}", mend)]
        theirs, ours = health.get("version"), client_version()
        if theirs and ours and theirs != ours:
            how = f"SkyPilot keeps versions that are near to one another compatible. Best run {ours} on both sides."
            return [warning(name, f"{url} is {theirs}, the workers have {ours}", how)]
        return [ok(name, f"{url}, version {theirs or 'not told'}")]

    # --- where machines report to -----------------------------------------------------------------------------

    async def _public_url(self) -> list[Check]:
        name, url = "public url", self._settings.public_url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return [failed(name, f"{url!r} is no web address", GIVE_PUBLIC_URL)]
        try:
            addresses = await _resolve(parts.hostname)
        except OSError as error:
            return [failed(name, f"{parts.hostname} has no address: {_words(error)}", GIVE_PUBLIC_URL)]
        found = reach(url, addresses)
        real = self._settings.skypilot
        if real and found is Reach.HERE:
            return [failed(name, f"{url} can be reached from its own machine alone", GIVE_PUBLIC_URL)]
        why = await _why_unreachable(url)
        if why is not None:
            how = (
                "Check the port, the tunnel or the proxy. A network may not reach its own public address from inside: "
                f"then try `curl {url}/health/live` from elsewhere."
            )
            return [failed(name, f"{url}: {why}", how)]
        if real and found is Reach.PRIVATE:
            how = f"Right for machines in that network (Kubernetes, Slurm, a VPN). For others: {GIVE_PUBLIC_URL}"
            return [warning(name, f"{url} answers, but can be reached from a private network alone", how)]
        if real and parts.scheme == "http":
            how = "Use https: over http the nodes' keys can be read on the way."
            return [warning(name, f"{url} answers here and serves the agent, without encryption", how)]
        return [ok(name, f"{url} answers here and serves the agent")]

    def _admin_token(self) -> Check:
        if self._settings.admin_token is None:
            return warning("admin token", "not set: only API keys are let in", "Set SKYFLEET_ADMIN_TOKEN(_FILE).")
        return ok("admin token", "set")


def client_version() -> str | None:
    """The version of SkyPilot that workers of this release use: the one that is installed here, else the pinned one."""
    try:
        return importlib.metadata.version("skypilot")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        wanted = importlib.metadata.requires("skyfleet") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (re.match(r"skypilot(\[[^]]*\])?==([\w.]+)", requirement) for requirement in wanted)
    return next((pin[2] for pin in pins if pin), None)


async def _within(look: Awaitable[list[Check]], name: str) -> list[Check]:
    try:
        return await asyncio.wait_for(look, _LOOK_SECONDS)
    except TimeoutError:
        return [failed(name, f"no answer in {_LOOK_SECONDS:g} s", "Is the host right, and not behind a firewall?")]
    except Exception as error:  # one look that fails must not hide what the others saw
        _log.exception("the look at %s failed", name)
        return [failed(name, f"could not be looked at: {_words(error)}", "Read the API's log.")]


def _backend(row: BackendRow) -> Check:
    name = "skypilot" if row.name == _SKYPILOT else f"{row.name} cloud"
    if row.error is not None:
        return failed(name, f"its offers could not be read: {row.error}", _WORKER_LOG)
    return ok(name, f"offers read at {row.synced_at:%Y-%m-%d %H:%M:%S} UTC" if row.synced_at else "known")


def _cloud(row: CloudAccessRow) -> Check:
    if row.enabled:
        return ok(f"cloud {row.cloud}", "enabled" + (f": {row.reason}" if row.reason else ""))
    return note(f"cloud {row.cloud}", f"not enabled: {row.reason or 'no reason given'}")


def _bucket(row: ModelBucketRow | None) -> Check:
    name = "model bucket"
    if row is None:
        how = "To read models from one: SKYFLEET_MODEL_BUCKET_URL and its keys, for the workers."
        return note(name, "none is configured; models are those registered by hand", how)
    if row.error is not None:
        how = "Check SKYFLEET_MODEL_BUCKET_URL, _ENDPOINT and the keys; then `skyfleet models refresh`."
        return failed(name, f"{row.url} could not be read: {row.error}", how)
    if row.synced_at is None:
        return warning(name, f"{row.url} has not been read yet", _WORKER_LOG)
    skipped = f", {len(row.skipped)} folders skipped" if row.skipped else ""
    return ok(name, f"{row.url}: {row.models} models{skipped}, read at {row.synced_at:%Y-%m-%d %H:%M:%S} UTC")


async def _workers(client: Client, namespace: str, queue: str) -> Check:
    """Whether somebody works on everything that a queue holds."""
    checks = []
    for kind in _TASKS[queue]:
        request = DescribeTaskQueueRequest(namespace=namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind)
        pollers = (await client.workflow_service.describe_task_queue(request)).pollers
        now = utcnow()
        polled_at = [poller.last_access_time.ToDatetime(tzinfo=now.tzinfo) for poller in pollers]
        checks.append(judge_pollers(queue, polled_at, now))
    return next((check for check in checks if check.status is CheckStatus.FAILED), checks[0])


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(one[4][0]) for one in found})


async def _why_unreachable(url: str) -> str | None:
    """None when this API answers at `url`, with the agent that its nodes run."""
    version, digest = bundle.version(), bundle.sha256()
    try:
        async with _client(url) as http:
            alive = await http.get(f"{url}/health/live")
            if not alive.is_success:
                return f"/health/live answers {alive.status_code}"
            agent = await http.get(f"{url}/downloads/node-agent/{version}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _words(error)
    if not agent.is_success:
        return f"/downloads/node-agent/{version} answers {agent.status_code}"
    if hashlib.sha256(agent.content).hexdigest() != digest:
        return "what it serves as the node agent is another file: is it another program, or an old copy in a cache?"
    return None


def _client(url: str) -> httpx.AsyncClient:
    """Loopback is never behind a proxy; the rest of the world may be."""
    return httpx.AsyncClient(timeout=_LOOK_SECONDS - 1, trust_env=reach(url) is not Reach.HERE)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
