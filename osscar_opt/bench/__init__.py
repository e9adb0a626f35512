"""Benchmarks: methods on instances, each run in a process of its own; and the demo on a real layer."""
