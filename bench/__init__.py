"""Benchmarks: `python -m bench` runs all, `python -m bench NAME` one. Figures are ratios taken in one run."""
