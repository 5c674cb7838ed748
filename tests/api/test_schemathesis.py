"""schemathesis over our OpenAPI: no input answers 5xx, and what is answered is what is documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from api.app import create_app
from skyfleet.settings import Settings
from tests.api.conftest import ADMIN, FakeWorkflows

_EXAMPLES = 12

#: The document does not depend on what is behind the API.
_DOCUMENT = create_app(Settings(), FakeWorkflows()).openapi()
_schema = schemathesis.openapi.from_dict(_DOCUMENT).exclude(path_regex=r"/events$")


def _operations() -> Iterator[Any]:
    for result in _schema.get_all_operations():
        operation = result.ok()
        yield pytest.param(operation, id=f"{operation.method.upper()} {operation.path}")


@pytest.mark.parametrize("operation", list(_operations()))
async def test_no_input_answers_500(operation: Any, served: str, app: FastAPI) -> None:
    import asyncio

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        response = case.call(base_url=f"http://{served}", headers=ADMIN)
        case.validate_response(
            response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
        )

    # schemathesis is blocking; the server runs in this loop.
    await asyncio.to_thread(run)
