"""The cost ledger, and budgets.

Machines that are known by now enter the ledger as their attempts have them; what the same would have cost on demand
when they were made is not known any more.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlmodel.sql.sqltypes import AutoString

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cost_intervals",
        sa.Column("cluster_name", AutoString(), nullable=False),
        sa.Column("instance_id", AutoString(), nullable=False),
        sa.Column("backend", AutoString(), nullable=False),
        sa.Column("provider", AutoString(), nullable=False),
        sa.Column("region", AutoString(), nullable=False),
        sa.Column("zone", AutoString(), nullable=True),
        sa.Column("instance_type", AutoString(), nullable=False),
        sa.Column("market", AutoString(), nullable=False),
        sa.Column("hourly_price", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("on_demand_price", sa.Numeric(precision=14, scale=6), nullable=True),
        sa.Column("tenant", AutoString(), nullable=True),
        sa.Column("principal", AutoString(), nullable=True),
        sa.Column("model_name", AutoString(), nullable=True),
        sa.Column("deployment", AutoString(), nullable=True),
        sa.Column("experiment", AutoString(), nullable=True),
        sa.Column("launch_id", AutoString(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("node_id", AutoString(), nullable=True),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("cluster_name"),
    )
    op.create_index("ix_cost_intervals_started", "cost_intervals", ["started_at", "cluster_name"], unique=False)
    op.create_index("ix_cost_intervals_ended", "cost_intervals", ["ended_at"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("id", AutoString(), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("scope", AutoString(), nullable=False),
        sa.Column("value", AutoString(), nullable=True),
        sa.Column("period", AutoString(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column(
            "alert_fractions",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("hard_stop", AutoString(), nullable=False),
        sa.Column("created_by", AutoString(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget_id", AutoString(), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fraction", sa.Numeric(precision=6, scale=4), nullable=False),
        sa.Column("spent", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("amount", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("budget_id", "period_start", "fraction"),
    )
    op.execute(
        """
        INSERT INTO cost_intervals (
            cluster_name, instance_id, backend, provider, region, zone, instance_type, market, hourly_price, tenant,
            principal, model_name, deployment, launch_id, attempt, node_id, sandbox, started_at, ended_at
        )
        SELECT a.cluster_name, coalesce(a.instance_id, ''), a.backend, a.cloud, a.region, a.zone, a.instance_type,
               a.market, a.hourly_price, l.tenant, l.principal, l.model_name, l.deployment, l.id, a.number, a.node_id,
               l.sandbox, a.created_at, coalesce(a.closed_at, n.terminated_at)
        FROM launch_attempts a
        JOIN launches l ON l.id = a.launch_id
        LEFT JOIN nodes n ON n.cluster_name = a.cluster_name
        WHERE a.created_at IS NOT NULL
        """
    )


def downgrade() -> None:
    op.drop_table("budget_alerts")
    op.drop_table("budgets")
    op.drop_index("ix_cost_intervals_ended", table_name="cost_intervals")
    op.drop_index("ix_cost_intervals_started", table_name="cost_intervals")
    op.drop_table("cost_intervals")
