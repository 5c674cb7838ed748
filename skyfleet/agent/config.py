"""The boot file: all that a machine is told at creation (`skyfleet.domain.offers.NodeBoot` as JSON)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skyfleet import __version__

EVERY_ADDRESS = ("0.0.0.0", "::")
LOOPBACK = "127.0.0.1"
_HANG_AFTER_S = 60.0


class BootError(Exception):
    """The boot file is missing, unreadable or incomplete; the text says which key."""


@dataclass(frozen=True)
class Boot:
    """What the agent uses of the boot file. The cloud adds `host`, `port` and `shutdown_command` at boot.

    `host` is the address that the engine binds, `advertise_host` the one that it is reached at if that is another;
    `port` is the engine's, 0 for one that is free on a machine that others use too;
    `heartbeat_interval_s` is seconds, as is `control_plane_patience_s`: a control plane that is away for longer is gone
    for good, and the machine with it (None: it is waited for). `metadata_url` is where the cloud's instance metadata
    is, if not at its usual address; an engine that was silent for `engine_hang_after_s` hangs (see `hang`).
    """

    control_plane_url: str
    node_id: str
    registration_token: str
    provider: str
    region: str
    instance_type: str
    model_name: str
    engine: str
    host: str
    port: int
    agent_version: str = __version__  # as the launch named it
    engine_args: tuple[str, ...] = ()
    engine_command: tuple[str, ...] = ()
    model_source: str | None = None
    gpu_type: str | None = None
    spot_instance: bool = False
    sandbox: bool = False
    env: tuple[tuple[str, str], ...] = ()
    heartbeat_interval_s: float = 10.0
    shutdown_command: tuple[str, ...] = ()
    advertise_host: str | None = None
    control_plane_patience_s: float | None = None
    metadata_url: str | None = None
    engine_hang_after_s: float = _HANG_AFTER_S
    traceparent: str | None = None  # of the launch's trace, told again with what belongs to the launch

    @property
    def endpoint_url(self) -> str:
        """Where the engine is reached."""
        return _url(self.advertise_host or self.host, self.port)

    @property
    def local_url(self) -> str:
        """Where the engine is reached from this machine: its public address need not lead back to itself."""
        return _url(LOOPBACK if self.host in EVERY_ADDRESS else self.host, self.port)

    @property
    def secrets(self) -> list[str]:
        """Values that must never reach a log."""
        return [self.registration_token, *(value for _, value in self.env)]


def load_boot(path: str) -> Boot:
    """Read the boot file. Raises `BootError`; keys that the agent has no use for are left alone."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BootError(f"cannot read the boot file {path}: {error.strerror}") from None
    except ValueError:
        raise BootError(f"the boot file {path} is not JSON") from None
    if not isinstance(raw, dict):
        raise BootError(f"the boot file {path} is not a JSON object")
    engine = raw.get("engine")
    if not isinstance(engine, dict):
        raise BootError("the boot file's `engine` is not an object")
    env = raw.get("env") or {}
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise BootError("the boot file's `env` is not an object of strings")
    interval = raw.get("heartbeat_interval_s", 10.0)
    if isinstance(interval, bool) or not isinstance(interval, (int, float)) or not interval > 0:
        raise BootError("the boot file's `heartbeat_interval_s` is not a positive number")
    port = raw.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise BootError("the boot file's `port` is not a port number")
    url = _text(raw, "control_plane_url").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BootError("the boot file's `control_plane_url` is not an http or https address")
    return Boot(
        control_plane_url=url,
        node_id=_text(raw, "node_id"),
        registration_token=_text(raw, "registration_token"),
        provider=_text(raw, "provider"),
        region=_text(raw, "region"),
        instance_type=_text(raw, "instance_type"),
        model_name=_text(raw, "model_name"),
        engine=_text(engine, "name"),
        host=_text(raw, "host"),
        port=port,
        agent_version=_optional_text(raw, "agent_version") or __version__,
        engine_args=_strings(engine, "args"),
        engine_command=_strings(engine, "command"),
        model_source=_optional_text(raw, "model_source"),
        gpu_type=_optional_text(raw, "gpu_type"),
        spot_instance=raw.get("spot_instance") is True,
        sandbox=raw.get("sandbox") is True,
        env=tuple(sorted(env.items())),
        heartbeat_interval_s=float(interval),
        shutdown_command=_strings(raw, "shutdown_command"),
        advertise_host=_optional_text(raw, "advertise_host"),
        control_plane_patience_s=_optional_seconds(raw, "control_plane_patience_s"),
        metadata_url=(_optional_text(raw, "metadata_url") or "").rstrip("/") or None,
        engine_hang_after_s=_optional_seconds(raw, "engine_hang_after_s") or _HANG_AFTER_S,
        traceparent=_optional_text(raw, "traceparent"),
    )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise BootError(f"the boot file has no `{key}`")
    return value


def _optional_text(raw: dict[str, Any], key: str) -> str | None:
    return None if raw.get(key) is None else _text(raw, key)


def _optional_seconds(raw: dict[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise BootError(f"the boot file's `{key}` is not a positive number")
    return float(value)


def _strings(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BootError(f"the boot file's `{key}` is not a list of strings")
    return tuple(value)
