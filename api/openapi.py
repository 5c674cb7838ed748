"""The OpenAPI document: security schemes, and the problems that every route can answer."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.problems import MEDIA_TYPE
from skyfleet.domain.views import FieldProblem, Problem

DESCRIPTION: Final = """
Launch GPU nodes as durable workflows, watch them, and end them.

Credentials: `X-Admin-Token: <token>`, or `Authorization: Bearer <API key>`. A key has a role (`viewer` reads,
`operator` launches, cancels and terminates, `admin` manages models, budgets, keys, notification channels and the audit
log) and a tenant, whose launches, nodes and costs it sees. Launches are limited for each key, in each API process
(`429`, `Retry-After`).

Every error is a problem document (RFC 9457); `errors[].field` names the field, `errors[].accepted` what it takes.
"""

TAGS: Final[list[dict[str, Any]]] = [
    {"name": "launches", "description": "Ask for a node, follow it, cancel it."},
    {"name": "nodes", "description": "Nodes, for people."},
    {"name": "catalog", "description": "Models, and what the clouds sell."},
    {"name": "node agents", "description": "What the agents on the machines call."},
    {"name": "notifications", "description": "What people are told, and where."},
    {"name": "costs", "description": "What machines cost, and budgets."},
    {"name": "access", "description": "API keys and the audit log."},
    {"name": "health"},
]

_SCHEMES: Final = {
    "AdminToken": {"type": "apiKey", "in": "header", "name": "X-Admin-Token"},
    "ApiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "sf_<id>_<secret>"},
}

_PROBLEMS: Final = {
    "400": "The request cannot be read.",
    "401": "No credentials, or not valid ones.",
    "402": "A budget is spent, and stops this launch.",
    "403": "Known, but not allowed.",
    "404": "There is nothing of that name.",
    "405": "Not a method of this route.",
    "409": "Not in the state that it is in.",
    "410": "Given up: shut the machine down.",
    "413": "The body is too large.",
    "422": "A field is refused.",
    "429": "Too many launches.",
    "503": "The database or Temporal is away; try again.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the app, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
        )
        components = schema.setdefault("components", {})
        components["securitySchemes"] = _SCHEMES
        schemas = components.setdefault("schemas", {})
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        schemas["FieldProblem"] = FieldProblem.model_json_schema()
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas["Problem"].pop("$defs", None)
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _describe(path, method, operation)
        app.openapi_schema = schema
    return app.openapi_schema


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    operation.setdefault("security", [{"AdminToken": []}, {"ApiKey": []}])
    responses = operation["responses"]
    if "requestBody" in operation or operation.get("parameters"):
        responses.pop("422", None)
    for status in _answered(path, method, operation):
        if status not in responses:
            responses[status] = {
                "description": _PROBLEMS[status],
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }


def _answered(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    """The problems that a route can answer."""
    if path.startswith("/health"):
        return ["400"]
    if path == "/metrics":
        return ["400", "401", "403", "503"]
    agents = operation["tags"] == ["node agents"]
    statuses = ["400", "503"] if path.startswith("/admin") else ["400"]
    if path.startswith("/admin"):
        statuses.append("401")
        if not agents:
            statuses.append("403")
    if "{" in path or "job_id" in str(operation.get("parameters")) or agents:
        statuses.append("404")
    if agents and path.startswith("/admin"):
        statuses.append("410")
    if method in ("post", "put", "patch", "delete"):
        statuses += ["409", "413"]
    if operation.get("parameters") or "requestBody" in operation:
        statuses.append("422")
    if path.endswith("/launch"):
        statuses += ["402", "429"]
    return statuses
