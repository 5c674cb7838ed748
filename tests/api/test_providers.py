"""What the clouds sell and which are enabled, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from skyfleet.db.repositories import AuditRepository, CatalogRepository
from skyfleet.db.session import Database
from skyfleet.domain.offers import CloudAccess
from skyfleet.domain.views import OfferList, ProviderList
from tests.api.conftest import LLAMA, OFFERS, FakeWorkflows


async def found(api: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    """The answer to a question for offers."""
    response = await api.get("/admin/offers", params=params)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


# --- offers -----------------------------------------------------------------------------------------------------


async def test_spot_says_what_it_saves_in_the_same_place(refusing: httpx.AsyncClient) -> None:
    offers = (await found(refusing, provider="azure"))["offers"]
    savings = {(offer["zone"], offer["market"]): offer["spot_saving"] for offer in offers}
    assert savings == {
        ("eastus-1", "spot"): 0.8,  # 0.64 for 3.20
        ("eastus-2", "spot"): 0.8,
        ("westus2-1", "spot"): 0.7812,  # 0.70 for 3.20
        ("eastus-1", "on_demand"): None,
        ("eastus-2", "on_demand"): None,
        ("westus2-1", "on_demand"): None,
        ("centralus-1", "on_demand"): None,
    }


async def test_offers_that_a_model_fits_can_be_asked_for_alone(refusing: httpx.AsyncClient) -> None:
    fitting = await found(refusing, model_name=LLAMA, fits="true")
    others = await found(refusing, model_name=LLAMA, fits="false")
    assert {offer["gpu"] for offer in fitting["offers"]} == {"A10", "A10G"}
    assert {offer["gpu"] for offer in others["offers"]} == {"T4", "V100"}
    assert fitting["total"] + others["total"] == len(OFFERS)
    assert (await refusing.get("/admin/offers", params={"fits": "true"})).json()["errors"][0]["field"] == "fits"


async def test_pages_of_offers_follow_one_another(refusing: httpx.AsyncClient) -> None:
    everything = await found(refusing)
    assert (everything["total"], everything["next"]) == (len(OFFERS), None)
    pages, cursor = [], None
    while True:
        page = await found(refusing, limit=4, **({"cursor": cursor} if cursor else {}))
        assert page["total"] == len(OFFERS)
        pages.append(page["offers"])
        cursor = page["next"]
        if cursor is None:
            break
    assert [len(page) for page in pages[:-1]] == [4] * (len(pages) - 1)
    assert [offer for page in pages for offer in page] == everything["offers"]


@pytest.mark.parametrize("cursor", ["x", "TmFOfGE", "SW5maW5pdHl8YQ", "MXwA", "\u0661"])
async def test_a_cursor_that_is_none_of_ours_is_refused(refusing: httpx.AsyncClient, cursor: str) -> None:
    assert (await refusing.get("/admin/offers", params={"cursor": cursor})).status_code == 422


async def test_a_page_is_no_longer_than_the_api_gives(refusing: httpx.AsyncClient) -> None:
    assert (await refusing.get("/admin/offers", params={"limit": 2_001})).status_code == 422


# --- providers --------------------------------------------------------------------------------------------------


async def test_each_cloud_says_whether_it_is_enabled_and_what_it_sells(
    api: httpx.AsyncClient, database: Database
) -> None:
    async with database.transaction() as session:
        await CatalogRepository(session).replace_access(
            "local",
            [
                CloudAccess(cloud="gcp", enabled=False, reason="no key\n  $ gcloud auth login"),
                CloudAccess(cloud="azure", enabled=True),
                CloudAccess(cloud="aws", enabled=True),
            ],
        )
    answer = (await api.get("/admin/providers")).json()
    assert [one["cloud"] for one in answer["providers"]] == ["aws", "azure", "gcp"]
    aws, _, gcp = answer["providers"]
    assert aws["enabled"]
    assert aws["sandbox"]
    assert aws["offers"] == 6
    assert float(aws["cheapest_price"]) == 0.16
    assert aws["gpus"] == ["A10G", "T4"]
    assert [(one["region"], one["offers"], float(one["cheapest_price"])) for one in aws["regions"]] == [
        ("us-west-2", 2, 0.16),
        ("us-east-1", 4, 0.40),
    ]
    assert not gcp["enabled"]
    assert gcp["reason"] == "no key\n  $ gcloud auth login"
    assert (gcp["offers"], gcp["regions"], gcp["cheapest_price"]) == (0, [], None)
    assert gcp["checked_at"] is not None
    (backend,) = answer["backends"]
    assert (backend["name"], backend["error"]) == ("local", None)
    assert backend["read_at"] is not None


async def test_a_cloud_that_was_not_checked_yet_is_listed_with_what_it_sells(refusing: httpx.AsyncClient) -> None:
    providers = (await refusing.get("/admin/providers")).json()["providers"]
    assert {(one["cloud"], one["enabled"], one["checked_at"]) for one in providers} == {
        ("aws", True, None),
        ("azure", True, None),
    }


async def test_a_check_can_be_asked_for(api: httpx.AsyncClient, workflows: FakeWorkflows, database: Database) -> None:
    response = await api.post("/admin/providers/refresh")
    assert response.status_code == 202
    again = await api.post("/admin/providers/refresh")
    assert len({subject for subject, _ in workflows.named("recheck_clouds")}) == 2
    assert again.json()["requested_at"] > response.json()["requested_at"]
    async with database.transaction() as session:
        await CatalogRepository(session).replace_access("local", [CloudAccess(cloud="aws", enabled=True)])
        audited = await AuditRepository(session).page(limit=10, action="providers.refresh")
    assert len(audited) == 2
    aws = (await api.get("/admin/providers")).json()["providers"][0]
    assert aws["checked_at"] >= again.json()["requested_at"]


async def test_a_check_needs_temporal(api: httpx.AsyncClient, workflows: FakeWorkflows) -> None:
    workflows.away = True
    assert (await api.post("/admin/providers/refresh")).status_code == 503


async def test_the_documents_examples_are_answers(app: FastAPI) -> None:
    paths = app.openapi()["paths"]

    def example(path: str) -> Any:
        return paths[path]["get"]["responses"]["200"]["content"]["application/json"]["example"]

    assert OfferList.model_validate(example("/admin/offers")).offers
    assert ProviderList.model_validate(example("/admin/providers")).providers
