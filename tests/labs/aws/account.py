"""The lab's AWS account: what moto holds, as the rest of the lab sees it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, Final

# Before moto: its images are read when the first region is touched.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "true")

from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import elastic_network_interfaces as network_interfaces

from tests.labs.aws.catalog import REGIONS
from tests.labs.aws.records import Instance

ID: Final = DEFAULT_ACCOUNT_ID
#: First half of the public addresses of machines that are there, in a box, and of those that are not: the latter are on
#: loopback, where a connection is refused at once.
SOMEWHERE: Final = "54.214"
NOWHERE: Final = "127.214"


def ec2(region: str) -> Any:
    """moto's EC2 of a region."""
    return get_backend("ec2")[ID][region]


def instances() -> Iterator[tuple[str, Any]]:
    """Every instance that moto knows, with its region."""
    for region in REGIONS:
        for reservation in list(ec2(region).reservations.values()):
            for instance in reservation.instances:
                yield region, instance


def find(instance_id: str) -> tuple[str, Any]:
    """The region and moto's instance of that id; StopIteration if there is none."""
    return next((region, instance) for region, instance in instances() if instance.id == instance_id)


def zone_of(region: str, subnet_id: str | None) -> str | None:
    """The zone that a subnet lies in."""
    return next((str(zone) for zone, subnets in ec2(region).subnets.items() if subnet_id in subnets), None)


def role_of(instance: Instance) -> str | None:
    """The role that an instance has through its profile."""
    for association in ec2(instance.region).iam_instance_profile_associations.values():
        if association.instance.id == instance.id:
            return next((str(role.name) for role in association.iam_instance_profile.roles), None)
    return None


def ledger_row(region: str, instance: Any) -> Instance:
    """What the ledger says of one of moto's instances."""
    return Instance(
        id=instance.id,
        region=region,
        zone=instance.placement.zone,
        state=instance._state.name,
        instance_type=instance.instance_type,
        market="spot" if instance.lifecycle == "spot" else "on_demand",
        public_ip=instance.public_ip,
        private_ip=instance.private_ip,
        tags={tag["key"]: tag["value"] for tag in instance.get_tags()},
    )


def machines_wanted() -> dict[str, tuple[Instance, str]]:
    """Every instance by its id, and its user data: those that run want a machine."""
    return {
        instance.id: (ledger_row(region, instance), instance.user_data.decode() if instance.user_data else "")
        for region, instance in instances()
    }


def interrupt(instance_id: str) -> None:
    """Terminate an instance because its spot capacity is wanted elsewhere."""
    region, instance = find(instance_id)
    ec2(region).terminate_instances([instance_id])
    instance.state_reason = type(instance.state_reason)(
        "Server.SpotInstanceTermination: Spot instance termination", "Server.SpotInstanceTermination"
    )


def turned_off(instance_id: str) -> None:
    """An instance's own system shut down: it is stopped, or terminated where the launch asked for that."""
    region, instance = find(instance_id)
    if instance.instance_initiated_shutdown_behavior == "terminate":
        ec2(region).terminate_instances([instance_id])
    else:
        ec2(region).stop_instances([instance_id])


def number_addresses(network: str) -> None:
    """Give instances public addresses `network`.0.1, .0.2, …: moto's own are random ones of the real AWS."""
    numbers = itertools.count(1)

    def next_address() -> str:
        return "{}.{}.{}".format(network, *divmod(next(numbers), 256))

    network_interfaces.random_public_ip = next_address  # type: ignore[attr-defined]


def furnish() -> None:
    """Give moto what every real account has and moto's own lacks: a way out of the default network of each region.

    And the role that SkyPilot gives its machines: it makes that itself where there is none, and then sleeps 15 s.
    """
    for region in REGIONS:
        backend = ec2(region)
        network = next(vpc for vpc in backend.vpcs.values() if vpc.is_default)
        gateway = backend.create_internet_gateway()
        backend.attach_internet_gateway(gateway.id, network.id)
        table = next(
            table
            for table in backend.route_tables.values()
            if table.vpc_id == network.id and table.main_association_id is not None
        )
        backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
    iam = get_backend("iam")[ID]["aws"]
    allowed = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.create_role("skypilot-v1", trust, "/", None, "", [], None)
    iam.create_instance_profile("skypilot-v1", "/", [])
    iam.add_role_to_instance_profile("skypilot-v1", "skypilot-v1")
