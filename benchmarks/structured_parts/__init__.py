"""The parts of benchmarks/structured.py."""
