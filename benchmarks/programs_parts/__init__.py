"""Parts of `benchmarks/programs.py`: inputs, both ways to write each workload, the rungs, counts, gates, the report."""
