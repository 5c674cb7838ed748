# ruff: noqa: E501  a pattern is read whole, and breaking one hides what it matches
"""Turning what a cloud said into what to do about it: `classify`.

How it reads a text, in this order:

1. The text is cut to its head and tail, and unescaped (JSON in JSON, HTML, ANSI, log prefixes).
2. Codes are found where codes stand, and distinctive ones anywhere, and looked up per cloud (`codes`); HTTP and
   gRPC statuses likewise; then phrases that tell a structure (`phrases`).
3. The finding nearest to the cause wins (`verdict.Tier`): the cloud's own code or a specific phrase, then a
   vague phrase, then a status, then SkyPilot's wrapper. Of several on one tier: a lasting cause beats a passing
   one, a code beats a phrase, and then `verdict.SEVERITY` decides.
4. The scope is the code's own, or read from the words beside it, or the cloud's default.

A text that says nothing known is UNKNOWN with scope zone and retryable: the launch falls to its next place after
one failed attempt, nothing else is ruled out on no evidence, and the person sees the raw text.
"""

from __future__ import annotations

import re

from skyfleet.domain.classifier.evidence import Evidence, gather, owner_of_code
from skyfleet.domain.classifier.facts import read_facts
from skyfleet.domain.classifier.text import bounded, unescaped, without_noise, without_urls
from skyfleet.domain.classifier.verdict import (
    ALIASES,
    CLOUD,
    NOT_RETRYABLE,
    REGION,
    SEVERITY,
    SINGLE_POOL,
    TRANSIENT,
    WIDTH,
    WRAPPING_CLOUDS,
    ZONE,
    Tier,
    Topic,
    Verdict,
    default_scope,
)
from skyfleet.domain.classifier.wording import cloud_name, engine_steps, likely_causes, words
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.offers import OWN_CLUSTERS, Offer

__all__ = ["classify", "engine_error", "timeout_error"]

#: Whose text it is, when the caller only knows the wrapper. The first that matches names the cloud.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (cloud, re.compile(pattern, re.IGNORECASE))
    for cloud, pattern in (
        (
            "kubernetes",
            r"\bkubernetes\(|kuberneteserror|kubernetes\.client|\d/\d{1,5} nodes are available|\bkubectl\b|imagepullbackoff|kubeconfig|scheduling gates",
        ),
        ("slurm", r"\b(?:sbatch|srun|slurm\w{0,20}|squeue|munge)\b"),
        (
            "aws",
            r"botocore|amazonaws\.com|\barn:aws|\baws\(|\bec2\b|an error occurred \([\w.]{2,80}\) when calling|\baws\b",
        ),
        (
            "gcp",
            r"googleapis|googleapiclient|google\.(?:auth|api_core|rpc)|\bgcp\(|\bgcperror|projects/[\w.-]{1,60}/(?:zones|global|regions)|\bgcp\b|gpus_all_regions",
        ),
        ("azure", r"\bazure\b|\baadsts\d|microsoft\.(?:compute|network)|\bstandard_[a-z]{1,3}\d|/subscriptions/"),
        ("oci", r"\boci\b|opc-request-id|oraclecloud|out of host capacity"),
        ("lambda", r"\blambda(?:\(|error|cloud|labs)|\blambda\b|\bglobal/[a-z-]{4,40}\b|instance-operations/"),
        ("runpod", r"\brunpod"),
        ("vast", r"\bvast(?:\b|ai)"),
        ("nebius", r"\bnebius"),
        ("fluidstack", r"\bfluidstack"),
        ("paperspace", r"\bpaperspace"),
        ("cudo", r"\bcudo"),
        ("ibm", r"\bibm\b|\bbxnim\d"),
        ("do", r"\bdigital ?ocean|\bdo\(|\bdroplet"),
        ("vsphere", r"\bvsphere|\bvim\.fault"),
        ("hyperbolic", r"\bhyperbolic"),
        ("primeintellect", r"\bprime ?intellect"),
        ("seeweb", r"\bseeweb"),
        ("shadeform", r"\bshadeform"),
        ("scp", r"\bscp\("),
    )
)
_CLOUD_ERROR = re.compile(r"\b([a-z][a-z0-9_-]{1,20}) error \([\w.]{1,100}\)", re.IGNORECASE)

_GLOBALLY = re.compile(r"\bglobally\b|\bglobal: global\b|_all_regions|\ball regions (?:of|in|on)\b", re.IGNORECASE)
_IN_ZONE = re.compile(
    r"\b(?:in|for|of|on)[^\n.]{0,30}\b(?:availability )?(?:zones?|availability domain)\b|\bzones? ['\"(]{0,2}[\w/-]{0,60}\d|per ?zone"
    r"|\b[a-z]+-[a-z]+\d-[a-z]\b zone|in zone|\bin (?:[a-z]{2}-[a-z]+-\d[a-z]|[a-z]+-[a-z]+\d{1,2}-[a-z])\b|zones/[\w-]{3,40}",
    re.IGNORECASE,
)
_ALLOWED_PLACES = re.compile(
    r"(?:allowed|permitted|available) (?:resource )?(?:locations?|regions?)|resourcelocations", re.IGNORECASE
)
_IAM_PROFILE = re.compile(r"iam ?instance ?profile", re.IGNORECASE)
_PER_ZONE = re.compile(r"\bin (?:the )?zone\b|per[ -]?zone", re.IGNORECASE)
_IN_REGION = re.compile(
    r"\b(?:in|for|of|on)[^\n.]{0,30}\b(?:regions?|locations?|data ?cent(?:er|re)s?)\b|\bregion:|per ?region|\blocation:"
    r"|\bin (?:[a-z]{2}-[a-z]{3,12}-\d|[a-z]{2,12}-[a-z]{3,12}\d{1,2})(?![\w-])",
    re.IGNORECASE,
)


def classify(cloud: str, raw: str, *, code: str | None = None, offer: Offer | None = None) -> ClassifiedError:
    """What an error of `cloud` means: its kind, how far it reaches, whether to try again, and words for a person.

    `raw` is the text word for word: a message, a JSON or XML body, a traceback or a provision log. `code` is the
    error code when the caller has it apart; `offer` what was asked for, which fills in what the text leaves unsaid: in
    the words (a cloud seldom says that it was a spot machine that it had none of), and, where a cloud is clusters of one's
    own, which of them is meant. Pure and total: any strings, of any length, in bounded time (the head and tail of a long
    text are read); never raises.

    Where `cloud` stands for no cloud of its own ("skypilot", "local", "sandbox"), the real one is read from the
    text, and `ClassifiedError.cloud` names it if the text does.
    """
    given = cloud.strip().lower()
    text = unescaped(bounded(raw))
    actual = ALIASES.get(given, given)
    if actual in WRAPPING_CLOUDS:
        actual = _named_cloud(text) or actual
    best = _best(gather(actual, text, code))
    facts = read_facts(text)
    if offer is not None:
        facts = facts.completed(offer)
    if best is None:
        verdict, found_code = Verdict(ErrorKind.UNKNOWN), None
    else:
        verdict, found_code = best.verdict, best.code
    scope = verdict.scope or _scope(actual, verdict, text)
    if offer is not None and scope is CLOUD and actual in OWN_CLUSTERS:
        # Another cluster has nodes, limits and credentials of its own; a partition has nodes of its own.
        scope = ZONE if verdict.kind is ErrorKind.CAPACITY and offer.zone is not None else REGION
    message, steps = words(actual, verdict.kind, scope, verdict.topic, facts)
    # The caller's own name for a cloud is kept, unless it named a wrapper.
    shown = given if ALIASES.get(given, given) not in WRAPPING_CLOUDS else actual
    return ClassifiedError(
        kind=verdict.kind,
        scope=scope,
        retryable=verdict.kind not in NOT_RETRYABLE,
        code=_storable(code or found_code),
        cloud=_storable(shown) or "unknown",
        message=message,
        next_steps=steps,
        raw=_storable(raw) or "",
    )


def timeout_error(cloud: str, stage_label: str, seconds: float, last_detail: str) -> ClassifiedError:
    """A stage that took longer than its deadline of `seconds`; `last_detail` is the last thing heard from it.

    Scope zone and retryable: a slow machine or zone says nothing about another one.
    """
    heard = last_detail.strip()
    return ClassifiedError(
        kind=ErrorKind.TIMEOUT,
        scope=ErrorScope.ZONE,
        retryable=True,
        cloud=cloud,
        message=f"Timed out on {cloud_name(cloud)}: “{stage_label}” was not done after {_duration(seconds)}."
        + (f" Last heard: {heard}" if heard else " Nothing was heard from it."),
        next_steps=[
            *likely_causes(stage_label),
            "Try another zone or region, or allow a longer deadline for this stage.",
        ],
        raw=last_detail,
    )


def engine_error(cloud: str, detail: str, log_tail: list[str]) -> ClassifiedError:
    """An inference server that did not start on a machine that is fine.

    Scope account and not retryable: the same engine arguments, model and GPU type would fail on any cloud, so
    trying other places would only spend money. `log_tail` are the last lines of the engine's log; they become `raw`.
    """
    raw = "\n".join(log_tail)
    return ClassifiedError(
        kind=ErrorKind.ENGINE,
        scope=ErrorScope.ACCOUNT,
        retryable=False,
        cloud=cloud,
        message=f"The engine failed to start on {cloud_name(cloud)}: {detail.strip() or 'it gave no reason'}",
        next_steps=engine_steps(f"{detail}\n{raw}"),
        raw=raw or detail,
    )


def _named_cloud(text: str) -> str | None:
    if wrapped := _CLOUD_ERROR.search(text):
        name = wrapped.group(1).lower()
        name = ALIASES.get(name, name)
        if any(name == cloud for cloud, _ in _SIGNS):
            return name
    return next((cloud for cloud, sign in _SIGNS if sign.search(text)), None) or owner_of_code(text)


def _best(found: list[Evidence]) -> Evidence | None:
    """The finding nearest to the cause; of equals the one that reaches furthest, and then the last in the text."""

    def rank(item: Evidence) -> tuple[int, bool, bool, int, int, int]:
        verdict = item.verdict
        return (
            item.tier,
            verdict.kind is TRANSIENT,
            item.code is None and item.tier != Tier.WRAPPER,
            SEVERITY.index(verdict.kind),
            -(WIDTH[verdict.scope] if verdict.scope else 0),
            -item.where,
        )

    return min(found, key=rank, default=None)


def _scope(cloud: str, verdict: Verdict, text: str) -> ErrorScope:
    """How far an error reaches, from the words of its text; the cloud's default when they do not say."""
    default = default_scope(cloud, verdict.kind, verdict.topic)
    if verdict.topic is Topic.POLICY and _ALLOWED_PLACES.search(text):
        return REGION
    if verdict.kind is ErrorKind.CONFIG and cloud == "aws" and _IAM_PROFILE.search(text):
        return CLOUD  # IAM knows no regions
    if verdict.kind not in (ErrorKind.CAPACITY, ErrorKind.QUOTA, TRANSIENT) or cloud in SINGLE_POOL:
        return default
    if verdict.kind is TRANSIENT and verdict.topic is not Topic.RATE_LIMIT:
        return default
    prose = without_noise(without_urls(text))
    if _GLOBALLY.search(prose):
        return CLOUD
    if verdict.kind is ErrorKind.CAPACITY and _IN_ZONE.search(prose):
        return ZONE
    if _IN_REGION.search(prose):
        return REGION
    if verdict.kind is ErrorKind.QUOTA and cloud == "gcp" and _PER_ZONE.search(prose):
        return ZONE
    return default


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:.0f} min"


def _storable(text: str | None) -> str | None:
    """`text` without lone surrogates, which neither JSON nor a database takes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
