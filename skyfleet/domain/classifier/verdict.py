"""The vocabulary of the classifier: what a rule says, and how far an error reaches when its text does not say.

Sources of the scopes: where each cloud draws its limits, and what SkyPilot's fail-over and Karpenter's
capacity memory leave out after such an error.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from skyfleet.domain.errors import ErrorKind, ErrorScope
from skyfleet.domain.offers import OWN_CLUSTERS

CAPACITY, QUOTA, AUTH, CONFIG = ErrorKind.CAPACITY, ErrorKind.QUOTA, ErrorKind.AUTH, ErrorKind.CONFIG
TRANSIENT, TIMEOUT, PREEMPTED = ErrorKind.TRANSIENT, ErrorKind.TIMEOUT, ErrorKind.PREEMPTED
ZONE, REGION, CLOUD, ACCOUNT = ErrorScope.ZONE, ErrorScope.REGION, ErrorScope.CLOUD, ErrorScope.ACCOUNT


class Topic(StrEnum):
    """What an error is about, more finely than its kind; it chooses the words for a person and nothing else."""

    GENERAL = "general"
    RATE_LIMIT = "rate_limit"
    NETWORK = "network"
    BILLING = "billing"
    POLICY = "policy"  # an administrator's rule, not a missing permission
    PERMISSION = "permission"  # known, but not allowed
    IMAGE = "image"
    NOT_OFFERED = "not_offered"  # the place does not have this type at all
    RESERVATION = "reservation"
    PRICE = "price"  # the bid is below the spot price
    ADDRESSES = "addresses"
    UNSUPPORTED = "unsupported"  # the cloud lacks a feature
    WRAPPER = "wrapper"  # somebody gave up, without saying why
    VERIFICATION = "verification"
    SSH = "ssh"
    CANCELLED = "cancelled"


class Verdict(NamedTuple):
    """What one code or one phrase says. Without a scope, the text around it decides, then the cloud's default."""

    kind: ErrorKind
    scope: ErrorScope | None = None
    topic: Topic = Topic.GENERAL


class Tier:
    """How much a finding is worth. A lower figure is nearer to the cause and always wins.

    A generic status (HTTP 403, InternalError) is what a specific cause is often delivered in, and SkyPilot's
    wrapper is what every cause is delivered in; so neither may outvote what is inside.
    """

    SPECIFIC = 0
    PHRASE = 1
    STATUS = 2
    WRAPPER = 3
    OUTERMOST = 4


#: Which of several causes of one tier is told: first those that no retry mends (a person must act before
#: anything else matters: credentials, then the request), then those that hold longest. `transient` is last,
#: because a log is full of calls that failed once and then went through.
SEVERITY: tuple[ErrorKind, ...] = (
    AUTH,
    CONFIG,
    QUOTA,
    PREEMPTED,
    CAPACITY,
    ErrorKind.ENGINE,
    TIMEOUT,
    TRANSIENT,
    ErrorKind.UNKNOWN,
)

#: The same request at the same place may succeed later, for all but these: they wait for a person.
NOT_RETRYABLE = frozenset({AUTH, CONFIG, ErrorKind.ENGINE})

WIDTH = {ZONE: 0, REGION: 1, CLOUD: 2, ACCOUNT: 3}

#: Names that stand for no cloud of their own: the real one is read from the text.
WRAPPING_CLOUDS = frozenset({"skypilot", "sky", "local", "sandbox", ""})

ALIASES = {
    "digitalocean": "do",
    "k8s": "kubernetes",
    "lambda_labs": "lambda",
    "lambdalabs": "lambda",
    "lambda-cloud": "lambda",
    "vastai": "vast",
    "vast.ai": "vast",
    "google": "gcp",
    "amazon": "aws",
    "oracle": "oci",
    "prime": "primeintellect",
    "microsoft": "azure",
}

#: Clouds whose smallest place with a capacity of its own is the zone.
_ZONAL = frozenset({"aws", "gcp", "oci", "ibm"})
#: One pool: a cluster or a market without places. What fails, fails for all of it.
SINGLE_POOL = OWN_CLUSTERS | {"vast", "vsphere", "hyperbolic"}
#: Clouds with quotas and API endpoints per region; the others have one account limit and one endpoint.
_REGIONAL_API = frozenset({"aws", "gcp", "azure", "oci", "ibm", "nebius", "scp"})
#: Clouds whose images, networks and keys belong to one region.
_REGIONAL_RESOURCES = frozenset({"aws", "azure", "oci", "ibm", "nebius", "scp"})


def default_scope(cloud: str, kind: ErrorKind, topic: Topic) -> ErrorScope:
    """How far an error of this kind reaches in this cloud when neither its code nor its text says so."""
    if cloud in WRAPPING_CLOUDS:
        return ZONE if kind in (PREEMPTED, TIMEOUT, ErrorKind.UNKNOWN) else ACCOUNT
    if kind in (TIMEOUT, ErrorKind.UNKNOWN) or (topic is Topic.SSH and kind is TRANSIENT):
        return ZONE
    if kind is AUTH or topic is Topic.UNSUPPORTED:
        return CLOUD
    if cloud in SINGLE_POOL:
        return CLOUD
    if kind is PREEMPTED:
        return ZONE
    if kind is CAPACITY:
        return ZONE if cloud in _ZONAL else REGION
    if kind is CONFIG:
        return REGION if cloud in _REGIONAL_RESOURCES else CLOUD
    if cloud == "gcp" and topic is Topic.RATE_LIMIT:
        return CLOUD  # Compute Engine counts API calls per project, not per region
    return REGION if cloud in _REGIONAL_API else CLOUD
