"""Who asks, and may they: the admin token, API keys with roles, tenants, and the rate limit on launches."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from api.problems import ProblemError
from skyfleet.db.repositories import ApiKeyRepository, AuditRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import utcnow
from skyfleet.domain.states import Role

if TYPE_CHECKING:
    from api.services import Services

_log = logging.getLogger("skyfleet.api")

ADMIN_PRINCIPAL: Final = "admin-token"
DEFAULT_TENANT: Final = "default"
#: How long a key is believed without asking the database; also how long a revoked key may still work elsewhere.
_CACHE_SECONDS: Final = 4.0
_CACHE_SIZE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """Who the credentials stand for."""

    name: str
    role: Role
    tenant: str
    key_id: str | None = None

    @property
    def scope(self) -> str | None:
        """The one tenant whose launches and nodes this principal sees and touches; None for all."""
        return None if self.role is Role.ADMIN else self.tenant


def sha256(secret: str) -> str:
    """Hex digest under which a secret is stored: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two digests are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def bearer(connection: HTTPConnection) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def remote(connection: HTTPConnection) -> str | None:
    """The caller's address, for the audit log."""
    return connection.client.host if connection.client else None


class Authenticator:
    """Turns credentials into a principal. Remembers keys for a few seconds, by the hash of what was presented."""

    def __init__(self, database: Database, admin_token: str | None) -> None:
        self._database = database
        # Headers arrive as Latin-1 text, so that the token is hashed as the same bytes on both sides.
        self._admin_hash = None if not admin_token else hashlib.sha256(admin_token.encode()).hexdigest()
        self._admin = Principal(ADMIN_PRINCIPAL, Role.ADMIN, DEFAULT_TENANT)
        self._known: OrderedDict[str, tuple[float, datetime | None, Principal]] = OrderedDict()
        self.used: dict[str, datetime] = {}  # key id → last use not yet written down

    async def identify(self, credentials: str | None) -> Principal:
        """The principal behind an admin token or API key; raises a 401 problem."""
        if credentials is None:
            raise _unauthorised("no credentials: give X-Admin-Token, or Authorization: Bearer with an API key")
        digest = hashlib.sha256(credentials.encode("latin-1", "replace")).hexdigest()
        if self._admin_hash is not None and same(digest, self._admin_hash):
            return self._admin
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and known[0] > now:
            principal, expires_at = known[2], known[1]
        else:
            principal, expires_at = await self._look_up(credentials)
            self._known[digest] = (now + _CACHE_SECONDS, expires_at, principal)
            if len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)
        moment = utcnow()
        if expires_at is not None and expires_at <= moment:
            raise _unauthorised("the API key has expired")
        assert principal.key_id is not None
        self.used[principal.key_id] = moment
        return principal

    def forget(self) -> None:
        """A key was revoked: believe nothing that was believed."""
        self._known.clear()

    async def _look_up(self, credentials: str) -> tuple[Principal, datetime | None]:
        parts = credentials.split("_", 2)
        if len(parts) != 3 or parts[0] != "sf" or not parts[1].isalnum() or not parts[1].isascii():
            raise _unauthorised("the credentials are not known")
        async with self._database.transaction() as session:
            key = await ApiKeyRepository(session).get(parts[1])
        # The comparison is made for an unknown key too, so that the answer takes as long.
        stored = key.secret_hash if key is not None else sha256("")
        if not same(sha256(parts[2]), stored) or key is None:
            raise _unauthorised("the credentials are not known")
        if key.revoked_at is not None:
            raise _unauthorised("the API key was revoked")
        return Principal(key.name, Role(key.role), key.tenant, key.id), key.expires_at


def new_api_key(key_id: str, secret: str) -> str:
    """An API key as its holder sends it."""
    return f"sf_{key_id}_{secret}"


class Requires:
    """Dependency: the caller, who must have this role. Forbidden changes go to the audit log."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> Principal:
        """The principal; raises 401 or 403 problems."""
        services: Services = request.app.state.services
        principal = await services.auth.identify(request.headers.get("x-admin-token") or bearer(request))
        if principal.role.includes(self.role):
            return principal
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            await self._audit(services.database, request, principal)
        raise ProblemError(
            403, f"the role `{self.role.value}` is needed for this; {principal.name} is {principal.role}"
        )

    async def _audit(self, database: Database, request: Request, principal: Principal) -> None:
        async with database.transaction() as session:
            AuditRepository(session).add(
                principal=principal.name,
                action="forbidden",
                subject=f"{request.method} {request.url.path}"[:500],
                outcome="refused",
                detail={"role": principal.role.value, "needed": self.role.value},
                remote=remote(request),
            )


Viewer = Annotated[Principal, Depends(Requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(Requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(Requires(Role.ADMIN))]


def _unauthorised(why: str) -> ProblemError:
    return ProblemError(401, why, headers={"WWW-Authenticate": 'Bearer realm="skyfleet"'})


class LaunchLimiter:
    """At most so many launches a minute for each key: a moving window, in the memory of this API process.

    With several API processes the limit holds in each of them.
    """

    def __init__(self, per_minute: int) -> None:
        self._limiter: Any = None
        if per_minute:
            from limits import RateLimitItemPerMinute
            from limits.storage import MemoryStorage
            from limits.strategies import MovingWindowRateLimiter

            self._limiter = MovingWindowRateLimiter(MemoryStorage())
            self._item = RateLimitItemPerMinute(per_minute)

    def take(self, principal: Principal) -> None:
        """Count one launch; raises a 429 problem that says when to come back."""
        if self._limiter is None or self._limiter.hit(self._item, principal.name):
            return
        window = self._limiter.get_window_stats(self._item, principal.name)
        wait = max(1, math.ceil(window.reset_time - time.time()))
        raise ProblemError(
            429,
            f"{principal.name} may launch {self._item.amount} times a minute; try again in {wait} s",
            headers={"Retry-After": str(wait)},
        )
