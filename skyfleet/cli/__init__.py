"""The `skyfleet` command line.

Nothing heavy is imported at the top of these modules: `skyfleet --help` and a mistyped option answer at once.
"""
