"""What is configured, what is missing, and how to mend it."""

from __future__ import annotations

from fastapi import APIRouter

from api.doctor import Doctor
from api.security import Admin
from api.services import Svc
from skyfleet.domain.doctor import DoctorReport

router = APIRouter(prefix="/admin", tags=["health"])


@router.get("/doctor", response_model=DoctorReport, summary="What is configured, and what is missing")
async def doctor(services: Svc, principal: Admin) -> DoctorReport:
    """Looks at everything that launches depend on, from where this API stands; takes up to some seconds.

    `ok` is false when a check failed. Also then the answer is 200: the API itself works.
    """
    return DoctorReport.of(await Doctor(services.settings, services.database).examine())
