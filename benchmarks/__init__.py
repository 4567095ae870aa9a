"""Benchmarks: ours and a peer in one run, alternating; see README.md."""
