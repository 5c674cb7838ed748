"""What real clouds need: access to each, names that were given up, models from a bucket.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlmodel.sql.sqltypes import AutoString

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cloud_access",
        sa.Column("backend", AutoString(), nullable=False),
        sa.Column("cloud", AutoString(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("backend", "cloud"),
    )
    op.create_table(
        "given_up_names",
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index(op.f("ix_given_up_names_at"), "given_up_names", ["at"], unique=False)
    op.create_table(
        "model_buckets",
        sa.Column("url", AutoString(), nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", AutoString(), nullable=True),
        sa.Column("models", sa.Integer(), nullable=False),
        sa.Column(
            "skipped", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.PrimaryKeyConstraint("url"),
    )
    op.add_column("backends", sa.Column("offers_digest", AutoString(), nullable=True))
    op.add_column("models", sa.Column("dtype", AutoString(), nullable=True))
    op.add_column("models", sa.Column("weights_gb", sa.Float(), nullable=True))
    op.add_column("models", sa.Column("vram_estimate", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("models", sa.Column("fingerprint", AutoString(), nullable=True))


def downgrade() -> None:
    for name in ("fingerprint", "vram_estimate", "weights_gb", "dtype"):
        op.drop_column("models", name)
    op.drop_column("backends", "offers_digest")
    op.drop_table("model_buckets")
    op.drop_index(op.f("ix_given_up_names_at"), table_name="given_up_names")
    op.drop_table("given_up_names")
    op.drop_table("cloud_access")
