"""Settings of every Skyfleet process, from the environment (`SKYFLEET_…`) and nothing else.

A secret can be given by file: `SKYFLEET_ADMIN_TOKEN_FILE=/run/secrets/admin_token` (as Compose and Kubernetes
mount them) stands for `SKYFLEET_ADMIN_TOKEN`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_BY_FILE = (
    "admin_token",
    "database_url",
    "metrics_token",
    "model_bucket_access_key_id",
    "model_bucket_secret_access_key",
)


class Settings(BaseSettings):
    """All settings, with their units in the name."""

    # An empty variable is one that is not set: Compose cannot leave one out.
    model_config = SettingsConfigDict(env_prefix="SKYFLEET_", env_ignore_empty=True, extra="ignore")

    # where things are
    database_url: SecretStr = SecretStr("postgresql://skyfleet@127.0.0.1:5432/skyfleet")
    temporal_address: str = "127.0.0.1:7233"
    temporal_namespace: str = "default"
    temporal_ui_url: str = "http://127.0.0.1:8233"
    public_url: str = "http://127.0.0.1:8080"  # where node agents reach the API
    local_cloud_url: str | None = None  # set: the sandbox's local cloud is one of the backends

    # SkyPilot: which API server, and with which token, are its own settings (`SKYPILOT_API_SERVER_ENDPOINT`, …)
    skypilot: bool = False  # set: what its enabled clouds sell can be launched
    skypilot_settle_seconds: float = Field(default=30.0, ge=0)  # how late a cloud may show a machine it was asked for
    skypilot_throttle_seconds: float = Field(default=30.0, ge=0)  # how long a create waits while the cloud puts it off

    # machines of real clouds
    node_port: int = Field(
        default=8000, gt=0, lt=65_536
    )  # where the engine listens, open to whoever may reach the node
    node_disk_gb: int = Field(default=200, ge=20)
    node_image: str | None = None  # None: SkyPilot's default for the cloud
    node_autostop_minutes: int = Field(default=10, ge=1)  # a node whose agent ended turns itself off this much later

    # the model bucket: any S3-compatible store
    model_bucket_url: str | None = None  # s3://bucket/prefix
    model_bucket_endpoint: str | None = None  # None: AWS itself
    model_bucket_region: str = "us-east-1"
    model_bucket_access_key_id: SecretStr | None = None
    model_bucket_secret_access_key: SecretStr | None = None
    model_bucket_refresh_seconds: float = Field(default=3_600.0, ge=10.0)

    # who we are
    owner: str = "skyfleet"  # tag on every machine that this control plane pays for
    sandbox: bool = False  # the embedded stack: everything is marked so
    admin_token: SecretStr | None = None

    # what a process tells of itself
    log_format: Literal["text", "json"] = "text"
    metrics_token: SecretStr | None = None  # of whoever scrapes the API; None: whoever is on this machine
    temporal_metrics_port: int = Field(default=0, ge=0, lt=65_536)  # of a worker, for the Temporal SDK's own; 0: none

    # API
    api_host: str = "127.0.0.1"
    api_port: int = 8080
    cors_origins: list[str] = []
    max_body_bytes: int = 1_000_000
    launch_rate_per_minute: int = Field(default=600, ge=0)  # for each key; 0: no limit
    database_pool_size: int = 10

    # worker
    worker_queues: list[str] = ["control", "provision", "teardown"]
    worker_health_port: int = 0  # of /health and /metrics; 0: none
    worker_health_host: str = "127.0.0.1"  # of both its ports
    provision_concurrency: int = Field(default=20, ge=1)
    teardown_concurrency: int = Field(default=20, ge=1)
    control_concurrency: int = Field(default=50, ge=1)
    sweep_interval_seconds: float = Field(default=10.0, ge=1.0)
    compare_interval_seconds: float = Field(default=30.0, gt=0)  # of what the clouds have with what the database knows
    heartbeat_interval_seconds: float = Field(default=10.0, gt=0)  # asked of node agents
    poll_interval_seconds: float = Field(default=30.0, gt=0)  # of each engine's health endpoint
    cloud_interval_seconds: float = Field(default=60.0, gt=0)  # of each cloud's list of machines
    # how long a node may be unwell before it is replaced; its agent restarts the engine meanwhile
    grace_engine_seconds: float = Field(default=300.0, ge=0)  # the agent is well, the engine is not
    grace_unreachable_seconds: float = Field(default=120.0, ge=0)  # neither answers, the cloud has the machine
    grace_suspect_seconds: float = Field(default=60.0, ge=0)  # only the engine answers, the cloud has no such machine
    engine_hang_seconds: float = Field(default=60.0, gt=0)  # of silence, before an agent starts its engine anew
    termination_alert_seconds: float = 120.0  # a machine that will not go for this long raises an alert

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in _BY_FILE:
            path = os.environ.get(f"SKYFLEET_{name.upper()}_FILE")
            if path and not values.get(name) and (secret := Path(path).read_text().strip()):
                values[name] = secret
        return values


@functools.cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
