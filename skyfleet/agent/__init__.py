"""The node agent: starts the engine on a rented machine, reports its stages, registers, heartbeats and obeys.

Standard library only, and Python 3.10 syntax: with `skyfleet.engines` it is packed into one file (`bundle`).
"""
