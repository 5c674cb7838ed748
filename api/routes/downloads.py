"""The node agent as one file, for machines that boot."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from api.problems import not_found
from api.services import Svc
from skyfleet.db.repositories import AgentBundleRepository

router = APIRouter(tags=["node agents"])


@router.get(
    "/downloads/node-agent/{version}",
    summary="The node agent",
    response_class=Response,
    responses={
        200: {
            "description": "A zip application for Python 3.10 or later; `X-Checksum-SHA256` is its digest.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The bytes of `If-None-Match` are these."},
    },
    openapi_extra={"security": []},
)
async def node_agent(request: Request, version: Annotated[str, Path(max_length=100)], services: Svc) -> Response:
    """A node runs the version that its launch named, also while another release is being rolled out."""
    from skyfleet.agent import bundle

    if version == await asyncio.to_thread(bundle.version):
        digest, content = bundle.sha256(), bundle.build()
    else:
        async with services.database.transaction() as session:
            bundles = AgentBundleRepository(session)
            row = await bundles.get(version)
            if row is None:
                known = dict.fromkeys((bundle.version(), *await bundles.versions()))
                raise not_found(f"no node agent {version!r}; there is: {', '.join(known)}")
        digest, content = row.sha256, row.content
    headers = {
        "X-Checksum-SHA256": digest,
        "ETag": f'"{digest}"',
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    if f'"{digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{bundle.FILE_NAME}"'
    return Response(content, media_type="application/zip", headers=headers)
