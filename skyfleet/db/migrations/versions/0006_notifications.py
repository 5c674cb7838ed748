"""Notifications: the outbox, the channels, and what became of each message.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _time(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _list(name: str) -> sa.Column[Any]:
    return sa.Column(
        name, postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
    )


def upgrade() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        _time("at", nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=True),
        sa.Column(
            "data",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("dedupe", sa.String(), nullable=False, unique=True),
        _time("routed_at"),
    )
    for column in ("kind", "subject", "tenant"):
        op.create_index(f"ix_notifications_{column}", "notifications", [column])
    op.create_index("ix_notifications_unrouted", "notifications", ["id"], postgresql_where=sa.text("routed_at IS NULL"))
    op.create_table(
        "notification_channels",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("masked_url", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        _list("kinds"),
        _list("tenants"),
        sa.Column("min_severity", sa.String(), nullable=False),
        sa.Column("throttle_count", sa.Integer(), nullable=False),
        sa.Column("throttle_seconds", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        _time("created_at", nullable=False),
        _time("updated_at", nullable=False),
    )
    op.create_table(
        "notification_deliveries",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("notification_id", sa.BigInteger(), sa.ForeignKey("notifications.id"), nullable=False),
        sa.Column(
            "channel_id", sa.String(), sa.ForeignKey("notification_channels.id", ondelete="SET NULL"), nullable=True
        ),
        sa.Column("channel_name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        _time("held_at"),
        _time("released_at"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _time("next_attempt_at"),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("summary_id", sa.BigInteger(), sa.ForeignKey("notifications.id"), nullable=True),
        _time("created_at", nullable=False),
        _time("ended_at"),
        sa.UniqueConstraint("notification_id", "channel_id", name="uq_notification_deliveries_once"),
    )
    op.create_index(
        "ix_notification_deliveries_pending",
        "notification_deliveries",
        ["channel_id", "kind"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_notification_deliveries_sent", "notification_deliveries", ["channel_id", "kind", "ended_at"])


def downgrade() -> None:
    for table in ("notification_deliveries", "notification_channels", "notifications"):
        op.drop_table(table)
