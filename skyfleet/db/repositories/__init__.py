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
from skyfleet.db.repositories.launches import AttemptRepository, LaunchRepository
from skyfleet.db.repositories.names import GivenUpNameRepository
from skyfleet.db.repositories.nodes import NodeRepository

__all__ = [
    "AgentBundleRepository",
    "ApiKeyRepository",
    "AttemptRepository",
    "AuditRepository",
    "BudgetRepository",
    "CatalogRepository",
    "CostRepository",
    "GivenUpNameRepository",
    "LaunchRepository",
    "ModelBucketRepository",
    "ModelRepository",
    "NodeRepository",
    "RefusalRepository",
]
