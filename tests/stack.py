"""The embedded stack for a test: `skyfleet up` in a process of its own, its cloud's bench and ledger, and its faults.

`running_stack` starts it and leaves nothing behind. The ledger of the local cloud is the judge: it is written by
another process than the control plane, and knows every machine that ever was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from skyfleet.client import AsyncSkyfleetClient, Endpoints, find_endpoints
from skyfleet.clouds.local.client import LocalCloud, LocalCloudBench
from skyfleet.domain.states import LaunchStatus
from skyfleet.domain.views import LaunchEvent, LaunchStatusView
from skyfleet.stack import postgres
from skyfleet.stack.processes import ends_with_parent
from tests.waiting import eventually

MODEL = "meta-llama/Llama-3.1-8B-Instruct"

#: The children of `skyfleet up`, without the dashboard.
CHILDREN = ("postgres", "temporal", "local-cloud", "api", "worker")

#: Short intervals, so that what is told by a heartbeat or mended by the sweep is soon seen.
QUICK = {
    "SKYFLEET_HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "SKYFLEET_SWEEP_INTERVAL_SECONDS": "2",
    "SKYFLEET_TERMINATION_ALERT_SECONDS": "1",
}

_KINDS = 120


def world(kinds: int = _KINDS) -> str:
    """A world, as TOML: machines come up at once, and there are many kinds of machine, so that each test has its own.

    A kind is one GPU that three clouds sell under a name of each; what a test does to it no other test meets, neither
    by fault rules nor in the capacity memory. The types of the contract's examples are there as well.
    """

    def types(pattern: str, spot: str, on_demand: str, **real: str) -> str:
        names = [(pattern.format(kind), f"GPU{kind:03d}") for kind in range(kinds)] + list(real.items())
        return "\n".join(
            f'"{name}" = {{ vcpus = 4, memory_gb = 16, gpu = "{gpu}", gpu_count = 1, gpu_memory_gb = 24, '
            f'on_demand = "{on_demand}", spot = "{spot}" }}'
            for name, gpu in names
        )

    return f"""
mode = "process"
provisioning_delay_s = 0.1
capacity = {{ spot = 20, on_demand = 20 }}

[clouds.aws]
preemption_notice_s = 120
[clouds.aws.regions]
us-east-1 = {{ zones = ["us-east-1a", "us-east-1b"] }}
us-west-2 = {{ zones = ["us-west-2a"] }}
[clouds.aws.types]
{types("k{:03d}.xlarge", "0.40", "1.00", **{"g5.xlarge": "A10G"})}

[clouds.azure.regions]
eastus = {{}}
westus2 = {{}}
[clouds.azure.types]
{types("Standard_K{:03d}", "0.60", "1.20", Standard_NV36ads_A10_v5="A10")}

[clouds.gcp.regions]
us-central1 = {{ zones = ["us-central1-a", "us-central1-b"] }}
[clouds.gcp.types]
{types("k{:03d}-standard-4", "0.70", "1.30")}

[clouds.oci.regions]
us-ashburn-1 = {{ zones = ["AD-1", "AD-2"] }}
uk-london-1 = {{ zones = ["AD-1"] }}
[clouds.oci.types]
{types("VM.K{:03d}", "0.80", "1.40")}
"""


@dataclass(frozen=True)
class Kind:
    """A kind of machine that only one test uses: its instance type on each cloud."""

    aws: str
    azure: str
    gcp: str
    oci: str


@dataclass
class RunningStack:
    """`skyfleet up`, and what a test needs to use it, to hurt it and to judge it."""

    data: Path
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    _endpoints: Endpoints | None = None
    _client: AsyncSkyfleetClient | None = None
    _bench: LocalCloudBench | None = None
    _cloud: LocalCloud | None = None
    _kinds: Iterable[int] = field(default_factory=lambda: iter(range(_KINDS)))

    # --- the process ----------------------------------------------------------------------------------------

    async def start(self, timeout_s: float = 90.0) -> None:
        """Start `skyfleet up` and wait until it says that all is healthy."""
        log = self.data.parent / f"{self.data.name}.log"
        (self.data / "endpoints.json").unlink(missing_ok=True)  # of a run that was killed
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                self.command,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
                # A test run that is ended by force leaves no stack behind.
                preexec_fn=ends_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it only calls prctl
            )

        def up() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()
            self._endpoints = find_endpoints(self.data)
            return self._endpoints is not None

        await eventually(up, timeout_s=timeout_s, what="skyfleet up")
        await self._close_clients()
        self._client = AsyncSkyfleetClient(self.endpoints.api, data=self.data)
        if self.endpoints.local_cloud is not None:
            self._bench = LocalCloudBench(self.endpoints.local_cloud)
            self._cloud = LocalCloud(self.endpoints.local_cloud)

    async def stop(self) -> int:
        """A clean stop, as by Ctrl-C's elder brother SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.process.wait, 60)
        self.process = None
        return status

    async def kill_up(self) -> None:
        """-9 to `skyfleet up` itself; its children end with it."""
        assert self.process is not None
        children = self.pids()
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)
        self.process = None
        await eventually(lambda: not any(map(_alive, children.values())), what="end of the children")

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, by name."""
        children = json.loads((self.data / "pids.json").read_text())["children"]
        return {name: child["pid"] for name, child in children.items() if _alive(child["pid"])}

    def kill(self, name: str) -> None:
        """-9 to a child, which the supervisor starts again. Nothing happens while it has no process."""
        pid = self.pids().get(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def healthy(self, timeout_s: float = 60.0) -> None:
        """Wait until launches are accepted and carried out."""

        async def ok() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                async with httpx.AsyncClient(trust_env=False) as probe:
                    worker = await probe.get(f"http://127.0.0.1:{self.port('worker_health')}/health")
                    api = await probe.get(f"{self.endpoints.api}/health")
                    answers = {worker.status_code, api.status_code}
                    if self.endpoints.local_cloud is not None:
                        answers.add((await probe.get(f"{self.endpoints.local_cloud}/v1/health")).status_code)
                    return answers == {200}
            return False

        await eventually(ok, timeout_s=timeout_s, interval_s=0.2, what="a healthy stack")

    # --- where things are -----------------------------------------------------------------------------------

    @property
    def endpoints(self) -> Endpoints:
        """What `endpoints.json` said."""
        assert self._endpoints is not None
        return self._endpoints

    @property
    def client(self) -> AsyncSkyfleetClient:
        """The typed client, as the admin."""
        assert self._client is not None
        return self._client

    async def remove_fault(self, fault_id: int) -> None:
        """Take one fault rule out of force."""
        async with httpx.AsyncClient(trust_env=False) as http:
            reply = await http.delete(f"{self.endpoints.local_cloud}/v1/faults/{fault_id}")
            reply.raise_for_status()

    @property
    def bench(self) -> LocalCloudBench:
        """The cloud's ledger, capacity and faults."""
        assert self._bench is not None
        return self._bench

    def port(self, name: str) -> int:
        """A port by its name in `skyfleet.stack.folder.USUAL_PORTS`."""
        return int(json.loads((self.data / "ports.json").read_text())[name])

    @property
    def database_url(self) -> str:
        """Of the control plane's own database."""
        return postgres.url(postgres.password(self.data / "postgres"), self.port("postgres"))

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection to the control plane's database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            yield connection
        finally:
            # A server that was killed meanwhile has closed it already.
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await connection.close(timeout=5)

    @asynccontextmanager
    async def holding(self, lock: str) -> AsyncIterator[None]:
        """Hold up every step that needs what is locked: `lock` is what follows LOCK TABLE, like `nodes IN SHARE MODE`.

        Ends early when the database is killed, as any lock does.
        """
        async with self.database() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f"LOCK TABLE {lock}")
            try:
                yield
            finally:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await transaction.rollback()

    async def temporal(self) -> Client:
        """A client of the Temporal server."""
        assert self.endpoints.temporal is not None
        return await Client.connect(self.endpoints.temporal, data_converter=pydantic_data_converter)

    def machine_folder(self, entry: dict[str, Any]) -> Path:
        """The disk of a machine that is in the ledger."""
        return self.data / "local-cloud" / "instances" / str(entry["id"])

    # --- launches -------------------------------------------------------------------------------------------

    def kind(self) -> Kind:
        """A kind of machine that nobody used yet."""
        number = next(iter(self._kinds))
        return Kind(
            f"k{number:03d}.xlarge", f"Standard_K{number:03d}", f"k{number:03d}-standard-4", f"VM.K{number:03d}"
        )

    async def launch(self, instance_type: str, *, key: str | None = None, **body: Any) -> str:
        """Ask for a node on AWS, us-east-1, unless `body` says otherwise; its job id. `key` is an Idempotency-Key."""
        place = {"model_name": MODEL, "provider": "aws", "region": "us-east-1", "instance_type": instance_type}
        return (await self.client.launch(place | body, idempotency_key=key)).job_id

    async def ended(self, job_id: str, timeout_s: float = 45.0) -> LaunchStatusView:
        """The launch once it has ended, however it did."""

        async def over() -> bool:
            return (await self.client.status(job_id)).stage.terminal

        try:
            await eventually(over, timeout_s=timeout_s, interval_s=0.1, what=f"end of {job_id}")
            return await self.client.status(job_id)
        except AssertionError as late:
            story = "\n".join(f"{event.at:%H:%M:%S} {event.stage} {event.message}" for event in await self.told(job_id))
            raise AssertionError(f"{late}\n{story}") from None

    async def ready(self, job_id: str, timeout_s: float = 45.0) -> LaunchStatusView:
        """The launch once it is READY; AssertionError with its error if it ends otherwise."""
        view = await self.ended(job_id, timeout_s)
        assert view.status is LaunchStatus.COMPLETED, view.error or view.status
        return view

    async def told(self, job_id: str) -> list[LaunchEvent]:
        """The events of a launch so far."""
        return [event async for event in self.client.events(job_id, live=False)]

    async def story(self, job_id: str) -> list[LaunchEvent]:
        """All events of a launch that has ended, as a late listener is told them."""
        return [event async for event in self.client.events(job_id)]

    async def event(self, job_id: str, wanted: Callable[[LaunchEvent], bool], timeout_s: float = 30.0) -> LaunchEvent:
        """The first event that is wanted, as soon as it happens."""
        async with asyncio.timeout(timeout_s):
            async for event in self.client.events(job_id):
                if wanted(event):
                    return event
        raise AssertionError(f"{job_id} ended without the event that was waited for: {await self.story(job_id)}")

    async def terminate(self, *job_ids: str) -> None:
        """End the nodes of launches that are READY, and wait until they are `terminated`."""
        await self.let_go(*job_ids)
        for job_id in job_ids:
            await self.terminated(job_id)

    async def terminated(self, job_id: str, timeout_s: float = 60.0) -> None:
        """Wait until the node of a launch is `terminated`."""
        node_id = (await self.client.status(job_id)).node_id
        assert node_id is not None

        async def gone() -> bool:
            return (await self.client.node(node_id)).status == "terminated"

        await eventually(gone, timeout_s=timeout_s, interval_s=0.1, what=f"end of {node_id}")

    async def let_go(self, *job_ids: str) -> None:
        """Ask for the end of their nodes, which nobody waits for here: the end of the stack does."""
        for job_id in job_ids:
            await self.client.terminate((await self.client.status(job_id)).node_id or "")

    # --- the judge ------------------------------------------------------------------------------------------

    async def ledger(self, job_id: str) -> list[dict[str, Any]]:
        """Every machine that the cloud ever ran for a launch, oldest first."""
        prefix = f"sf-{job_id.removeprefix('launch-')}-"
        return [entry for entry in await self.bench.ledger() if entry["name"].startswith(prefix)]

    async def living(self, job_id: str) -> list[dict[str, Any]]:
        """Its machines that are not terminated."""
        return [entry for entry in await self.ledger(job_id) if entry["state"] != "terminated"]

    async def nothing_left(self, job_id: str) -> None:
        """Assert that nothing of a launch is in the cloud, and that no machine ever was without an owner."""
        assert await self.living(job_id) == []
        await self.all_owned()

    async def all_owned(self) -> None:
        """Assert that every machine that the cloud ever ran stands in the database, as one attempt of one launch."""
        async with self.database() as connection:
            known = {row["cluster_name"] for row in await connection.fetch("SELECT cluster_name FROM launch_attempts")}
        names = [entry["name"] for entry in await self.bench.ledger()]
        assert set(names) <= known
        assert len(names) == len(set(names))

    async def told_once(self, job_id: str) -> list[LaunchEvent]:
        """The story of an ended launch, after asserting that it is whole and that nothing is told twice."""
        story = await self.story(job_id)
        assert [event.seq for event in story] == list(range(1, len(story) + 1))
        assert [event.kind for event in story if event.stage.terminal and event.kind != "node"] == ["end"]
        told = [(event.kind, event.attempt, event.message) for event in story]
        assert len(told) == len(set(told)), told
        return story

    # --- the end --------------------------------------------------------------------------------------------

    async def clean(self) -> None:
        """Leave nothing behind: end every machine, stop the stack, and see that no process of the folder is left."""
        if self.process is None or self.process.poll() is not None:
            await self.start()
        await self.healthy()
        if self._bench is not None:
            await self.bench.clear_faults()
            await self.bench.set_capacity(None)
        page = await self.client.launches(status=[LaunchStatus.IN_PROGRESS], limit=100)
        for launch in page.launches:
            await self.client.cancel(launch.job_id)
        for launch in page.launches:
            await self.ended(launch.job_id, timeout_s=90)
        if self._cloud is not None:
            for name in (await self.bench.summary())["living"]:
                await self._cloud.terminate(name)

            async def empty() -> bool:
                return not (await self.bench.summary())["living"]

            await eventually(empty, timeout_s=30, what="an empty cloud")
        await self._close_clients()
        assert await self.stop() == 0

    def processes(self) -> dict[int, str]:
        """Every process that has the data folder in its command line, with that."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if f"{self.data}/" in line or f"{self.data} " in line:
                        found[int(folder.name)] = line
        return found

    async def _close_clients(self) -> None:
        for client in (self._client, self._bench, self._cloud):
            if client is not None:
                await client.aclose()
        self._client = self._bench = self._cloud = None


@asynccontextmanager
async def running_stack(
    tmp_path: Path,
    config: str | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    cloud: str = "local",
    arguments: Iterable[str] = (),
) -> AsyncIterator[RunningStack]:
    """The embedded stack on a fresh folder in `tmp_path`; at the end nothing of it runs any more.

    `config` is the local cloud's world as TOML (`world()` if None), `settings` further variables of the environment;
    `cloud` is what `skyfleet up` is to launch on, `arguments` are more of its arguments.
    """
    data = tmp_path / "skyfleet"
    file = tmp_path / "world.toml"
    file.write_text(config or world())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SKYFLEET_")}
    stack = RunningStack(
        data,
        [
            *(sys.executable, "-m", "skyfleet.cli", "up", "--data", str(data)),
            *("--json", "--no-dashboard", "--cloud", cloud, "--cloud-config", str(file), *arguments),
        ],
        environment | QUICK | dict(settings or {}),
    )
    try:
        await stack.start()
        yield stack
        await stack.clean()
        assert stack.processes() == {}
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.process.kill()
            stack.process.wait()
        for pid in stack.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def all_of(awaitables: Iterable[Any]) -> list[Any]:
    """The results of all, once all are there; the first failure after all have ended."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
