"""What `import mlopsnb` and `%load_ext mlopsnb` cost, beside what a notebook pays anyway and beside `import mlflow`.

    python benchmarks/import_time.py [RUNS]

Each number is the median over fresh processes of the time from the start of the interpreter to its end, in one run of
this script; the processes take turns, so that a slow moment hits all of them alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

_SHELL = "from IPython.core.interactiveshell import InteractiveShell; s = InteractiveShell.instance()"
CASES = {
    "python": "pass",
    "import mlopsnb": "import mlopsnb",
    "IPython shell": _SHELL,
    "IPython shell + %load_ext mlopsnb": f"{_SHELL}; s.run_line_magic('load_ext', 'mlopsnb')",
    "import mlflow": "import mlflow",
}


def measure(runs: int) -> dict[str, float]:
    """Return the median seconds of each case."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(runs):
        for name, code in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    found = measure(runs)
    print(f"median of {runs} runs, Python {sys.version.split()[0]}")
    for name, seconds in found.items():
        print(f"{seconds * 1000:8.0f} ms  {name}")
    imported = found["import mlopsnb"] - found["python"]
    loaded = found["IPython shell + %load_ext mlopsnb"] - found["IPython shell"]
    mlflow = found["import mlflow"] - found["python"]
    print(
        f"{imported * 1000:8.1f} ms  import mlopsnb, beyond python ({mlflow / imported:.0f} times less than mlflow)"
    )
    share = found["IPython shell + %load_ext mlopsnb"] / found["IPython shell"]
    print(f"{loaded * 1000:8.1f} ms  %load_ext mlopsnb, beyond IPython ({share:.2f} times bare IPython)")


if __name__ == "__main__":
    main()
