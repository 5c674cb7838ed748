"""The tables of a launch: models, launches, attempts, events, nodes, audit, API keys, memory and catalog.

Revision ID: 0001
Revises: none
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_bundles",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column(
            "detail", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("remote", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_audit_action"), "audit", ["action"], unique=False)
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.create_index(op.f("ix_audit_subject"), "audit", ["subject"], unique=False)
    op.create_table(
        "backends",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "engines", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "capacity_refusals",
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("cloud", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=True),
        sa.Column("instance_type", sa.String(), nullable=False),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("launch_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("place"),
    )
    op.create_index(op.f("ix_capacity_refusals_until"), "capacity_refusals", ["until"], unique=False)
    op.create_table(
        "launches",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("request_hash", sa.String(), nullable=False),
        sa.Column(
            "spec", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=True),
        sa.Column("engine", sa.String(), nullable=True),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column(
            "reached", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("last_event_seq", sa.Integer(), nullable=False),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.Column("provider", sa.String(), nullable=True),
        sa.Column("region", sa.String(), nullable=True),
        sa.Column("zone", sa.String(), nullable=True),
        sa.Column("instance_type", sa.String(), nullable=True),
        sa.Column("market", sa.String(), nullable=True),
        sa.Column("hourly_price", sa.Numeric(precision=14, scale=6), nullable=True),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.Column("cluster_name", sa.String(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("workflow_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_by", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("principal", "idempotency_key", name="uq_launches_idempotency"),
    )
    op.create_index("ix_launches_created_at_id", "launches", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_launches_deployment"), "launches", ["deployment"], unique=False)
    op.create_index(op.f("ix_launches_model_name"), "launches", ["model_name"], unique=False)
    op.create_index(
        "ix_launches_open", "launches", ["created_at"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(op.f("ix_launches_stage"), "launches", ["stage"], unique=False)
    op.create_index(op.f("ix_launches_status"), "launches", ["status"], unique=False)
    op.create_index(op.f("ix_launches_tenant"), "launches", ["tenant"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("size", sa.String(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("context_length", sa.Integer(), nullable=True),
        sa.Column("vram_required_gb", sa.Float(), nullable=False),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "offers",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("cloud", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=True),
        sa.Column("instance_type", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("hourly_price", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("gpu_count", sa.Integer(), nullable=False),
        sa.Column("gpu_memory_gb", sa.Float(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_gb", sa.Float(), nullable=False),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index(op.f("ix_offers_backend"), "offers", ["backend"], unique=False)
    op.create_table(
        "launch_attempts",
        sa.Column("launch_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("cluster_name", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("cloud", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=True),
        sa.Column("instance_type", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("hourly_price", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("gpu_count", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column(
            "token_hashes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("token_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("registration_key_hash", sa.String(), nullable=True),
        sa.Column("instance_id", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("last_agent_stage", sa.String(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provision_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("running_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("teardown_alerted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["launch_id"],
            ["launches.id"],
        ),
        sa.PrimaryKeyConstraint("launch_id", "number"),
        sa.UniqueConstraint("cluster_name"),
        sa.UniqueConstraint("node_id"),
    )
    op.create_index(op.f("ix_launch_attempts_state"), "launch_attempts", ["state"], unique=False)
    op.create_table(
        "launch_events",
        sa.Column("launch_id", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("dedupe", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["launch_id"],
            ["launches.id"],
        ),
        sa.PrimaryKeyConstraint("launch_id", "seq"),
        sa.UniqueConstraint("launch_id", "dedupe", name="uq_launch_events_dedupe"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("launch_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cluster_name", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=True),
        sa.Column("instance_type", sa.String(), nullable=False),
        sa.Column("gpu_type", sa.String(), nullable=True),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("hourly_price", sa.Numeric(precision=14, scale=6), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=True),
        sa.Column("engine", sa.String(), nullable=True),
        sa.Column("endpoint_url", sa.String(), nullable=False),
        sa.Column("agent_version", sa.String(), nullable=True),
        sa.Column("sandbox", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_message", sa.String(), nullable=False),
        sa.Column("health_score", sa.Float(), nullable=True),
        sa.Column("heartbeat_key_hash", sa.String(), nullable=False),
        sa.Column("first_heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_sequence", sa.Integer(), nullable=False),
        sa.Column("last_heartbeat", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("termination_warning", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("terminate_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("terminate_requested_by", sa.String(), nullable=True),
        sa.Column("billed_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("terminated_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["launch_id"],
            ["launches.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("cluster_name"),
    )
    op.create_index(op.f("ix_nodes_deployment"), "nodes", ["deployment"], unique=False)
    op.create_index(op.f("ix_nodes_launch_id"), "nodes", ["launch_id"], unique=False)
    op.create_index(op.f("ix_nodes_model_name"), "nodes", ["model_name"], unique=False)
    op.create_index(op.f("ix_nodes_registered_at"), "nodes", ["registered_at"], unique=False)
    op.create_index(op.f("ix_nodes_status"), "nodes", ["status"], unique=False)
    op.create_index(op.f("ix_nodes_tenant"), "nodes", ["tenant"], unique=False)
    # Listeners (server-sent events, WebSockets) hear of an event when its transaction commits, not before.
    op.execute(
        """
        CREATE FUNCTION notify_launch_event() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('launch_events', NEW.launch_id || ':' || NEW.seq);
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER launch_events_notify AFTER INSERT ON launch_events
        FOR EACH ROW EXECUTE FUNCTION notify_launch_event()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER launch_events_notify ON launch_events")
    op.execute("DROP FUNCTION notify_launch_event()")
    op.drop_index(op.f("ix_nodes_tenant"), table_name="nodes")
    op.drop_index(op.f("ix_nodes_status"), table_name="nodes")
    op.drop_index(op.f("ix_nodes_registered_at"), table_name="nodes")
    op.drop_index(op.f("ix_nodes_model_name"), table_name="nodes")
    op.drop_index(op.f("ix_nodes_launch_id"), table_name="nodes")
    op.drop_index(op.f("ix_nodes_deployment"), table_name="nodes")
    op.drop_table("nodes")
    op.drop_table("launch_events")
    op.drop_index(op.f("ix_launch_attempts_state"), table_name="launch_attempts")
    op.drop_table("launch_attempts")
    op.drop_index(op.f("ix_offers_backend"), table_name="offers")
    op.drop_table("offers")
    op.drop_table("models")
    op.drop_index(op.f("ix_launches_tenant"), table_name="launches")
    op.drop_index(op.f("ix_launches_status"), table_name="launches")
    op.drop_index(op.f("ix_launches_stage"), table_name="launches")
    op.drop_index("ix_launches_open", table_name="launches", postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_index(op.f("ix_launches_model_name"), table_name="launches")
    op.drop_index(op.f("ix_launches_deployment"), table_name="launches")
    op.drop_index("ix_launches_created_at_id", table_name="launches")
    op.drop_table("launches")
    op.drop_index(op.f("ix_capacity_refusals_until"), table_name="capacity_refusals")
    op.drop_table("capacity_refusals")
    op.drop_table("backends")
    op.drop_index(op.f("ix_audit_subject"), table_name="audit")
    op.drop_index(op.f("ix_audit_at"), table_name="audit")
    op.drop_index(op.f("ix_audit_action"), table_name="audit")
    op.drop_table("audit")
    op.drop_table("api_keys")
    op.drop_table("agent_bundles")
