"""Benchmarks: each runs the thing and its peers in one run and prints ratios."""
