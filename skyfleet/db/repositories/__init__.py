"""All SQL. One repository a subject; the caller owns the transaction."""

from skyfleet.db.repositories.audit import ApiKeyRepository, AuditRepository
from skyfleet.db.repositories.budgets import BudgetRepository
from skyfleet.db.repositories.catalog import (
    AgentBundleRepository,
    CatalogRepository,
    ModelBucketRepository,
    ModelRepository,
    RefusalRepository,
)
from skyfleet.db.repositories.costs import CostRepository
from skyfleet.db.repositories.fleet import FleetRepository
from skyfleet.db.repositories.launches import AttemptRepository, LaunchRepository
from skyfleet.db.repositories.names import GivenUpNameRepository
from skyfleet.db.repositories.nodes import NodeRepository
from skyfleet.db.repositories.notifications import ChannelRepository, DeliveryRepository, NotificationRepository
from skyfleet.db.repositories.watch import WatchRepository

__all__ = [
    "AgentBundleRepository",
    "ApiKeyRepository",
    "AttemptRepository",
    "AuditRepository",
    "BudgetRepository",
    "CatalogRepository",
    "ChannelRepository",
    "CostRepository",
    "DeliveryRepository",
    "FleetRepository",
    "GivenUpNameRepository",
    "LaunchRepository",
    "ModelBucketRepository",
    "ModelRepository",
    "NodeRepository",
    "NotificationRepository",
    "RefusalRepository",
    "WatchRepository",
]
