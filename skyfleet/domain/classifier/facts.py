# ruff: noqa: E501  a pattern is read whole, and breaking one hides what it matches
"""What a raw error tells besides its kind: place, machine, quota, limit. Only for the words a person reads."""

from __future__ import annotations

import re
from typing import NamedTuple

from skyfleet.domain.offers import Offer
from skyfleet.domain.states import Market

_ZONE = re.compile(
    r"\b((?:us|eu|ap|ca|sa|me|af|il|mx|cn|af)-(?:gov-|iso-)?[a-z]{3,12}-\d[a-z]"  # AWS: us-east-1a
    r"|(?:us|europe|asia|australia|northamerica|southamerica|me|africa)-[a-z]{3,12}\d{1,2}-[a-z])\b",  # GCP
    re.IGNORECASE,
)
_REGION = re.compile(
    r"\b((?:us|eu|ap|ca|sa|me|af|il|mx|cn)-(?:gov-|iso-)?[a-z]{3,12}-\d"  # AWS, OCI, Lambda
    r"|(?:us|europe|asia|australia|northamerica|southamerica|me|africa)-[a-z]{3,12}\d{1,2})\b",  # GCP
    re.IGNORECASE,
)
_NAMED_PLACE = re.compile(
    r"\b(?:in |for |the |to )*(?:location|region|data ?cent(?:er|re))s?\b(?: name)?['\" :=(]{1,4}([A-Za-z][A-Za-z0-9-]{2,40})\b",
    re.IGNORECASE,
)
_NAMED_ZONE = re.compile(
    r"\b(?:availability )?(?:zone|domain)s?['\" :=(]{1,4}([A-Za-z]{1,10}[:A-Za-z0-9-]{0,40}\d[A-Za-z0-9-]{0,20}|\d)\b",
    re.IGNORECASE,
)
_SKYPILOT_PLACE = re.compile(
    r"\bfailed to (?:acquire|provision)[^\n]{0,30}? (?:all zones in|in) ([a-z][a-z0-9-]{3,40})\b", re.IGNORECASE
)
_MACHINE = re.compile(
    r"\b([a-z][a-z0-9-]{1,12}\.(?:\d{0,2}x?large|metal(?:-\w{1,8})?|nano|micro|small|medium)"  # AWS
    r"|Standard_[A-Z][A-Za-z0-9_-]{1,40}"  # Azure
    r"|[a-z]\d[a-z]{0,2}-(?:standard|highmem|highcpu|highgpu|megagpu|ultragpu|edgegpu|custom|medium)(?:-\w{1,12})?"  # GCP
    r"|gpu_\d{1,2}x_[a-z0-9_]{2,40}"  # Lambda
    r"|(?:VM|BM)\.[A-Z][A-Za-z0-9.]{2,40})\b"  # OCI
)
_GPU = re.compile(
    r"\b((?:nvidia|amd|google)\.com/(?:gpu|tpu)|(?:nvidia[- ])?(?:tesla[- ])?(?:GH200|GB200|B200|B300|H200|H100|A100(?:-80GB)?|A10G?|A40|A30"
    r"|L40S?|L4|T4|V100|P100|P4|K80|RTX ?A?\d{4}(?: ?Ada)?|MI\d{3}X?))\b",
    re.IGNORECASE,
)
_QUOTA_NAME = (
    re.compile(r"quota (?:metric )?['\"]([\w .:/-]{2,100})['\"]", re.IGNORECASE),
    re.compile(r"exceeding (?:approved )?([\w .-]{2,80}?) quota\b", re.IGNORECASE),
    re.compile(r"exceeded quota: ([\w.-]{1,100})", re.IGNORECASE),
    re.compile(r"(?:limits|quotas) were exceeded: ([\w ,.-]{2,200}?)(?:\. |\.$|['\"}\n]|$)", re.IGNORECASE),
    re.compile(r"\b((?:QOS|Assoc)(?:Max|Grp|Min)\w{2,40})\b"),
    re.compile(r"\b(?:exceeded|reached) your (?:maximum |current )?([\w ]{3,40}?) (?:limit|quota)\b", re.IGNORECASE),
    re.compile(r"quota for ([\w./-]{2,60})\b", re.IGNORECASE),
)
_LIMIT = re.compile(r"\blimit(?:ed)?(?: of|:| is| =)? ?(?:[\w./-]{1,60}=)?(\d{1,12}(?:\.\d{1,4})?)\b", re.IGNORECASE)
_USAGE = re.compile(r"\bcurrent usage: (\d{1,12}(?:\.\d{1,4})?)\b", re.IGNORECASE)
_NEEDED = re.compile(
    r"\b(?:additional required:|requested:?) ?(?:[\w./-]{1,60}=)?(\d{1,12}(?:\.\d{1,4})?)\b", re.IGNORECASE
)
_WITH_CAPACITY = re.compile(
    r"(?:regions with capacity available:|capacity by not specifying an availability zone in your request or choosing) "
    r"([a-z0-9, -]{3,200}?)(?:\.|\n|['\"]|$)",
    re.IGNORECASE,
)
_SPOT = re.compile(r"\bspot\b|preemptible|low[ -]?priority|interruptible", re.IGNORECASE)


class Facts(NamedTuple):
    """Names and figures found in an error's text; None or empty for what it does not tell."""

    zone: str | None
    region: str | None
    machine: str | None
    quota: str | None
    limit: str | None
    usage: str | None
    needed: str | None
    elsewhere: str | None
    spot: bool

    @property
    def place(self) -> str | None:
        """The smallest place the text names."""
        return self.zone or self.region

    def completed(self, offer: Offer) -> Facts:
        """With what was asked for in place of what the text does not name."""
        return self._replace(
            zone=self.zone or offer.zone,
            region=self.region or offer.region,
            machine=self.machine or offer.instance_type,
            spot=self.spot or offer.market is Market.SPOT,
        )


def _first(text: str, *patterns: re.Pattern[str]) -> str | None:
    for pattern in patterns:
        if found := pattern.search(text):
            return found.group(1).strip()
    return None


def _figure(text: str | None) -> str | None:
    return text.removesuffix(".0") if text else None


def read_facts(text: str) -> Facts:
    """Whatever names and figures `text` (unescaped, with its addresses) holds."""
    elsewhere = _first(text, _WITH_CAPACITY)
    if elsewhere:
        # Where there *is* capacity is advice, and must not be told as where there is none.
        text = _WITH_CAPACITY.sub(" ", text)
    return Facts(
        zone=_first(text, _ZONE, _NAMED_ZONE),
        region=_first(text, _SKYPILOT_PLACE, _NAMED_PLACE, _REGION),
        machine=_first(text, _MACHINE) or _first(text, _GPU),
        quota=_first(text, *_QUOTA_NAME),
        limit=_figure(_first(text, _LIMIT)),
        usage=_figure(_first(text, _USAGE)),
        needed=_figure(_first(text, _NEEDED)),
        elsewhere=elsewhere,
        spot=_SPOT.search(text) is not None,
    )
