"""How many GPUs a place refused, for clusters of one's own.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("capacity_refusals", sa.Column("gpu_count", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("capacity_refusals", "gpu_count")
