"""A node's life: health, drain, replacement, its end by age or idleness, its history.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlmodel.sql.sqltypes import AutoString

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TEXT = (
    *("health", "terminate_reason", "drain_requested_by", "drain_reason"),
    *("replace_requested_by", "replace_reason", "replaced_by"),
)
_TIMES = ("reached_at", "drain_requested_at", "replace_requested_at", "workflow_heard_at", "idle_since")
_JSON = ("health_state", "signals")
_NUMBERS = ("max_life_seconds", "idle_shutdown_seconds")


def upgrade() -> None:
    for name in _TEXT:
        op.add_column("nodes", sa.Column(name, AutoString(), nullable=True))
    for name in _TIMES:
        op.add_column("nodes", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    for name in _JSON:
        op.add_column("nodes", sa.Column(name, postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    for name in _NUMBERS:
        op.add_column("nodes", sa.Column(name, sa.Integer(), nullable=True))
    op.add_column("nodes", sa.Column("drain_seconds", sa.Float(), nullable=True))
    op.add_column("nodes", sa.Column("health_detail", AutoString(), server_default="", nullable=False))
    op.add_column("nodes", sa.Column("routable", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("launches", sa.Column("replaces_node_id", AutoString(), nullable=True))
    op.create_table(
        "node_events",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("message", AutoString(), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("dedupe", AutoString(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("node_id", "dedupe", name="uq_node_events_dedupe"),
    )
    op.create_index("ix_node_events_node_id_id", "node_events", ["node_id", "id"], unique=False)
    op.create_table(
        "fleet_watch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("serving", sa.Integer(), nullable=False),
        sa.Column("sick", sa.Integer(), nullable=False),
        sa.Column("breaker_open_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "clouds", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("fleet_watch")
    op.drop_index("ix_node_events_node_id_id", table_name="node_events")
    op.drop_table("node_events")
    op.drop_column("launches", "replaces_node_id")
    for name in ("routable", "health_detail", "drain_seconds", *_NUMBERS, *_JSON, *_TIMES, *_TEXT):
        op.drop_column("nodes", name)
