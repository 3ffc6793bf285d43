"""The parts of `benchmarks/drift.py`: the data with known shifts, and what runs in each peer's own environment.

The files `run_*.py` run there and import nothing of mlopsnb.
"""
