"""Virtual machines: thousands of node agents in one process, for tests and benchmarks of scale.

Each does over HTTP what the agent does, and nothing else: it registers with its one-time token, sends a heartbeat
every `heartbeat_interval_s`, give or take a tenth, and obeys `shutdown` and 410. It serves no engine and says so:
its `gpus` are empty and its endpoint answers 503 to all but the look whether it runs. Timers put nodes that are due
into one queue, which a fixed number of workers empties over as many connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from skyfleet.clouds.local.ledger import Machine, now
from skyfleet.clouds.local.outgoing import HttpClient
from skyfleet.domain.offers import NodeBoot
from skyfleet.domain.states import NodeDirective

_WORKERS = 32
_MAX_BACKOFF_S = 15.0
_ENGINE = '{"healthy":true,"running":0,"waiting":0,"kv_cache_usage":null,"tokens_per_second":null}'


@dataclass(slots=True, eq=False)
class _Node:
    machine: Machine
    boot: NodeBoot
    endpoint_url: str
    timer: asyncio.TimerHandle | None = None
    sequence: int = 0
    failures: int = 0
    up_since: float = field(default_factory=time.monotonic)


class VirtualFleet:
    """All virtual machines that run."""

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        secret: str,
        registered: Callable[[Machine, str], None],
        powered_off: Callable[[Machine, str], None],
        seed: int,
    ) -> None:
        """`registered(machine, heartbeat_key)` and `powered_off(machine, why)` are called when that happens."""
        self._http = http
        self._base_url = base_url
        self._secret = secret
        self._registered = registered
        self._powered_off = powered_off
        self._dice = random.Random(seed)  # noqa: S311 - dice, not secrets
        self._nodes: dict[str, _Node] = {}
        self._due: asyncio.Queue[_Node] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    def add(self, machine: Machine) -> None:
        """Start a machine's agent; one with a heartbeat key has registered before."""
        assert machine.boot is not None
        boot = NodeBoot.model_validate_json(machine.boot)
        node = _Node(machine, boot, f"{self._base_url}/virtual/{quote(machine.name)}")
        self._nodes[machine.name] = node
        if machine.heartbeat_key is None:
            self._due.put_nowait(node)
        else:
            self._later(node, self._dice.random() * boot.heartbeat_interval_s)
        if not self._workers:
            self._workers = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]

    def remove(self, name: str) -> None:
        """Stop a machine's agent."""
        node = self._nodes.pop(name, None)
        if node is not None and node.timer is not None:
            node.timer.cancel()

    async def stop(self) -> None:
        """Stop all of them."""
        for name in list(self._nodes):
            self.remove(name)
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()

    def _later(self, node: _Node, delay_s: float) -> None:
        node.timer = asyncio.get_running_loop().call_later(delay_s, self._due.put_nowait, node)

    async def _work(self) -> None:
        while True:
            node = await self._due.get()
            if self._nodes.get(node.machine.name) is not node:
                continue
            try:
                if node.machine.heartbeat_key is None:
                    pause_s = await self._register(node)
                else:
                    pause_s = await self._heartbeat(node)
            except (OSError, ValueError):  # no answer, or not one that the protocol knows
                pause_s = None
            if self._nodes.get(node.machine.name) is not node:
                continue
            if pause_s is None:
                node.failures += 1
                pause_s = min(_MAX_BACKOFF_S, 0.25 * 2 ** min(node.failures, 8)) * self._dice.uniform(0.5, 1.0)
            else:
                node.failures = 0
            self._later(node, pause_s)

    async def _register(self, node: _Node) -> float | None:
        boot = node.boot
        body: dict[str, object] = {
            "provider": boot.provider,
            "region": boot.region,
            "model_name": boot.model_name,
            "endpoint_url": node.endpoint_url,
            "gpu_type": boot.gpu_type,
            "instance_type": boot.instance_type,
            "spot_instance": boot.spot_instance,
            "registration_token": boot.registration_token,
            "engine": boot.engine.name,
            "agent_version": boot.agent_version,
            "sandbox": True,
            "stages": [],
        }
        # Made once and kept, as the agent does: derived, so that it is the same after a restart.
        once = hashlib.sha256(f"{self._secret}/{node.machine.id}".encode()).hexdigest()
        status, answer = await self._http.request(
            "POST",
            f"{boot.control_plane_url}/admin/nodes/register?node_id={quote(boot.node_id)}",
            headers={"content-type": "application/json", "idempotency-key": once},
            body=json.dumps(body).encode(),
        )
        if status == 410:
            self._power_off(node, "its attempt was given up")
        if status != 200:
            return None
        key = json.loads(answer)["heartbeat_key"]
        if self._nodes.get(node.machine.name) is node:
            self._registered(node.machine, key)
        return self._dice.random() * boot.heartbeat_interval_s

    async def _heartbeat(self, node: _Node) -> float | None:
        boot = node.boot
        node.sequence += 1
        uptime_s = round(time.monotonic() - node.up_since, 1)
        body = (
            f'{{"at":"{now().isoformat()}","sequence":{node.sequence},"engine":{_ENGINE},"gpus":[],'
            f'"agent":{{"version":{json.dumps(boot.agent_version)},"uptime_s":{uptime_s},"engine_restarts":0}}}}'
        )
        status, answer = await self._http.request(
            "POST",
            f"{boot.control_plane_url}/admin/nodes/{quote(boot.node_id)}/heartbeat",
            headers={"content-type": "application/json", "authorization": f"Bearer {node.machine.heartbeat_key}"},
            body=body.encode(),
        )
        if status == 410:
            self._power_off(node, "its node was given up")
        if status != 200:
            return None
        if json.loads(answer)["directive"] == NodeDirective.SHUTDOWN:
            self._power_off(node, "its control plane told it to shut down")
        return boot.heartbeat_interval_s * self._dice.uniform(0.9, 1.1)

    def _power_off(self, node: _Node, why: str) -> None:
        if self._nodes.pop(node.machine.name, None) is node:
            self._powered_off(node.machine, why)
