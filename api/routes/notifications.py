"""What people are told, and where: the history of notifications, and the channels."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy.exc import IntegrityError

from api.paging import Cursor, Limit, decode_number
from api.presenting import channel_view, notification_view
from api.problems import ProblemError, not_found, refused_field, unavailable
from api.schemas import CHANNEL_URLS, ChannelChange, ChannelRequest
from api.security import Admin, Principal, Viewer, remote
from api.services import Services, Svc
from api.temporal import WorkflowsUnavailable
from skyfleet.db.repositories import AuditRepository, ChannelRepository, DeliveryRepository, NotificationRepository
from skyfleet.db.tables import NotificationChannelRow, utcnow
from skyfleet.domain import ids
from skyfleet.domain.messages import ChannelTestInput
from skyfleet.domain.notifications import NotificationKind, masked, scheme_of, scrubbed
from skyfleet.domain.views import ChannelList, ChannelTested, ChannelView, CommandAccepted, NotificationList
from skyfleet.notifier.process import NotifierFailed

router = APIRouter(prefix="/admin", tags=["notifications"])

#: How long the test of a channel is waited for: the sending's own limit, and the start of what sends.
_TEST_TIMEOUT_S: Final = 25.0

ChannelName = Annotated[str, Path(max_length=100, description="Id or name of the channel.")]


@router.get("/notifications", response_model=NotificationList, summary="What people were told")
async def notifications(
    services: Svc,
    principal: Viewer,
    kind: NotificationKind | None = None,
    subject: Annotated[str | None, Query(max_length=500)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> NotificationList:
    """Newest first, each with the channels that it went to, how that went, and why not where it did not.

    One that no channel wants has no deliveries. A key of a tenant sees what concerns that tenant.
    """
    async with services.database.transaction() as session:
        rows = await NotificationRepository(session).page(
            kind=kind,
            subject=subject,
            tenant=principal.scope,
            before_id=decode_number(cursor),
            limit=limit + 1,
        )
        shown = rows[:limit]
        deliveries = await DeliveryRepository(session).of([row.id for row in shown if row.id is not None])
    return NotificationList(
        notifications=[notification_view(row, deliveries[row.id or 0]) for row in shown],
        next=str(shown[-1].id) if len(rows) > limit else None,
    )


@router.get("/notification-channels", response_model=ChannelList, summary="List notification channels")
async def channels(services: Svc, principal: Viewer) -> ChannelList:
    """By name, without their addresses. A key of a tenant sees the channels that are told of that tenant."""
    async with services.database.transaction() as session:
        rows = await ChannelRepository(session).all()
    return ChannelList(channels=[_shown(row, principal) for row in rows if _sees(principal, row)])


@router.get("/notification-channels/{channel}", response_model=ChannelView, summary="One notification channel")
async def channel(services: Svc, principal: Viewer, channel: ChannelName) -> ChannelView:
    """Its rules, without its address."""
    async with services.database.transaction() as session:
        row = await ChannelRepository(session).find(channel)
    if row is None or not _sees(principal, row):
        raise _none(channel)
    return _shown(row, principal)


@router.post(
    "/notification-channels", status_code=201, response_model=ChannelView, summary="Make a notification channel"
)
async def create_channel(request: Request, body: ChannelRequest, services: Svc, principal: Admin) -> ChannelView:
    """Nothing is sent yet: `test` does that. `url` is any address of apprise's that does not concern this machine."""
    url = body.url.get_secret_value().strip()
    row = NotificationChannelRow(
        id=ids.new_channel_id(),
        name=body.name,
        url=url,
        masked_url=masked(url),
        service=await _service(services, url),
        kinds=_unique(body.kinds),
        tenants=_unique(body.tenants),
        min_severity=body.min_severity.value,
        throttle_count=body.throttle_count,
        throttle_seconds=body.throttle_seconds,
        enabled=body.enabled,
        created_by=principal.name,
    )
    try:
        async with services.database.transaction() as session:
            ChannelRepository(session).add(row)
            await session.flush()
            _audit(session, request, principal, "notification_channel.create", row, _rules(row))
    except IntegrityError:
        raise _taken(body.name) from None
    return channel_view(row)


@router.patch("/notification-channels/{channel}", response_model=ChannelView, summary="Change a notification channel")
async def change_channel(
    request: Request, body: ChannelChange, services: Svc, principal: Admin, channel: ChannelName
) -> ChannelView:
    """What is waiting for the channel goes by the new rules, and to the new address; turned off, it is not sent."""
    changes: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"url"}, mode="json")
    for name in changes.keys() & {"kinds", "tenants"}:
        changes[name] = _unique(changes[name])
    if body.url is not None:
        url = body.url.get_secret_value().strip()
        changes |= {"url": url, "masked_url": masked(url), "service": await _service(services, url)}
    try:
        async with services.database.transaction() as session:
            row = await ChannelRepository(session).find(channel, lock=True)
            if row is None:
                raise _none(channel)
            for name, value in changes.items():
                setattr(row, name, value)
            if changes:
                row.updated_at = utcnow()
                await session.flush()
                detail = {name: value for name, value in changes.items() if name != "url"}
                _audit(session, request, principal, "notification_channel.change", row, detail)
    except IntegrityError:
        raise _taken(str(body.name)) from None
    return channel_view(row)


@router.delete(
    "/notification-channels/{channel}", response_model=CommandAccepted, summary="Remove a notification channel"
)
async def remove_channel(request: Request, services: Svc, principal: Admin, channel: ChannelName) -> CommandAccepted:
    """What was sent stays in the history; what was not sent yet will not be."""
    async with services.database.transaction() as session:
        row = await ChannelRepository(session).find(channel, lock=True)
        if row is None:
            raise _none(channel)
        await ChannelRepository(session).remove(row)
        _audit(session, request, principal, "notification_channel.remove", row, {"masked_url": row.masked_url})
    return CommandAccepted(status="removed", subject=row.id)


@router.post(
    "/notification-channels/{channel}/test", response_model=ChannelTested, summary="Send a test message to a channel"
)
async def test_channel(request: Request, services: Svc, principal: Admin, channel: ChannelName) -> ChannelTested:
    """A worker sends it now, past the rules and the throttle. `ok` says whether the receiver took it, `detail` why not.

    503 when no worker answers: the message may have been sent, or be sent yet.
    """
    async with services.database.transaction() as session:
        row = await ChannelRepository(session).find(channel)
    if row is None:
        raise _none(channel)
    began = time.monotonic()
    try:
        result = await services.workflows.test_channel(
            ChannelTestInput(channel_id=row.id, requested_by=principal.name),
            uuid.uuid4().hex,
            timeout_s=_TEST_TIMEOUT_S,
        )
    except WorkflowsUnavailable as error:
        raise unavailable(str(error)) from error
    seconds = round(time.monotonic() - began, 3)
    async with services.database.transaction() as session:
        detail = {"ok": result.ok, "detail": result.detail}
        _audit(session, request, principal, "notification_channel.test", row, detail)
    return ChannelTested(channel=row.name, ok=result.ok, detail=result.detail, seconds=seconds)


async def _service(services: Services, url: str) -> str:
    """The service behind the address, by name; a 422 problem that does not repeat the address."""
    if not scheme_of(url):
        raise refused_field("url", "is no address: it has no scheme, like slack://…", CHANNEL_URLS)
    try:
        address = await services.addresses.check(url)
    except NotifierFailed as error:
        raise unavailable(f"the address could not be checked: {scrubbed(str(error), url)}") from error
    if address.service is None:
        raise refused_field("url", f"is refused: {scrubbed(address.error, url)}", CHANNEL_URLS)
    return address.service


def _sees(principal: Principal, row: NotificationChannelRow) -> bool:
    return principal.scope is None or not row.tenants or principal.scope in row.tenants


def _shown(row: NotificationChannelRow, principal: Principal) -> ChannelView:
    view = channel_view(row)
    if principal.scope is not None:  # whom else it is told of is not theirs to know
        view.tenants = [tenant for tenant in view.tenants if tenant == principal.scope]
    return view


def _rules(row: NotificationChannelRow) -> dict[str, Any]:
    return channel_view(row).model_dump(
        mode="json",
        include={
            *("name", "masked_url", "service", "kinds", "tenants", "min_severity"),
            *("throttle_count", "throttle_seconds", "enabled"),
        },
    )


def _unique(values: list[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values))


def _audit(
    session: Any,
    request: Request,
    principal: Principal,
    action: str,
    row: NotificationChannelRow,
    detail: dict[str, Any],
) -> None:
    AuditRepository(session).add(
        principal=principal.name,
        action=action,
        subject=row.id,
        outcome="done",
        detail={"name": row.name, **detail},
        remote=remote(request),
    )


def _none(channel: str) -> ProblemError:
    return not_found(f"no notification channel {channel!r}")


def _taken(name: str) -> ProblemError:
    return ProblemError(409, f"there is a notification channel named {name!r}")
