"""The model catalog, and the bucket that it is read from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from api.presenting import model_view
from api.problems import ProblemError, not_found, refused_field, unavailable
from api.schemas import ModelRequest
from api.security import Admin, Operator, Viewer, remote
from api.services import TALK_TIMEOUT_S, Svc
from api.temporal import NoSuchWorkflow, WorkflowsUnavailable
from skyfleet.db.repositories import AuditRepository, ModelBucketRepository, ModelRepository
from skyfleet.db.tables import ModelRow
from skyfleet.domain.model_config import ConfigError, ModelConfig, read_config
from skyfleet.domain.sizing import (
    DEFAULT_CONTEXT_TOKENS,
    DEFAULT_SEQUENCES,
    VramEstimate,
    estimate_vram,
    gigabytes,
    parameters_text,
    weights_bytes,
)
from skyfleet.domain.views import CommandAccepted, ModelBucketView, ModelList, ModelRefreshAccepted, ModelView

router = APIRouter(prefix="/admin", tags=["catalog"])

_GB = 2**30
_Tokens = Annotated[int | None, Query(ge=1, le=100_000_000, description="Of one sequence. Default: 8,192.")]
_Sequences = Annotated[int | None, Query(ge=1, le=100_000, description="At once. Default: 2.")]


@router.get("/models/r2", response_model=ModelList, summary="The model catalog")
async def models(services: Svc, principal: Viewer) -> ModelList:
    """All models that can be launched."""
    async with services.database.transaction() as session:
        return ModelList(models=[model_view(row) for row in await ModelRepository(session).all()])


@router.get("/models/estimate", response_model=VramEstimate, summary="The GPU memory that a model takes")
async def estimate(
    services: Svc,
    principal: Viewer,
    model_name: Annotated[str, Query(max_length=200)],
    context_tokens: _Tokens = None,
    sequences: _Sequences = None,
) -> VramEstimate:
    """Term by term, for that much use; of a context longer than the model's own, the model's own counts.

    404 for a model whose figure was given by hand: nothing is known of how it came about.
    """
    async with services.database.transaction() as session:
        row = await ModelRepository(session).get(model_name)
    if row is None:
        raise not_found(f"no model {model_name!r} in the catalog")
    if row.vram_estimate is None:
        raise not_found(f"{row.id} has no estimate: its {row.vram_required_gb:g} GB were given by hand")
    found = VramEstimate.model_validate(row.vram_estimate)
    if context_tokens is None and sequences is None:
        return found
    tokens = min(context_tokens or DEFAULT_CONTEXT_TOKENS, row.context_length or 100_000_000)
    try:
        return found.at(tokens, sequences or DEFAULT_SEQUENCES)
    except ValueError as error:
        raise refused_field("context_tokens" if context_tokens else "sequences", str(error)) from error


@router.get("/models/bucket", response_model=ModelBucketView, summary="The bucket that models are read from")
async def bucket(services: Svc, principal: Viewer) -> ModelBucketView:
    """What its last reading found, and what in it is no model that can be served, and why."""
    async with services.database.transaction() as session:
        row = await ModelBucketRepository(session).get()
    return ModelBucketView() if row is None else ModelBucketView.model_validate(row.model_dump())


@router.post(
    "/models/refresh",
    status_code=202,
    response_model=ModelRefreshAccepted,
    summary="Read the model bucket now",
)
async def refresh(request: Request, services: Svc, principal: Operator) -> ModelRefreshAccepted:
    """A reading that is under way is followed by another, so that it sees what was put there before this request.

    409 when no bucket is configured.
    """
    async with services.database.transaction() as session:
        buckets = ModelBucketRepository(session)
        row, now = await buckets.get(), await buckets.now()
    if row is None:
        raise _no_bucket()
    try:
        await services.workflows.refresh_models(timeout_s=TALK_TIMEOUT_S)
    except NoSuchWorkflow:
        raise _no_bucket() from None
    except WorkflowsUnavailable as error:
        raise unavailable(str(error)) from error
    async with services.database.transaction() as session:
        AuditRepository(session).add(
            principal=principal.name,
            action="models.refresh",
            subject=row.url,
            outcome="accepted",
            remote=remote(request),
        )
    return ModelRefreshAccepted(url=row.url, requested_at=now)


def _no_bucket() -> ProblemError:
    return ProblemError(409, "no model bucket is configured: give the workers SKYFLEET_MODEL_BUCKET_URL and its keys")


@router.post(
    "/models",
    status_code=201,
    response_model=ModelView,
    summary="Register a model",
    responses={200: {"description": "A model of that id was replaced.", "model": ModelView}},
)
async def register_model(
    request: Request, response: Response, body: ModelRequest, services: Svc, principal: Admin
) -> ModelView:
    """Put a model into the catalog, or replace the one of that id; it goes before one of the bucket with that id.

    GPU memory that is not given is estimated: from the size of the weights (`weights_gb`, else `parameters` in `dtype`,
    16 bits if left out) and, if the model's `config.json` is given, from its shape; see `vram_estimate` in the answer.
    """
    row = _row(body)
    async with services.database.transaction() as session:
        repository = ModelRepository(session)
        before = await repository.get(body.id)
        await repository.put(row)
        AuditRepository(session).add(
            principal=principal.name,
            action="model.register" if before is None else "model.replace",
            subject=body.id,
            outcome="done",
            detail={"vram_required_gb": row.vram_required_gb, "parameters": body.parameters},
            remote=remote(request),
        )
    services.catalog.forget()
    if before is not None:
        response.status_code = 200
    return model_view(row)


def _row(body: ModelRequest) -> ModelRow:
    try:
        config = ModelConfig(family="") if body.config is None else read_config(body.config)
    except ConfigError as error:
        raise refused_field("config", str(error)) from error
    config.context_length = body.context_length or config.context_length
    dtype = body.dtype or config.dtype
    size: int | None = None
    if body.weights_gb is not None:
        size = round(body.weights_gb * _GB)
    elif body.parameters is not None:
        size = weights_bytes(body.parameters, dtype)
    needed, estimated = body.vram_required_gb, None
    if needed is None:
        assert size is not None
        estimated = estimate_vram(size, config)
        needed = estimated.total_gb
    short = body.id.rpartition("/")[2]
    return ModelRow(
        id=body.id,
        name=body.name or short,
        family=body.family or config.family or short.partition("-")[0],
        size=body.size or parameters_text(body.parameters),
        parameters=body.parameters,
        dtype=dtype,
        weights_gb=None if size is None else gigabytes(size),
        context_length=config.context_length,
        vram_required_gb=needed,
        vram_estimate=None if estimated is None else estimated.model_dump(mode="json"),
        source=body.source,
    )


@router.delete("/models/{model_id:path}", response_model=CommandAccepted, summary="Take a model out of the catalog")
async def delete_model(
    request: Request, services: Svc, principal: Admin, model_id: Annotated[str, Path(max_length=200)]
) -> CommandAccepted:
    """Launches of it stay. One that is in the model bucket comes back with its next reading."""
    async with services.database.transaction() as session:
        if not await ModelRepository(session).delete(model_id):
            raise not_found(f"no model {model_id!r}")
        AuditRepository(session).add(
            principal=principal.name,
            action="model.delete",
            subject=model_id,
            outcome="done",
            remote=remote(request),
        )
    services.catalog.forget()
    return CommandAccepted(status="deleted", subject=model_id)
