"""The Temporal search attributes, named here alone. With them the Temporal Web UI filters launches and nodes."""

from __future__ import annotations

from typing import Final

STAGE: Final = "SkyfleetStage"
CLOUD: Final = "SkyfleetCloud"
REGION: Final = "SkyfleetRegion"
MARKET: Final = "SkyfleetMarket"
DEPLOYMENT: Final = "SkyfleetDeployment"
TENANT: Final = "SkyfleetTenant"

#: Every attribute and its Temporal type, for whoever registers them with a server.
NAMES: Final[dict[str, str]] = dict.fromkeys((STAGE, CLOUD, REGION, MARKET, DEPLOYMENT, TENANT), "Keyword")
