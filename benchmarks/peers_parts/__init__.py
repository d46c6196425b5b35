"""Parts of `benchmarks/peers.py`: what peers there are, their environments and weights, the work, launches, reports."""
