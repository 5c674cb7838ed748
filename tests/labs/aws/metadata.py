"""Instance metadata (IMDSv2) for the lab's machines: each is known by the address that it asks from.

Source: the EC2 user guide, "Instance metadata categories" and "Spot Instance interruption notices".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.labs.aws import account
from tests.labs.aws.records import Instance

ADDRESS: Final = "169.254.169.254"
_PREFIX: Final = "/latest/meta-data/"


class Metadata:
    """The WSGI application. `notice` tells when an instance will be interrupted, None if it will not."""

    def __init__(self, notice: Callable[[str], datetime | None]) -> None:
        self._notice = notice
        self._token = secrets.token_urlsafe()

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        status, text = self._answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ)
        start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        return [text.encode()]

    def _answer(self, method: str, path: str, environ: WSGIEnvironment) -> tuple[str, str]:
        if (method, path) == ("PUT", "/latest/api/token"):
            if not environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS", "").isdigit():
                return "400 Bad Request", ""
            return "200 OK", self._token
        if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") != self._token:
            return "401 Unauthorized", ""
        asking = [
            account.ledger_row(region, instance)
            for region, instance in account.instances()
            if instance.public_ip == environ["REMOTE_ADDR"]
        ]
        values = self._values(asking[0]) if asking else {}
        value = values.get(path.removeprefix(_PREFIX).rstrip("/")) if path.startswith(_PREFIX) else None
        return ("404 Not Found", "") if value is None else ("200 OK", value)

    def _values(self, instance: Instance) -> dict[str, str]:
        values = {
            "instance-id": instance.id,
            "instance-type": instance.instance_type,
            "instance-life-cycle": instance.market.replace("_", "-"),
            "placement/availability-zone": instance.zone,
            "placement/region": instance.region,
            "local-ipv4": instance.private_ip,
            "public-ipv4": instance.public_ip or "",
        }
        role = account.role_of(instance)
        if role is not None:
            values["iam/security-credentials"] = role
            values[f"iam/security-credentials/{role}"] = json.dumps(_credentials())
        interruption = self._notice(instance.id)
        if interruption is not None:
            time = _time(interruption)
            values["spot/instance-action"] = json.dumps({"action": "terminate", "time": time})
            values["spot/termination-time"] = time
        return values


def _credentials() -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": _time(now),
        "Expiration": _time(now + timedelta(hours=6)),
        "AccessKeyId": "ASIAIOSFODNN7EXAMPLE",
        "SecretAccessKey": "secret-of-the-machine",
        "Token": secrets.token_urlsafe(),
    }


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
