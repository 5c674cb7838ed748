"""What the agent keeps across its own restarts, in `--state-dir`, readable by its owner alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class StateInUse(Exception):
    """Another agent works with this state folder."""


class StateDir:
    """The folder: registration secrets, the engine's process group, the model manifest, the engine's log."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def work_dir(self) -> Path:
        """The engine's working folder."""
        folder = self.path / "engine"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def engine_log(self) -> Path:
        """Where the engine's output is kept."""
        return self.path / "engine.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends. Raises `StateInUse`."""
        descriptor = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateInUse(f"another agent works with {self.path}") from None
            yield
        finally:
            os.close(descriptor)

    def idempotency_key(self, node_id: str) -> str:
        """The secret that makes repeated registrations of this node one; made once."""
        return self._node(node_id).get("idempotency_key") or self._keep(
            node_id, idempotency_key=secrets.token_urlsafe(32)
        )

    def port(self, node_id: str, choose: Callable[[], int]) -> int:
        """The port of this node's engine, chosen once: the control plane knows it from the registration on."""
        kept = self._node(node_id).get("port")
        return int(kept or self._keep(node_id, port=str(choose())))

    def heartbeat_key(self, node_id: str) -> str | None:
        """The key that the control plane gave this node at registration; None before that."""
        key = self._node(node_id).get("heartbeat_key")
        return key if isinstance(key, str) else None

    def keep_heartbeat_key(self, node_id: str, key: str) -> None:
        """Remember that this node is registered."""
        self._keep(node_id, heartbeat_key=key)

    def reserve_sequences(self, count: int) -> int:
        """The number before `count` fresh heartbeat sequences, above all that earlier runs of the agent used.

        The control plane writes down no heartbeat whose sequence is not above the last, so an agent that starts anew
        must not start from zero; and one write for many heartbeats is enough.
        """
        used = _read(self.path / "sequence.json").get("reserved")
        first = used if isinstance(used, int) else 0
        write_private(self.path / "sequence.json", {"reserved": first + count})
        return first

    def keep_engine_group(self, group: dict[str, Any]) -> None:
        """Remember which processes are the engine's, so that a later run can end them."""
        write_private(self.path / "engine.json", group)

    def engine_group(self) -> dict[str, Any]:
        """What `keep_engine_group` wrote last; empty when there is nothing readable."""
        return _read(self.path / "engine.json")

    def write_manifest(self, manifest: dict[str, Any]) -> str:
        """Write the model manifest and return its path."""
        path = self.work_dir / "model.json"
        write_private(path, manifest)
        return str(path)

    def _node(self, node_id: str) -> dict[str, Any]:
        kept = _read(self.path / "node.json")
        return kept if kept.get("node_id") == node_id else {}

    def _keep(self, node_id: str, **values: str) -> str:
        write_private(self.path / "node.json", {**self._node(node_id), "node_id": node_id, **values})
        return next(iter(values.values()))


def write_private(path: Path, value: dict[str, Any]) -> None:
    """Replace the file at once, so that a reader or a crash never meets half of it; mode 0600."""
    draft = path.with_suffix(".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
