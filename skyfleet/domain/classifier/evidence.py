# ruff: noqa: E501  a pattern is read whole, and breaking one hides what it matches
"""Gathering evidence from a raw text: codes where codes stand, known codes anywhere, statuses, phrases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from skyfleet.domain.classifier.codes import (
    CLOUD_CODES,
    SKYPILOT,
    SKYPILOT_OUTERMOST,
    SKYPILOT_WRAPPERS,
    STATUS,
    http_status,
)
from skyfleet.domain.classifier.phrases import FIRST, PHRASES, Phrase
from skyfleet.domain.classifier.text import without_noise, without_urls
from skyfleet.domain.classifier.verdict import (
    AUTH,
    CAPACITY,
    CONFIG,
    QUOTA,
    TRANSIENT,
    WRAPPING_CLOUDS,
    Tier,
    Topic,
    Verdict,
)


class Evidence(NamedTuple):
    """One finding. `code` is spelled as in the text, and None for a phrase; `where` is its place in the text."""

    verdict: Verdict
    tier: int
    code: str | None
    where: int


def _key(code: str) -> str:
    return re.sub(r"[\W_]", "", code).lower()


def _distinctive(code: str) -> bool:
    """Whether a code cannot be a plain word of prose: several humps, punctuation or digits."""
    return re.search(r"[a-z][A-Z]|[A-Z]{2}[a-z]|[_/.\d-]", code) is not None


class _Table(NamedTuple):
    """One table of codes, by normalised spelling."""

    tier: int
    codes: Mapping[str, Verdict]
    distinctive: frozenset[str]


def _compile(codes: Mapping[str, Verdict], tier: int) -> _Table:
    return _Table(
        tier,
        {_key(code): verdict for code, verdict in codes.items()},
        frozenset(_key(c) for c in codes if _distinctive(c)),
    )


_BY_CLOUD = {cloud: _compile(codes, Tier.SPECIFIC) for cloud, codes in CLOUD_CODES.items()}
_SHARED = (
    _compile(SKYPILOT, Tier.SPECIFIC),
    _compile(STATUS, Tier.STATUS),
    _compile(SKYPILOT_WRAPPERS, Tier.WRAPPER),
    _compile(SKYPILOT_OUTERMOST, Tier.OUTERMOST),
)

# The separators are no part of a piece, so that a text can be read in one way only (no backtracking).
_WORD = r"[A-Za-z]\w{0,80}(?:[./-]\w{1,80}){0,8}"
_TOKEN = re.compile(rf"(?<![\w./-]){_WORD}")
#: Where a code stands by itself: `(Code)`, `code: "Code"`, `<Code>Code`, `Code: message`, `StatusCode.CODE`.
_POSITIONS = re.compile(
    rf"\((?P<paren>{_WORD})\)"
    rf"|['\"]?\b(?:error_?)?(?:code|reason|status|error|errortype|type|name|id|state)\b['\"]?\s?[:=]\s?['\"]?(?P<field>{_WORD})['\"]?(?![\w'-])"
    rf"|<(?:Code|ErrorCode|code)>(?P<xml>{_WORD})<"
    rf"|statuscode\.(?P<grpc>[A-Z_]{{4,40}})"
    rf"|(?<![\w./-])(?P<colon>{_WORD}):(?=\s|$|['\"])"
    rf"|\b[Rr]equest error (?P<nebius>[A-Z_]{{4,40}})\b"
    rf"|return codes? '(?P<gcp>[\w.]{{3,80}})'",
    re.IGNORECASE,
)
#: `(CODE) when calling the OPERATION operation`, botocore's form.
_BOTOCORE_LOOKUP = re.compile(
    r"\(([\w.-]{2,100})\) when calling the (?:Describe|Get|List|Head|Delete|Authorize|Revoke|Detach)\w{0,80} operation"
)
_HTTP = re.compile(
    r"\bhttp(?:/\d(?:\.\d)?)?[ :]{1,2}(?:error |status |code |status code )?[:( ]{0,2}(\d{3})\b"
    r"|\bhttperror[: (]{1,2}(\d{3})\b"
    r"|\b(\d{3}) (?:client|server) error\b"
    r"|\bstatus(?:[ _]?code)?['\"]?[ :=(]{1,3}(\d{3})\b"
    r"|['\"]?\b(?:error)?_?code['\"]?[ :=(]{1,3}(\d{3})\b"
    r"|\berror[: (]{1,2}(\d{3})\b"
    r"|\b(?:failed|returned|response|got|answered)[: ]{1,2}(?:with )?(?:status )?(\d{3})\b"
    r"|^([45]\d{2}) [A-Z]"
    r"|\((\d{3})\)[^\S\n]{0,2}\n?reason"
    r"|\b(\d{3}) (?:unauthorized|forbidden|too many requests|bad gateway|service unavailable|internal server error|gateway time-?out|not found|payment required|bad request|unprocessable)",
    re.IGNORECASE | re.MULTILINE,
)

#: A code that no table has still follows its cloud's habits of naming.
_FAMILIES: tuple[tuple[re.Pattern[str], Verdict], ...] = tuple(
    (re.compile(pattern), verdict)
    for pattern, verdict in (
        (r"throttl|ratelimit|toomanyrequests|requestlimit|rateexceeded", Verdict(TRANSIENT, None, Topic.RATE_LIMIT)),
        (
            r"quota(?:\w*)(?:exceed|exhaust|reach)|limitexceeded|limitreached|toomany\w+|maxcount|exceed\w*quota|quotafailure|insufficientquota",
            Verdict(QUOTA),
        ),
        (
            r"insufficient\w*(?:capacity|resource|stock)|outof\w*(?:capacity|stock|resource)|stockout|no\w*capacity|"
            r"allocation(?:failed|failure)|capacity(?:error|exceeded|exhausted|notavailable)|resource\w*exhausted|notenough\w+|soldout|nooffers?$",
            Verdict(CAPACITY),
        ),
        (r"billing|payment|balance|insufficient(?:credit|fund)|suspended", Verdict(AUTH, None, Topic.BILLING)),
        (
            r"unauthori[sz]ed|accessdenied|permissiondenied|forbidden|notauthori[sz]ed|authorization|insufficientperm",
            Verdict(AUTH, None, Topic.PERMISSION),
        ),
        (
            r"authenticat|credential|expired\w*token|token\w*expired|invalid\w*(?:token|apikey|signature|accesskey)|autherror|notauthenticated",
            Verdict(AUTH),
        ),
        (r"image\w*(?:notfound|invalid)|invalid\w*image|invalidami", Verdict(CONFIG, None, Topic.IMAGE)),
        (
            r"^invalid\w{4,}|malformed|notfound$|doesnotexist|validation(?:error|exception|failed)|missing\w*param|notsupported",
            Verdict(CONFIG),
        ),
        (r"^internal\w{3,}|unavailable|servererror|serverbusy|^retry", Verdict(TRANSIENT)),
        (
            r"connection\w*(?:error|refused|reset|timeout)|(?:connect|read)timeout",
            Verdict(TRANSIENT, None, Topic.NETWORK),
        ),
    )
)


def _spellings(token: str) -> Iterator[str]:
    """A token and its tails: `botocore.errors.Client.Foo.NotFound` may be the code `Foo.NotFound`."""
    yield token
    parts = re.split(r"[./]", token)
    for start in range(1, len(parts)):
        yield ".".join(parts[start:])


def _positional_codes(text: str) -> Iterator[tuple[str, int]]:
    for found in _POSITIONS.finditer(text):
        for code in found.groups():
            if code:
                yield code, found.start()


def _tables(cloud: str) -> tuple[_Table, ...]:
    own = _BY_CLOUD.get(cloud)
    return (own, *_SHARED) if own else _SHARED


def _look_up(token: str, tables: tuple[_Table, ...], *, positional: bool) -> tuple[Verdict, int, str] | None:
    """The nearest-to-the-cause table's verdict on a token. A longer tail of the token beats a shorter one."""
    for table in tables:
        for spelling in _spellings(token):
            key = _key(spelling)
            if key in table.codes and (positional or key in table.distinctive):
                return table.codes[key], table.tier, spelling
    return None


def owner_of_code(text: str) -> str | None:
    """The cloud that the first code known to exactly one cloud belongs to."""
    for found in _TOKEN.finditer(text):
        owners = [
            cloud
            for cloud, table in _BY_CLOUD.items()
            if any(_key(spelling) in table.distinctive for spelling in _spellings(found.group()))
        ]
        if len(owners) == 1:
            return owners[0]
    return None


def _code_evidence(cloud: str, text: str) -> Iterator[Evidence]:
    tables = _tables(cloud)
    lookups = {_key(found.group(1)) for found in _BOTOCORE_LOOKUP.finditer(text)}
    positional = list(_positional_codes(text))
    seen: set[str] = set()
    for is_positional, tokens in (
        (True, positional),
        (False, ((found.group(), found.start()) for found in _TOKEN.finditer(text))),
    ):
        for token, where in tokens:
            if token in seen:
                continue
            known = _look_up(token, tables, positional=is_positional)
            if known is None:
                if is_positional and _distinctive(token):
                    yield from _family_evidence(token, where)
                continue
            seen.add(token)
            verdict, tier, code = known
            # A look-up that found nothing (`DescribeSecurityGroups`) is how a provisioner learns that it has to
            # create: the call that creates tells why a launch failed.
            if verdict.kind is CONFIG and _key(token) in lookups:
                tier = Tier.STATUS
            yield Evidence(verdict, tier, code, where)


def _family_evidence(token: str, where: int) -> Iterator[Evidence]:
    code = list(_spellings(token))[-1] if "." in token and not token[0].isupper() else token
    key = _key(code)
    for pattern, verdict in _FAMILIES:
        if pattern.search(key):
            yield Evidence(verdict, Tier.PHRASE, code, where)
            return


def _status_evidence(text: str) -> Iterator[Evidence]:
    for found in _HTTP.finditer(text):
        number = int(next(group for group in found.groups() if group))
        if verdict := http_status(number):
            yield Evidence(verdict, Tier.STATUS, None, found.start())


def _matches(phrase: Phrase, cloud: str) -> bool:
    return not phrase.clouds or cloud in phrase.clouds


def gather(cloud: str, text: str, code: str | None) -> list[Evidence]:
    """All that an unescaped text (and a code given beside it) tells about an error of `cloud`.

    Without a known cloud, the phrases of every cloud are tried.
    """
    text = without_urls(text)
    found = list(_code_evidence(cloud, text))
    if code:
        found += [item._replace(where=-1) for item in _code_evidence(cloud, f"({code})")]
    found += _status_evidence(text)
    prose = without_noise(text)
    anywhere = cloud in WRAPPING_CLOUDS
    for phrase in FIRST:
        if anywhere or _matches(phrase, cloud):
            hits = list(phrase.pattern.finditer(prose))
            found += [Evidence(phrase.verdict, phrase.tier, None, hit.start()) for hit in hits[:1]]
            if hits:
                prose = phrase.pattern.sub(" ", prose)
    for phrase in PHRASES:
        if (anywhere or _matches(phrase, cloud)) and (hit := phrase.pattern.search(prose)):
            found.append(Evidence(phrase.verdict, phrase.tier, None, hit.start()))
    return _without_counted_calls(found)


def _without_counted_calls(found: list[Evidence]) -> list[Evidence]:
    """Google delivers a rate limit with the codes of a quota; a quota's own text names no rate."""
    limited = any(item.verdict.topic is Topic.RATE_LIMIT and item.tier == Tier.SPECIFIC for item in found)
    if not limited:
        return found
    return [item for item in found if not (item.code and item.verdict.kind is QUOTA and item.verdict.scope is None)]
