"""The lab's AWS: moto behind a layer that injects faults, keeps a log of calls and shows the ledger. One process.

    python -m tests.labs.aws.cloud --port 5555 [--machines FOLDER]

AWS's own API and the lab's (`/_lab/…`, see `records`) share the port. In a private box (`tests/labs/box.sh`) and with a
folder for them, instances have machines, and those have instance metadata.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pydantic import BaseModel
from werkzeug.serving import make_server, run_simple
from werkzeug.test import run_wsgi_app

from tests.labs.aws import account, metadata, runtime, wordings
from tests.labs.aws.machines import Machines
from tests.labs.aws.records import Call, Fault, Preemption, Rule

CONTROL: Final = "/_lab/"
#: Calls after which a machine may have to be turned on or off.
_CHANGES: Final = ("RunInstances", "StartInstances", "StopInstances", "TerminateInstances")


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
        self._machines: Machines | None = None
        self._lock = threading.Lock()
        #: One RunInstances at a time takes effect: a token that comes again must find what its first coming made.
        self._launching = threading.Lock()
        self._launched: dict[tuple[str, str], Reply] = {}
        self._rules: list[Rule] = []
        self._rules_ever = 0
        self._removed: dict[int, threading.Event] = {}
        self._calls: list[Call] = []
        self._notices: dict[str, datetime] = {}

    def give_machines(self, folder: Path, box: str, port: int) -> None:
        """Give every running instance a machine. `folder` is for their files, `port` is where they find this cloud."""
        env = {
            "AWS_ENDPOINT_URL": f"http://{box}:{port}",
            # No index can be reached: say so at once instead of trying for minutes.
            "UV_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
        }
        self._machines = Machines(folder, runtime.folder(), box, env, account.machines_wanted, account.turned_off)
        imds = make_server(metadata.ADDRESS, 80, metadata.Metadata(self._notices.get), threaded=True)
        threading.Thread(target=imds.serve_forever, daemon=True).start()

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
                return Reply.of_models(account.ledger_row(*found) for found in account.instances())
            case "POST", ["preemptions"]:
                return self._preempt(Preemption.model_validate_json(body))
        return Reply.of_json(f"no such control: {method} {path}", "404 NOT FOUND")

    def _preempt(self, order: Preemption) -> Reply:
        account.find(order.instance_id)
        if order.notice_s:
            self._notices[order.instance_id] = datetime.now(UTC) + timedelta(seconds=order.notice_s)
            interruption = threading.Timer(order.notice_s, self._interrupt, (order.instance_id,))
            interruption.daemon = True
            interruption.start()
        else:
            self._interrupt(order.instance_id)
        return Reply.of_json(None)

    def _interrupt(self, instance_id: str) -> None:
        account.interrupt(instance_id)
        self._follow()

    def _follow(self) -> None:
        if self._machines is not None:
            self._machines.follow()

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
            status, text = wordings.refusal(rule, call, image=parameters.get("ImageId"), account=account.ID)
            reply = Reply(f"{status} {rule.code}", [("Content-Type", "text/xml;charset=UTF-8")], text.encode())
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
        if call.action == "RunInstances":
            # EC2 makes one reservation of one token, however often it comes; moto takes no notice of it.
            key = (call.region, parameters.get("ClientToken", ""))
            with self._launching:
                reply = self._launched.get(key) or self._forward(environ)
                if reply.status.startswith("200") and key[1]:
                    self._launched[key] = reply
        else:
            reply = self._forward(environ)
        if call.action in _CHANGES:
            self._follow()
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
        call.zone = account.zone_of(region, parameters.get("NetworkInterface.1.SubnetId"))
    return call


def _matches(rule: Rule, call: Call) -> bool:
    wanted = {name: getattr(rule, name) for name in Call.model_fields if name in Fault.model_fields}
    return all(value is None or value == getattr(call, name) for name, value in wanted.items())


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="lab-aws")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--machines", type=Path)
    options = parser.parse_args()
    account.furnish()
    cloud = Cloud()
    if options.machines is None:
        host, addresses = "127.0.0.1", account.NOWHERE
    else:
        host, addresses = "0.0.0.0", account.SOMEWHERE
        cloud.give_machines(options.machines, os.environ["SKYFLEET_LAB_BOX"], options.port)
    account.number_addresses(addresses)
    run_simple(host, options.port, cloud, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
