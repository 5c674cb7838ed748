"""Errors in the words of the real clouds.

The texts are those that boto3, the Google, Azure, Lambda, Oracle and RunPod APIs answer with, with the place and
the type of the refused request filled in. Sources: the clouds' API references and the public issues of SkyPilot,
Karpenter and dstack.
"""

from __future__ import annotations

from dataclasses import dataclass

from skyfleet.domain.states import Market


@dataclass(frozen=True, slots=True)
class Place:
    """What a refused request asked for; fills the gaps of a wording."""

    cloud: str
    region: str = ""
    zone: str | None = None
    instance_type: str = ""
    market: Market = Market.ON_DEMAND
    vcpus: int = 0
    other_zones: tuple[str, ...] = ()  # zones of the region that do have the type now


class Refusal(Exception):
    """A request that the cloud refuses: HTTP status, the cloud's code and its raw text."""

    def __init__(self, cloud: str, code: str, raw: str, status: int = 400) -> None:
        super().__init__(raw)
        self.cloud = cloud
        self.code = code
        self.raw = raw
        self.status = status


@dataclass(frozen=True, slots=True)
class _Wording:
    code: str
    status: int
    text: str


def _aws(code: str, status: int, text: str, operation: str = "RunInstances") -> _Wording:
    return _Wording(code, status, f"An error occurred ({code}) when calling the {operation} operation: {text}")


def _azure(code: str, status: int, text: str) -> _Wording:
    return _Wording(code, status, f"({code}) {text}\nCode: {code}\nMessage: {text}")


_SPOT_QUOTA = (
    "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket that"
)

#: By cloud, then by the code as the cloud spells it.
_WORDINGS: dict[str, list[_Wording]] = {
    "aws": [
        _Wording(
            "InsufficientInstanceCapacity",
            500,
            "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation (reached max "
            "retries: 0): We currently do not have sufficient {instance_type} capacity in the Availability Zone you "
            "requested ({zone}). Our system will be working on provisioning additional capacity.{choose}",
        ),
        _aws(
            "UnfulfillableCapacity",
            400,
            "Unable to fulfill capacity due to your request configuration. Please adjust your request and try again.",
            "CreateFleet",
        ),
        _aws("InsufficientFreeAddressesInSubnet", 400, "There are not enough free addresses in subnet."),
        _aws(
            "Unsupported",
            400,
            "Your requested instance type ({instance_type}) is not supported in your requested Availability Zone "
            "({zone}). Please retry your request by not specifying an Availability Zone.",
        ),
        _aws(
            "VcpuLimitExceeded",
            400,
            f"{_SPOT_QUOTA} the specified instance type belongs to. Please visit "
            "http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.",
        ),
        _aws("MaxSpotInstanceCountExceeded", 400, "Max spot instance count exceeded"),
        _aws(
            "InstanceLimitExceeded", 400, "You have requested more instances than your current instance limit allows."
        ),
        _aws(
            "SpotMaxPriceTooLow", 400, "Your Spot request price is lower than the minimum required Spot request price."
        ),
        _aws("RequestLimitExceeded", 503, "Request limit exceeded."),
        _aws("InternalError", 500, "An internal error has occurred"),
        _aws("ServiceUnavailable", 503, "The service is unavailable. Please try again shortly."),
        _aws("UnauthorizedOperation", 403, "You are not authorized to perform this operation."),
        _aws("AuthFailure", 401, "AWS was not able to validate the provided access credentials"),
        _aws(
            "InvalidClientTokenId", 403, "The security token included in the request is invalid.", "GetCallerIdentity"
        ),
        _aws("ExpiredToken", 400, "The provided token has expired.", "GetCallerIdentity"),
        _aws("PendingVerification", 400, "Your request for accessing resources in this region is being validated"),
        _aws("InvalidAMIID.NotFound", 400, "The image id '[ami-0123456789abcdef0]' does not exist"),
        _aws("InvalidParameterValue", 400, "Invalid value '{instance_type}' for InstanceType."),
    ],
    "gcp": [
        _Wording(
            "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
            503,
            "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS: The zone 'projects/skyfleet-sandbox/zones/{zone}' does not "
            "have enough resources available to fulfill the request.  '(resource type:compute)'.",
        ),
        _Wording(
            "ZONE_RESOURCE_POOL_EXHAUSTED",
            503,
            "ZONE_RESOURCE_POOL_EXHAUSTED: The zone 'projects/skyfleet-sandbox/zones/{zone}' does not have enough "
            "resources available to fulfill the request.  Try a different zone, or try again later.",
        ),
        _Wording("GPUS_ALL_REGIONS", 403, "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally."),
        _Wording("QUOTA_EXCEEDED", 403, "Quota 'CPUS' exceeded.  Limit: 24.0 in region {region}."),
        _Wording(
            "VM_MIN_COUNT_NOT_REACHED",
            403,
            "VM_MIN_COUNT_NOT_REACHED: Requested minimum count of 1 VMs could not be created. QUOTA_EXCEEDED: Quota "
            "'PREEMPTIBLE_NVIDIA_T4_GPUS' exceeded.  Limit: 0.0 in region {region}.",
        ),
        _Wording("IAM_PERMISSION_DENIED", 403, "IAM_PERMISSION_DENIED: Policy update access denied."),
        _Wording("rateLimitExceeded", 403, "rateLimitExceeded: Rate Limit Exceeded"),
        _Wording(
            "invalid",
            400,
            "Invalid value for field 'resource.machineType': 'zones/{zone}/machineTypes/{instance_type}'. Machine type "
            "with name '{instance_type}' does not exist in zone '{zone}'.",
        ),
    ],
    "azure": [
        _azure(
            "SkuNotAvailable",
            409,
            "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: "
            "{instance_type}' is currently not available in location '{region}'. Please try another size or deploy to "
            "a different location or different zone.",
        ),
        _azure(
            "AllocationFailed",
            409,
            "Allocation failed. We do not have sufficient capacity for the requested VM size in this region.",
        ),
        _azure(
            "QuotaExceeded",
            409,
            "Operation could not be completed as it results in exceeding approved Total Regional Cores quota. "
            "Location: {region}, Current Limit: 0, Current Usage: 0, Additional Required: {vcpus}",
        ),
        _azure(
            "OperationNotAllowed",
            409,
            "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Location: "
            "{region}, Current Limit: 3, Current Usage: 0, Additional Required: {vcpus}",
        ),
        _azure(
            "ReadOnlyDisabledSubscription",
            409,
            "The subscription is disabled and therefore marked as read only. You cannot perform any write actions on "
            "this subscription until it is re-enabled.",
        ),
        _azure("AuthorizationFailed", 403, "The client does not have authorization to perform this action."),
        _azure("TooManyRequests", 429, "The request is being throttled as the limit has been reached."),
        _azure("InvalidParameter", 400, "The value {instance_type} provided for the VM size is not valid."),
    ],
    "lambda": [
        _Wording(
            "instance-operations/launch/insufficient-capacity",
            400,
            "instance-operations/launch/insufficient-capacity: Not enough capacity to fulfill launch request.{regions}",
        ),
        _Wording("global/quota-exceeded", 400, "global/quota-exceeded: Quota exceeded."),
        _Wording("global/invalid-api-key", 401, "global/invalid-api-key: API key was invalid, expired, or deleted."),
        _Wording("global/rate-limited", 429, "Your API requests are being rate limited."),
        _Wording(
            "global/object-does-not-exist", 404, "global/object-does-not-exist: Specified instance type not found."
        ),
    ],
    "oci": [
        _Wording("OutOfHostCapacity", 500, "Out of host capacity."),
        _Wording("LimitExceeded", 400, "LimitExceeded: The following service limits were exceeded: gpu-a10-count."),
        _Wording(
            "NotAuthorizedOrNotFound", 404, "NotAuthorizedOrNotFound: Authorization failed or resource not found."
        ),
        _Wording("TooManyRequests", 429, "TooManyRequests: Too many requests for the tenancy."),
        _Wording("InvalidParameter", 400, "InvalidParameter: Shape {instance_type} is not valid."),
    ],
    "runpod": [
        _Wording(
            "NoInstancesAvailable",
            500,
            "There are no longer any instances available with the requested specifications. Please refresh and try "
            "again.",
        ),
        _Wording("TooManyRequests", 429, "Too many requests"),
    ],
}

_SPOT_CAPACITY = {"azure": "SkuNotAvailable"}
_CAPACITY = {
    "aws": "InsufficientInstanceCapacity",
    "gcp": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "azure": "AllocationFailed",
    "lambda": "instance-operations/launch/insufficient-capacity",
    "oci": "OutOfHostCapacity",
    "runpod": "NoInstancesAvailable",
}
_RATE_LIMIT = {
    "aws": "RequestLimitExceeded",
    "gcp": "rateLimitExceeded",
    "azure": "TooManyRequests",
    "lambda": "global/rate-limited",
    "oci": "TooManyRequests",
    "runpod": "TooManyRequests",
}
_NOT_SOLD = {
    "aws": "InvalidParameterValue",
    "gcp": "invalid",
    "azure": "InvalidParameter",
    "lambda": "global/object-does-not-exist",
    "oci": "InvalidParameter",
}


def known_codes() -> list[str]:
    """Every code that `real` has a wording for."""
    return sorted({wording.code for wordings in _WORDINGS.values() for wording in wordings})


def real(code: str, place: Place) -> Refusal:
    """The refusal with that code, in the words of `place.cloud`, or of the one cloud that uses the code.

    Raises `KeyError` for a code that no cloud here uses.
    """
    clouds = [place.cloud, *(cloud for cloud in _WORDINGS if cloud != place.cloud)]
    for cloud in clouds:
        for wording in _WORDINGS.get(cloud, []):
            if wording.code == code:
                return Refusal(place.cloud, code, _fill(wording.text, place), wording.status)
    raise KeyError(code)


def no_capacity(place: Place) -> Refusal:
    """The place has none of that type left in that market."""
    code = _CAPACITY.get(place.cloud)
    if place.market is Market.SPOT:
        code = _SPOT_CAPACITY.get(place.cloud, code)
    if code is None:
        where = place.zone or place.region
        return Refusal(place.cloud, "NoCapacity", f"No capacity for {place.instance_type} in {where}.", 503)
    return real(code, place)


def rate_limited(place: Place) -> Refusal:
    """Too many requests, as that cloud says it."""
    code = _RATE_LIMIT.get(place.cloud)
    return real(code, place) if code else Refusal(place.cloud, "RateLimited", "Too many requests.", 429)


def not_sold(place: Place) -> Refusal:
    """No such instance type in that place and market."""
    code = _NOT_SOLD.get(place.cloud)
    if code is None:
        where = place.zone or place.region or place.cloud
        return Refusal(place.cloud, "NotSold", f"{place.instance_type} ({place.market}) is not sold in {where}.")
    return real(code, place)


def _fill(text: str, place: Place) -> str:
    others = ", ".join(place.other_zones)
    choose = (
        f" You can currently get {place.instance_type} capacity by not specifying an Availability Zone in your "
        f"request or choosing {others}."
        if others
        else ""
    )
    return text.format(
        instance_type=place.instance_type,
        region=place.region,
        zone=place.zone or place.region,
        vcpus=place.vcpus,
        choose=choose,
        regions=f" Regions with capacity available: {others}" if others else "",
    )
