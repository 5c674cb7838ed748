"""Temporal workflows, one file each. Orchestration only: every decision is a call into `skyfleet.domain`."""
