"""Models, states, errors, ids, workflow messages, and the policies as pure functions.

Imports the standard library and pydantic only: workflows pass this package through Temporal's sandbox.
"""
