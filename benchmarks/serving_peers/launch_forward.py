"""The model alone, with no server around it: `python -m serving_peers.launch_forward SECONDS`.

Tells when it is loaded. Then, for each number of rows on stdin, runs the model on as many for so long and tells how many
rows a second that were.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from serving_peers import launch_common

if __name__ == "__main__":
    run = launch_common.load()
    row = tuple(int(n) for n in os.environ["BENCH_ROW"].split(","))
    print("loaded", flush=True)
    for line in sys.stdin:
        x = np.random.default_rng(0).normal(size=(int(line), *row)).astype(np.float32)
        run(x)
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(sys.argv[1]):
            run(x)
            calls += 1
        print(calls * len(x) / (time.perf_counter() - start), flush=True)
