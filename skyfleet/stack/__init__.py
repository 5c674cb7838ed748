"""The embedded stack: what `skyfleet up` runs on one machine, and how it is kept running."""
