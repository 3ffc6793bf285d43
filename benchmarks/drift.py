"""Drift reports beside Evidently's and NannyML's: time, memory, size and verdicts, on the same data in one run.

Run: python benchmarks/drift.py [--rows 1000000 --columns 50] [--times 5] [--out FILE]. The peers live in environments of
their own below `--venvs`, made by the first run. Sides take turns, and each figure is a median; CPU seconds are told
beside the wall clock, because a busy machine stretches the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from drift_peers import alarms, frames, targets
from drift_peers.measure import import_cost, measured
from serving_peers import venvs

HERE = Path(__file__).parent / "drift_peers"
EVIDENTLY = venvs.Environment(
    "evidently",
    ("evidently==0.7.23", "pandas==3.0.6", "pyarrow==26.0.1"),
    note="with pandas 3.1 Evidently cannot be imported",
)
NANNYML = venvs.Environment(
    "nannyml",
    ("nannyml==0.13.1", "statsmodels==0.15.0"),
    note="NannyML imports statsmodels without asking for it",
)
IMPORT = "from mlopsnb import drift"


def ours(reference, current, page):
    """Return what `run_evidently.py` returns, of mlopsnb; it runs in a process of its own, too."""
    from mlopsnb import drift

    before, now = pd.read_parquet(reference), pd.read_parquet(current)
    drift(before.head(500), now.head(500))
    report, cost = measured(lambda: drift(before, now))
    _, render = measured(lambda: report.to_html(page))
    same = drift(before, now, method="evidently")
    scores = {
        row.feature: {
            "drifted": row.state == "drift",
            "score": row.effect if row.effect is not None else row.p_value,
        }
        for row in same.rows
    }
    return {
        "cost": cost,
        "render": render,
        "page": Path(page).stat().st_size,
        "import": import_cost(IMPORT),
        "scores": scores,
    }


class Failed(Exception):
    """A side could not be run; the message is the end of what it said."""


def asked(*command):
    """Run *command* and return its answer, the last line that it prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{Path(command[1]).name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peer(python, script, *arguments):
    return asked(python, HERE / script, *arguments)


def self_run(*arguments):
    return asked(sys.executable, __file__, "--ours", *arguments)


def speed(python, directory, size, times):
    """Compare both on frames of *size*, rows by columns."""
    data = frames.write(directory, *map(int, size.split("x")))
    runs = [
        (
            self_run(*data, directory / "ours.html"),
            peer(python, "run_evidently.py", *data, directory / "evidently.html"),
        )
        for _ in range(times)
    ]
    found = {}
    for figure in ("wall", "cpu", "memory"):
        a, b = (statistics.median(run[side]["cost"][figure] for run in runs) for side in (0, 1))
        found[figure] = {"mlopsnb": a, "evidently": b, "ratio": b / max(a, 1e-9)}
    for figure in ("import", "page"):
        a, b = (statistics.median(run[side][figure] for run in runs) for side in (0, 1))
        found[figure] = {"mlopsnb": a, "evidently": b, "ratio": b / a}
    mine, theirs = runs[0][0]["scores"], runs[0][1]["scores"]
    verdicts = {name: is_drift(metric) == mine[name]["drifted"] for name, metric in theirs.items()}
    found["same verdict"] = {"columns": len(theirs), "same": sum(verdicts.values())}
    found["largest score difference"] = max(
        abs(m["score"] - mine[name]["score"]) for name, m in theirs.items()
    )
    return found


def is_drift(metric):
    distance = "distance" in metric["method"].lower()
    return metric["score"] >= metric["threshold"] if distance else metric["score"] <= metric["threshold"]


def loans(python, directory):
    """NannyML's own data: five columns drift from the sixth chunk on."""
    from mlopsnb.monitoring import estimation
    from mlopsnb.monitoring.live import compare_profile, count_table
    from mlopsnb.monitoring.profiling import profile
    from mlopsnb.profiles import Snapshot

    theirs = peer(python, "run_nannyml.py", directory)
    reference, analysis = (
        pd.read_parquet(directory / f"loan-{name}.parquet") for name in ("reference", "analysis")
    )
    columns = list(theirs["alerts"])
    started = time.process_time()
    made = profile(reference[columns])
    chunks = [analysis[columns][i : i + 5000] for i in range(0, len(analysis), 5000)]
    counted = [count_table(made, chunk) for chunk in chunks]
    windows = [
        Snapshot(start=i, end=i + 1, rows=c.rows, cells=c.cells, sums=c.sums) for i, c in enumerate(counted)
    ]
    report = compare_profile(made, windows)
    cpu = time.process_time() - started
    drifting = {"car_value", "salary_range", "loan_length", "repaid_loan_on_prev_car", "y_pred_proba"}
    truth = {name: [name in drifting and i >= 5 for i in range(10)] for name in columns}
    alerts = {row.feature: [w.state == "drift" for w in row.windows] for row in report.rows}

    def estimate():
        calibration = estimation.calibrate(reference["y_pred_proba"], reference["repaid"])
        return [
            estimation.estimated(calibration, c["y_pred_proba"], c["y_pred"])
            for c in (analysis[i : i + 5000] for i in range(0, len(analysis), 5000))
        ]

    return {
        "mlopsnb": cells(alerts, truth),
        "nannyml": cells(theirs["alerts"], truth),
        "cpu": cpu,
        "cbpe": beside(estimate, theirs["cbpe"]),
        "multiclass": beside(
            lambda: cards(directory, theirs["multiclass"]["calibrated"]), theirs["multiclass"]
        ),
    }


def cards(directory, calibrated):
    """Estimates of a model of three classes, on NannyML's own data; with scores left as they are where it does that."""
    from mlopsnb.monitoring import estimation

    reference, analysis = (
        pd.read_parquet(directory / f"cards-{n}.parquet") for n in ("reference", "analysis")
    )
    columns = [name for name in reference if name.startswith("y_pred_proba_")]
    places = {name.removeprefix("y_pred_proba_"): place for place, name in enumerate(columns)}
    labels, said = reference["y_true"].map(places), analysis["y_pred"].map(places)
    calibrations = estimation.calibrate_classes(reference[columns].to_numpy(), labels.to_numpy())
    as_they_are = estimation.Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    calibrations = [
        c if calibrated[name] else as_they_are for name, c in zip(places, calibrations, strict=True)
    ]
    scores, said = analysis[columns].to_numpy(), said.to_numpy()
    return [
        estimation.estimated_classes(calibrations, scores[i : i + 5000], said[i : i + 5000])
        for i in range(0, len(scores), 5000)
    ]


def beside(estimate, theirs, times=5):
    """Compare what *estimate* returns, metrics by chunk, with *theirs*, and its median CPU seconds with theirs."""
    estimates = estimate()  # once for what is loaded on first use
    took = statistics.median(cpu(estimate) for _ in range(times))
    their = theirs["estimates"]
    return {
        "largest difference": max(abs(e[m] - their[m][i]) for i, e in enumerate(estimates) for m in their),
        "mlopsnb": took,
        "nannyml": theirs["cpu"],
        "ratio": theirs["cpu"] / took,
    }


def cells(alerts, truth):
    pairs = [(a, t) for name in truth for a, t in zip(alerts[name], truth[name], strict=True)]
    return {
        "found": sum(a and t for a, t in pairs),
        "of": sum(t for _, t in pairs),
        "false": sum(a and not t for a, t in pairs),
    }


def false_alarms(python, directory, repeats):
    """How often each side is wrong, on the very same files."""
    found = {}
    for sizes in alarms.SIZES:
        places = alarms.write(directory, *sizes, repeats)
        found[f"{sizes[0]} against {sizes[1]}"] = {
            "mlopsnb": alarms.rates([alarms.ours(place) for place in places]),
            "evidently": alarms.rates(peer(python, "run_evidently_verdicts.py", *places)),
        }
        for place in places:
            shutil.rmtree(place)
    return found


def rendering():
    """Milliseconds to render 50 features over 48 windows, and to merge a day of ten replicas."""
    from mlopsnb import drift, profile
    from mlopsnb.profiles import Tally, merge

    x = np.random.default_rng(0).normal(size=(5000, 50))
    made = profile(x)
    tally, windows = Tally(made), []
    for i in range(48):
        tally.add_block(range(50), x[:200] + i / 50)
        windows.append(tally.take(i, i + 1))
    plain, live = drift(x, x + 0.1), drift(made, windows)
    few = profile(x[:, :32])
    tally = Tally(few)
    tally.add_block(range(32), x[:, :32])
    many = [tally.take(0, 1) for _ in range(240)]
    calls = {
        "render": plain._repr_html_,
        "render 48 windows": live._repr_html_,
        "merge 240 snapshots": lambda: merge(many),
    }
    return {name: 1e3 * statistics.median(cpu(call) for _ in range(9)) for name, call in calls.items()}


def cpu(call):
    started = time.process_time()
    call()
    return time.process_time() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", nargs=3, metavar=("REFERENCE", "CURRENT", "PAGE"), help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="*", default=["100000x20", "1000000x50"], help="rows x columns")
    parser.add_argument("--times", type=int, default=5, help="runs of each side; the median counts")
    parser.add_argument("--repeats", type=int, default=20, help="reports of each size for alarms and power")
    parser.add_argument("--parts", nargs="*", default=["speed", "loans", "rendering", "alarms"])
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache/mlopsnb/benchmarks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(ours(*args.ours)))
        return 0
    found = {"machine": {"processors": os.cpu_count(), "load": os.getloadavg()[0]}}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, run in parts(args, Path(scratch)):
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                found |= run()
            except (Failed, venvs.CannotInstall) as exc:
                failed.append((f"{name}: {exc}", False))
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    judged = [*targets.lines(found), *failed]
    for line, met in judged:
        print(f"{'met' if met else 'NOT MET':8}{line}")
    return 0 if all(met for _, met in judged) else 1


def parts(args, directory):
    """Yield what was asked for, by name, the quickest first; each returns its figures."""
    python = partial(venvs.python_of, directory=args.venvs)
    if "rendering" in args.parts:
        yield "rendering", lambda: {"rendering, ms": rendering()}
    if "loans" in args.parts:
        yield "loans", lambda: {"car loans": loans(python(NANNYML), directory)}
    if "alarms" in args.parts:
        yield (
            "alarms",
            lambda: {"false alarms and power": false_alarms(python(EVIDENTLY), directory, args.repeats)},
        )
    for size in args.sizes if "speed" in args.parts else ():
        run = partial(speed, directory=directory, size=size, times=args.times)
        yield f"speed, {size}", lambda size=size, run=run: {size: run(python(EVIDENTLY))}


if __name__ == "__main__":
    raise SystemExit(main())
