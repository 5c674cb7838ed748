"""The lab's AWS: moto behind a layer that injects faults, keeps a log of calls and shows the ledger. One process.

    python -m tests.labs.aws.cloud --port 5555

AWS's own API and the lab's (`/_lab/…`, see `records`) share the port, on loopback.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

# Before moto: its images are read when the first region is touched.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "true")

from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import elastic_network_interfaces as network_interfaces
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pydantic import BaseModel
from werkzeug.serving import run_simple
from werkzeug.test import run_wsgi_app

from tests.labs.aws.catalog import REGIONS
from tests.labs.aws.records import Call, Fault, Instance, Rule

CONTROL: Final = "/_lab/"
#: Addresses of machines that are not there: on loopback, where a connection is refused at once.
NOWHERE: Final = "127.214"


@dataclass(frozen=True)
class Wording:
    """How AWS says an error: HTTP status and text, with {type}, {zone}, {action}, {region}, {image}, {encoded}."""

    status: int
    text: str
    spot_text: str | None = None


#: As EC2 answers them. Sources: the EC2 API reference's list of error codes, and messages that users have reported.
WORDINGS: Final = {
    "InsufficientInstanceCapacity": Wording(
        500,
        "We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone}). Our "
        "system will be working on provisioning additional capacity. You can currently get {type} capacity by not "
        "specifying an Availability Zone in your request or choosing another Availability Zone.",
        "There is no Spot capacity available that matches your request.",
    ),
    "MaxSpotInstanceCountExceeded": Wording(400, "Max spot instance count exceeded"),
    "VcpuLimitExceeded": Wording(
        400,
        "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket that "
        "the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request "
        "an adjustment to this limit.",
    ),
    "Unsupported": Wording(
        400,
        "Your requested instance type ({type}) is not supported in your requested Availability Zone ({zone}). Please "
        "retry your request by not specifying an Availability Zone or choosing another Availability Zone.",
    ),
    "UnauthorizedOperation": Wording(
        403,
        "You are not authorized to perform this operation. User: arn:aws:iam::{account}:user/skyfleet-lab is not "
        "authorized to perform: ec2:{action} on resource: arn:aws:ec2:{region}:{account}:instance/* because no "
        "identity-based policy allows the ec2:{action} action. Encoded authorization failure message: {encoded}",
    ),
    "AuthFailure": Wording(401, "AWS was not able to validate the provided access credentials"),
    "InvalidClientTokenId": Wording(403, "The security token included in the request is invalid."),
    "RequestExpired": Wording(400, "Request has expired."),
    "ExpiredToken": Wording(403, "The security token included in the request is expired"),
    "RequestLimitExceeded": Wording(503, "Request limit exceeded."),
    "InvalidAMIID.NotFound": Wording(400, "The image id '[{image}]' does not exist"),
    "InternalError": Wording(500, "An internal error has occurred"),
}
#: What the other services call EC2's two ways of not knowing the caller.
_ELSEWHERE: Final = {"AuthFailure": "InvalidClientTokenId", "RequestExpired": "ExpiredToken"}
_EC2_ERROR: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message>'
    "</Error></Errors><RequestID>{id}</RequestID></Response>"
)
_QUERY_ERROR: Final = (
    "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error>"
    "<RequestId>{id}</RequestId></ErrorResponse>"
)
_ENCODED: Final = base64.urlsafe_b64encode(bytes(range(256)) * 2).decode().rstrip("=")


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def of_json(cls, value: Any, status: str = "200 OK") -> Reply:
        return cls(status, [("Content-Type", "application/json")], json.dumps(value).encode())

    @classmethod
    def of_models(cls, models: Iterable[BaseModel]) -> Reply:
        return cls.of_json([model.model_dump() for model in models])

    def send(self, start: StartResponse) -> list[bytes]:
        headers = [header for header in self.headers if header[0].lower() != "content-length"]
        start(self.status, [*headers, ("Content-Length", str(len(self.body)))])
        return [self.body]


class Cloud:
    """The WSGI application."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        #: One RunInstances at a time takes effect: a token that comes again must find what its first coming made.
        self._launching = threading.Lock()
        self._launched: dict[tuple[str, str], Reply] = {}
        self._rules: list[Rule] = []
        self._rules_ever = 0
        self._removed: dict[int, threading.Event] = {}
        self._calls: list[Call] = []

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            return self._control(environ["REQUEST_METHOD"], path.removeprefix(CONTROL), body).send(start)
        environ["wsgi.input"] = io.BytesIO(body)
        return self._aws(environ, body).send(start)

    def _control(self, method: str, path: str, body: bytes) -> Reply:
        match method, path.split("/"):
            case "GET", ["faults"]:
                with self._lock:
                    return Reply.of_models(self._rules)
            case "POST", ["faults"]:
                with self._lock:
                    self._rules_ever += 1
                    rule = Rule(**Fault.model_validate_json(body).model_dump(), id=self._rules_ever)
                    self._rules.append(rule)
                    self._removed[rule.id] = threading.Event()
                return Reply.of_json(rule.model_dump())
            case "DELETE", ["faults", *ids]:
                with self._lock:
                    for rule in [rule for rule in self._rules if not ids or rule.id == int(ids[0])]:
                        self._rules.remove(rule)
                        self._removed[rule.id].set()
                return Reply.of_json(None)
            case "GET", ["calls"]:
                with self._lock:
                    return Reply.of_models(self._calls)
            case "DELETE", ["calls"]:
                with self._lock:
                    self._calls.clear()
                return Reply.of_json(None)
            case "GET", ["instances"]:
                return Reply.of_models(ledger_row(region, instance) for region, instance in instances())
            case "POST", ["instances", instance_id, "preempt"]:
                return self._preempt(instance_id)
        return Reply.of_json(f"no such control: {method} {path}", "404 NOT FOUND")

    def _preempt(self, instance_id: str) -> Reply:
        for region, instance in instances():
            if instance.id == instance_id:
                get_backend("ec2")[DEFAULT_ACCOUNT_ID][region].terminate_instances([instance_id])
                instance.state_reason = type(instance.state_reason)(
                    "Server.SpotInstanceTermination: Spot instance termination", "Server.SpotInstanceTermination"
                )
                return Reply.of_json(None)
        return Reply.of_json(f"no instance {instance_id}", "404 NOT FOUND")

    def _aws(self, environ: WSGIEnvironment, body: bytes) -> Reply:
        parameters = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        call = _read_call(environ, parameters)
        rule = self._enter(call)
        if rule is None:
            reply = self._ask_moto(environ, call, parameters)
            call.result = reply.status.split()[0]
            return reply
        removed = self._removed[rule.id]
        removed.wait(rule.delay_s)
        if rule.code is not None:
            reply = _error(rule, call, parameters)
            call.result = rule.code
        else:
            reply = self._ask_moto(environ, call, parameters)
            call.result = "dropped" if rule.drop_reply else reply.status.split()[0]
        removed.wait(rule.delay_after_s)
        if rule.drop_reply:
            connection: socket.socket = environ["werkzeug.socket"]
            connection.shutdown(socket.SHUT_RDWR)
        return reply

    def _enter(self, call: Call) -> Rule | None:
        """Write the call down; the rule that it runs into."""
        with self._lock:
            self._calls.append(call)
            for rule in self._rules:
                if _matches(rule, call) and (rule.times is None or rule.hits < rule.times):
                    rule.hits += 1
                    return rule
        return None

    def _ask_moto(self, environ: WSGIEnvironment, call: Call, parameters: dict[str, str]) -> Reply:
        if call.action != "RunInstances":
            return self._forward(environ)
        # EC2 makes one reservation of one token, however often it comes; moto takes no notice of it.
        key = (call.region, parameters.get("ClientToken", ""))
        with self._launching:
            reply = self._launched.get(key)
            if reply is None:
                reply = self._forward(environ)
                if reply.status.startswith("200") and key[1]:
                    self._launched[key] = reply
        return reply

    def _forward(self, environ: WSGIEnvironment) -> Reply:
        chunks, status, headers = run_wsgi_app(self._moto, environ, buffered=True)
        return Reply(status, list(headers), b"".join(chunks))


def _read_call(environ: WSGIEnvironment, parameters: dict[str, str]) -> Call:
    scope = re.search(r"Credential=[^/]*/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    region, service = scope.groups() if scope else ("", "")
    target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
    action = parameters.get("Action") or target or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
    call = Call(at=time.time(), service=service, region=region, action=action)
    if action == "RunInstances":
        call.market = "spot" if parameters.get("InstanceMarketOptions.MarketType") == "spot" else "on_demand"
        call.instance_type = parameters.get("InstanceType")
        call.zone = _zone(region, parameters.get("NetworkInterface.1.SubnetId"))
    return call


def _zone(region: str, subnet_id: str | None) -> str | None:
    for zone, subnets in get_backend("ec2")[DEFAULT_ACCOUNT_ID][region].subnets.items():
        if subnet_id in subnets:
            return str(zone)
    return None


def _matches(rule: Rule, call: Call) -> bool:
    wanted = {name: getattr(rule, name) for name in Call.model_fields if name in Fault.model_fields}
    return all(value is None or value == getattr(call, name) for name, value in wanted.items())


def _error(rule: Rule, call: Call, parameters: dict[str, str]) -> Reply:
    assert rule.code is not None
    on_ec2 = call.service == "ec2"
    code = rule.code if on_ec2 else _ELSEWHERE.get(rule.code, rule.code)
    wording = WORDINGS.get(code, Wording(400, code))
    text = (call.market == "spot" and wording.spot_text) or wording.text
    text = rule.message or text.format(
        type=call.instance_type,
        zone=call.zone,
        action=call.action,
        region=call.region,
        image=parameters.get("ImageId"),
        account=DEFAULT_ACCOUNT_ID,
        encoded=_ENCODED,
    )
    body = (_EC2_ERROR if on_ec2 else _QUERY_ERROR).format(code=code, text=text, id=f"lab-{rule.id}-{rule.hits}")
    return Reply(f"{wording.status} {code}", [("Content-Type", "text/xml;charset=UTF-8")], body.encode())


def instances() -> Iterator[tuple[str, Any]]:
    """Every instance that moto knows, with its region."""
    for region in REGIONS:
        for reservation in list(get_backend("ec2")[DEFAULT_ACCOUNT_ID][region].reservations.values()):
            for instance in reservation.instances:
                yield region, instance


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
        ec2 = get_backend("ec2")[DEFAULT_ACCOUNT_ID][region]
        network = next(vpc for vpc in ec2.vpcs.values() if vpc.is_default)
        gateway = ec2.create_internet_gateway()
        ec2.attach_internet_gateway(gateway.id, network.id)
        table = next(
            table
            for table in ec2.route_tables.values()
            if table.vpc_id == network.id and table.main_association_id is not None
        )
        ec2.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
    iam = get_backend("iam")[DEFAULT_ACCOUNT_ID]["aws"]
    allowed = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.create_role("skypilot-v1", trust, "/", None, "", [], None)
    iam.create_instance_profile("skypilot-v1", "/", [])
    iam.add_role_to_instance_profile("skypilot-v1", "skypilot-v1")


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="lab-aws")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    number_addresses(NOWHERE)
    furnish()
    run_simple("127.0.0.1", options.port, Cloud(), threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
