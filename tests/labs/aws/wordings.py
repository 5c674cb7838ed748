"""AWS's errors as AWS words them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

from tests.labs.aws.records import Call, Rule


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
_EC2_BODY: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message>'
    "</Error></Errors><RequestID>{id}</RequestID></Response>"
)
_QUERY_BODY: Final = (
    "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error>"
    "<RequestId>{id}</RequestId></ErrorResponse>"
)
_ENCODED: Final = base64.urlsafe_b64encode(bytes(range(256)) * 2).decode().rstrip("=")


def refusal(rule: Rule, call: Call, *, image: str | None, account: str) -> tuple[int, str]:
    """HTTP status and body of the error that `rule` injects into `call`."""
    assert rule.code is not None
    on_ec2 = call.service == "ec2"
    code = rule.code if on_ec2 else _ELSEWHERE.get(rule.code, rule.code)
    wording = WORDINGS.get(code, Wording(400, code))
    text = wording.spot_text if call.market == "spot" and wording.spot_text else wording.text
    text = rule.message or text.format(
        type=call.instance_type,
        zone=call.zone,
        action=call.action,
        region=call.region,
        image=image,
        account=account,
        encoded=_ENCODED,
    )
    body = _EC2_BODY if on_ec2 else _QUERY_BODY
    return wording.status, body.format(code=code, text=text, id=f"lab-{rule.id}-{rule.hits}")
