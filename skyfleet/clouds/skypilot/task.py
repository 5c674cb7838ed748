"""What SkyPilot is told to make: interim, the set-up of the machine is being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skyfleet.clouds.skypilot import labels
from skyfleet.clouds.skypilot.catalog import machine_of
from skyfleet.domain.offers import CreateRequest
from skyfleet.settings import Settings


@dataclass(frozen=True)
class NodeDefaults:
    """What every machine of a real cloud gets. Disk is GB, autostop minutes."""

    port: int
    disk_gb: int
    image: str | None
    autostop_minutes: int

    @classmethod
    def of(cls, config: Settings) -> NodeDefaults:
        """As the settings have it."""
        return cls(config.node_port, config.node_disk_gb, config.node_image, config.node_autostop_minutes)


def task_config(request: CreateRequest, node: NodeDefaults) -> dict[str, Any]:
    """A SkyPilot task, as its YAML."""
    offer = request.offer
    instance_type, accelerators = machine_of(offer)
    return {
        "run": "sleep 3600",
        "resources": {
            "infra": "/".join(filter(None, (offer.cloud, offer.region, offer.zone))),
            "instance_type": instance_type,
            **({"accelerators": accelerators} if accelerators else {}),
            "use_spot": offer.market == "spot",
            "labels": {
                labels.OWNER: labels.value(request.owner),
                labels.OFFER: labels.offer_value(offer),
                labels.PRICE: labels.price_value(offer),
            },
        },
    }
