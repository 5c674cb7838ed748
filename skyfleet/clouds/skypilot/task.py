"""What SkyPilot is told to make and to run: one machine, in one place, with our agent on it.

Set-up fetches the agent from the control plane, checks it, and has it install the engine; run is the agent. The job
lives as long as the agent does: once that has ended, because it was told to or because the control plane is gone for
good, the machine is idle, and SkyPilot's autostop, which runs on the machine itself, takes it down.

All that is secret (the registration token, the launch's environment, the keys of the model bucket) is in the boot file,
and that is a SkyPilot secret: set on the machine, and redacted wherever SkyPilot shows a task.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from skyfleet.clouds.skypilot import labels
from skyfleet.clouds.skypilot.catalog import machine_of
from skyfleet.domain.offers import CreateRequest, NodeBoot
from skyfleet.domain.states import Market
from skyfleet.settings import Settings

#: A control plane that did not answer a node for so long will not end it either. Seconds.
CONTROL_PLANE_PATIENCE_S: Final = 6 * 3600.0
#: One's own clusters: their nodes have no disk, ports, image or spot market to ask for, and are shared with others.
_OWN_CLUSTERS: Final = frozenset({"slurm"})
_EVERY_ADDRESS: Final = "0.0.0.0"

# Everything that the scripts use comes from the environment, so that nothing is quoted into them.
_SETUP: Final = r"""
set -euo pipefail
umask 077
folder="$HOME/.skyfleet/$SKYFLEET_NODE"
mkdir -p "$folder"
cd "$folder"
python3 - "$SKYFLEET_AGENT_URL" "$SKYFLEET_AGENT_SHA256" <<'PYTHON'
import hashlib, sys, time, urllib.error, urllib.request

url, wanted = sys.argv[1:]
for pause in (1, 2, 4, 8, 15, 15, 15, None):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            agent = answer.read()
        break
    except (OSError, urllib.error.URLError) as error:
        if pause is None:
            sys.exit(f"the node agent could not be fetched from {url}: {error}")
        print(f"fetching the node agent: {error}; again in {pause} s", flush=True)
        time.sleep(pause)
found = hashlib.sha256(agent).hexdigest()
if found != wanted:
    sys.exit(f"the node agent at {url} is not the one that the launch named: SHA-256 {found}, wanted {wanted}")
with open("node-agent.pyz", "wb") as file:
    file.write(agent)
PYTHON
printf %s "$SKYFLEET_BOOT" | base64 --decode >boot.json
python3 node-agent.pyz install --boot boot.json --engines "$HOME/.skyfleet/engines"
"""
_RUN: Final = r"""
cd "$HOME/.skyfleet/$SKYFLEET_NODE"
unset SKYFLEET_BOOT
export PATH="$HOME/.skyfleet/engines/$SKYFLEET_ENGINE/bin:$PATH"
exec python3 node-agent.pyz --boot boot.json --state-dir "$PWD/state"
"""


@dataclass(frozen=True)
class NodeDefaults:
    """What every machine of a real cloud gets. `disk_gb` is GB; `bucket_env` gives engines the model bucket's keys."""

    port: int
    disk_gb: int
    image: str | None
    autostop_minutes: int
    bucket_env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Settings) -> NodeDefaults:
        """As the settings have it."""
        bucket = {
            "AWS_ACCESS_KEY_ID": config.model_bucket_access_key_id,
            "AWS_SECRET_ACCESS_KEY": config.model_bucket_secret_access_key,
        }
        env = {name: value.get_secret_value() for name, value in bucket.items() if value is not None}
        if env:
            env["AWS_DEFAULT_REGION"] = config.model_bucket_region
            if config.model_bucket_endpoint:
                # Run:ai Model Streamer's own names for a store that is not AWS.
                env["AWS_ENDPOINT_URL"] = config.model_bucket_endpoint
                env["RUNAI_STREAMER_S3_ENDPOINT"] = config.model_bucket_endpoint
                env["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
        return cls(
            port=config.node_port,
            disk_gb=config.node_disk_gb,
            image=config.node_image,
            autostop_minutes=config.node_autostop_minutes,
            bucket_env=env,
        )


def task_config(request: CreateRequest, node: NodeDefaults) -> dict[str, Any]:
    """A task as SkyPilot's YAML has it (SkyPilot documentation, "Task YAML"), for `sky.Task.from_yaml_config`."""
    boot = request.boot
    return {
        "name": request.name,
        "resources": _resources(request, node),
        "envs": {
            "SKYFLEET_NODE": boot.node_id,
            "SKYFLEET_ENGINE": boot.engine.name,
            "SKYFLEET_AGENT_URL": f"{boot.control_plane_url.rstrip('/')}/downloads/node-agent/{boot.agent_version}",
            "SKYFLEET_AGENT_SHA256": boot.agent_sha256,
        },
        "secrets": {"SKYFLEET_BOOT": _boot_file(boot, _port(request, node), node.bucket_env)},
        "setup": _SETUP,
        "run": _RUN,
    }


def _resources(request: CreateRequest, node: NodeDefaults) -> dict[str, Any]:
    offer = request.offer
    instance_type, accelerators = machine_of(offer)
    resources: dict[str, Any] = {
        "infra": "/".join(filter(None, (offer.cloud, offer.region, offer.zone))),
        "instance_type": instance_type,
        "labels": {
            **{_label_name(name): labels.value(value) for name, value in request.tags.items()},
            # Ours last: what a person tags must not hide whose machine it is.
            labels.OWNER: labels.value(request.owner),
            labels.LAUNCH: labels.value(request.boot.launch_id),
            labels.OFFER: labels.offer_value(offer),
            labels.PRICE: labels.price_value(offer),
        },
        # Not a shutdown by the agent: on AWS that only stops the machine, and its disk goes on costing.
        "autostop": {"idle_minutes": node.autostop_minutes, "down": True},
    }
    if accelerators:
        resources["accelerators"] = accelerators
    if offer.cloud not in _OWN_CLUSTERS:
        resources |= {
            "use_spot": offer.market is Market.SPOT,
            "disk_size": node.disk_gb,
            "ports": [node.port],
        }
        if node.image:
            resources["image_id"] = node.image
    return resources


def _label_name(name: str) -> str:
    """A tag's name as the strictest cloud takes it."""
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())[:63].strip("-_") or "tag"


def _port(request: CreateRequest, node: NodeDefaults) -> int:
    """The node's port; 0, one that is free, on a machine on which other launches may have theirs."""
    return 0 if request.offer.cloud in _OWN_CLUSTERS else node.port


def _boot_file(boot: NodeBoot, port: int, bucket_env: Mapping[str, str]) -> str:
    """The agent's boot file, as one line without anything that a shell or YAML might read otherwise."""
    said = boot.model_dump(mode="json")
    if (boot.model_source or "").startswith("s3://"):
        said["env"] = {**bucket_env, **boot.env}
    said |= {
        "host": _EVERY_ADDRESS,  # reached at an address that only the machine can find out
        "port": port,
        "control_plane_patience_s": CONTROL_PLANE_PATIENCE_S,
    }
    return base64.b64encode(json.dumps(said).encode()).decode()
