"""Typed keys of the search attributes named in `skyfleet.domain.search_attributes`."""

from __future__ import annotations

import asyncio
import logging

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, SearchAttributeUpdate, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from skyfleet.domain import search_attributes as names
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import LaunchStage

_log = logging.getLogger(__name__)

STAGE = SearchAttributeKey.for_keyword(names.STAGE)
CLOUD = SearchAttributeKey.for_keyword(names.CLOUD)
REGION = SearchAttributeKey.for_keyword(names.REGION)
MARKET = SearchAttributeKey.for_keyword(names.MARKET)
DEPLOYMENT = SearchAttributeKey.for_keyword(names.DEPLOYMENT)
TENANT = SearchAttributeKey.for_keyword(names.TENANT)


def at_start(tenant: str, deployment: str | None) -> TypedSearchAttributes:
    """What a launch starts with."""
    pairs: list[SearchAttributePair[str]] = [
        SearchAttributePair(STAGE, LaunchStage.QUEUED.value),
        SearchAttributePair(TENANT, tenant),
    ]
    if deployment is not None:
        pairs.append(SearchAttributePair(DEPLOYMENT, deployment))
    return TypedSearchAttributes(pairs)


def of_node(tenant: str, deployment: str | None, cloud: str, region: str, market: str) -> TypedSearchAttributes:
    """What a node starts with."""
    return at_start(tenant, deployment).updated(
        SearchAttributePair(STAGE, LaunchStage.READY.value),
        SearchAttributePair(CLOUD, cloud),
        SearchAttributePair(REGION, region),
        SearchAttributePair(MARKET, market),
    )


def of_stage(stage: LaunchStage) -> list[SearchAttributeUpdate[str]]:
    """What changes when a launch enters a stage."""
    return [STAGE.value_set(stage.value)]


def of_attempt(stage: LaunchStage, offer: Offer) -> list[SearchAttributeUpdate[str]]:
    """What changes when a launch tries a place."""
    return [
        STAGE.value_set(stage.value),
        CLOUD.value_set(offer.cloud),
        REGION.value_set(offer.region),
        MARKET.value_set(offer.market.value),
    ]


async def register(client: Client) -> None:
    """Register our search attributes with the server where they are missing. Waits until that is done, and says so."""
    while True:
        try:
            known = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=client.namespace)
            )
            missing = {
                name: IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{kind.upper()}")
                for name, kind in names.NAMES.items()
                if name not in known.custom_attributes
            }
            if not missing:
                return
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
            )
        except RPCError as failure:
            # Two workers that start at once both add them: the other one's success is ours.
            if failure.status is not RPCStatusCode.ALREADY_EXISTS:
                _log.warning("search attributes are not registered yet: %s", failure)
            await asyncio.sleep(0.5)
