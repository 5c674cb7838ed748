"""The labels that say at the cloud whose machine it is, and which offer it was bought as.

Keys and values keep to what the strictest cloud takes (GCP: lower case letters, digits, `-` and `_`, 63 characters).
"""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal

from skyfleet.domain.offers import Offer

OWNER = "skyfleet-owner"
LAUNCH = "skyfleet-launch"
OFFER = "skyfleet-offer"
PRICE = "skyfleet-price"  # USD an hour in millionths, so that it is read back exactly

_LONGEST = 63
_MICRO = Decimal(1_000_000)


def value(text: str) -> str:
    """The text as a label value; one that had to be changed ends in its hash, so that two never become one."""
    safe = re.sub(r"[^a-z0-9_-]", "-", text.lower())
    if safe == text and len(safe) <= _LONGEST:
        return safe
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: _LONGEST - 9]}-{digest}"


def offer_value(offer: Offer) -> str:
    """Identifies the offer; not meant to be read back."""
    return hashlib.sha256(offer.key.encode()).hexdigest()[:16]


def price_value(offer: Offer) -> str:
    """The offer's price."""
    return str(int(offer.hourly_price * _MICRO))


def price_of(value: str | None) -> Decimal:
    """The price in a label, USD an hour; 0 where there is none."""
    return Decimal(value or 0) / _MICRO
