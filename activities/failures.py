"""The activity's edge: typed errors become Temporal failures here, and nowhere else."""

from __future__ import annotations

from datetime import timedelta

from temporalio.exceptions import ApplicationError

from skyfleet.domain.classifier import classify
from skyfleet.domain.errors import ClassifiedError, CloudError, ErrorKind
from skyfleet.domain.offers import Offer

#: A cloud that asks for patience (rate limit, internal error) is asked again this often at the same place, with
#: 1, 2, 4, … s between, before the next place is tried.
TRANSIENT_TRIES = 5

#: How much of a cloud's own text is kept, characters.
_RAW_CHARS = 16_000


def final(error: ClassifiedError) -> ApplicationError:
    """This will not get better by trying again here: the workflow decides what is next."""
    return ApplicationError(error.message, error.model_dump(mode="json"), type=error.kind.value, non_retryable=True)


def again(error: ClassifiedError | None, message: str, *, delay_s: float | None = None) -> ApplicationError:
    """Temporal tries the activity again."""
    details = () if error is None else (error.model_dump(mode="json"),)
    return ApplicationError(
        message,
        *details,
        type=error.kind.value if error else "unreachable",
        next_retry_delay=timedelta(seconds=delay_s) if delay_s else None,
    )


def refused(failure: CloudError, offer: Offer | None = None) -> ClassifiedError:
    """What a cloud's refusal means, asked for `offer` if for one."""
    cloud = failure.cloud or (offer.cloud if offer else "")
    error = classify(cloud, failure.raw, code=failure.code, offer=offer)
    if len(error.raw) <= _RAW_CHARS:
        return error
    # A whole provision log would fill histories and events. The cause is at the ends, if anywhere.
    half = _RAW_CHARS // 2
    return error.model_copy(update={"raw": f"{error.raw[:half]}\n[…]\n{error.raw[-half:]}"})


def provision_failure(failure: CloudError, offer: Offer, tries: int) -> ApplicationError:
    """A refusal while a machine was being had, on the `tries`-th try."""
    error = refused(failure, offer)
    if error.kind is ErrorKind.TRANSIENT and tries < TRANSIENT_TRIES:
        return again(error, error.message)
    return final(error)
