"""Why a launch failed, told from all that it met."""

from __future__ import annotations

from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.offers import Offer


def final_error(met: list[tuple[Offer, ClassifiedError]], nothing_left: ClassifiedError | None) -> ClassifiedError:
    """The error of a launch that met these errors, in order, and had no offer left.

    With no attempt made it is `nothing_left` (why every offer was left out); with one, that attempt's; with several,
    the last one's class under a message that counts them, since each is in the history. The raw texts are kept, each
    with its place.
    """
    if not met:
        return nothing_left or ClassifiedError(
            kind=ErrorKind.CONFIG,
            scope=ErrorScope.ACCOUNT,
            retryable=False,
            cloud="",
            message="No offer of any configured cloud fits the request.",
            raw="",
        )
    if len(met) == 1:
        return met[0][1]
    last = met[-1][1]
    kinds = {error.kind for _, error in met}
    places = ", ".join(dict.fromkeys(f"{offer.cloud}/{offer.zone or offer.region}" for offer, _ in met))
    what = {
        ErrorKind.CAPACITY: "No capacity",
        ErrorKind.QUOTA: "Quota exceeded",
        ErrorKind.TIMEOUT: "Timed out",
    }.get(last.kind, "Failed")
    headline = f"{what} in all {len(met)} places tried" if len(kinds) == 1 else f"All {len(met)} attempts failed"
    return last.model_copy(
        update={
            "message": f"{headline} ({places}). The last one said: {last.message}",
            "raw": "\n".join(f"[{offer.key}] {error.raw}" for offer, error in met),
        }
    )
