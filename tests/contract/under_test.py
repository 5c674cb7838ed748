"""What the contract suite knows of the cloud that it runs on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from skyfleet.clouds.base import Cloud
from skyfleet.domain.offers import CreateRequest, Offer


@dataclass
class CloudUnderTest:
    """One implementation, and the handles that make it do what a contract is about."""

    cloud: Cloud
    #: A request for a machine of that offer under that name.
    request: Callable[[Offer, str], CreateRequest]
    #: Owner of what `request` asks for.
    owner: str
    #: Take away all capacity for an offer.
    exhaust: Callable[[Offer], Awaitable[None]]
    #: A client of an address where no cloud answers.
    unreachable: Callable[[], Cloud]
    #: How long creating or terminating may take, seconds.
    patience_s: float
