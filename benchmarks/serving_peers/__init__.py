"""The parts of `benchmarks/serving.py`: the models, the servers and their environments, the load, the report.

The files `launch_*.py` run inside a peer's own environment and import nothing of this package but `launch_common`.
"""
