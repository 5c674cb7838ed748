"""Skyfleet: a durable control plane for GPU fleets."""

__version__ = "0.1.0"
