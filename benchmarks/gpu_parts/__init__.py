"""Sections of `benchmarks/gpu.py`, which puts its own folder on the path: these modules are no part of the package."""
