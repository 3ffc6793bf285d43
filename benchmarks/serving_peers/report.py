"""From measurements to what people read: medians, the markdown table, the ratios, the plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving_peers.cases import CASES

if TYPE_CHECKING:
    from serving_peers.load import Load

OURS = "mlopsnb"
PYTHON_PEERS = ("mlserver", "kserve", "litserve", "bentoml", "mlflow")
FOREIGN_LIMIT = 0.2
"""Cores that others may take before a measurement is marked: more than that, and it says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One server on one case in one round."""

    server: str
    family: str
    case: str
    round: int
    ready_seconds: float
    pss_mb: float
    loads: tuple[Load, ...]
    load_average: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a server has no measurement, or one fewer."""

    server: str
    case: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One server on one case: the medians over the rounds; `foreign_cpu` and `failed` are the worst."""

    server: str
    family: str
    rounds: int
    ready_seconds: float
    pss_mb: float
    at: Mapping[int, Mapping[str, float]]


RIVALS: Mapping[str, Callable[[Line], bool]] = {
    "Triton": lambda x: x.family == "triton",
    "MLServer": lambda x: x.family == "mlserver",
    "best Python peer": lambda x: x.family in PYTHON_PEERS,
    "best peer": lambda x: x.family in ("triton", *PYTHON_PEERS),
    "bare loop": lambda x: x.family == "bare loop",
    "ceiling": lambda x: x.family == "ceiling",
}
"""Whom we are compared with; of several lines the best one counts."""

_MEDIANS = ("rps", "p50_ms", "p99_ms", "cpu_us", "wrk_cpu")
_WORST = ("foreign_cpu", "failed")


def lines(measurements: Iterable[Measurement], case: str) -> list[Line]:
    """Return one line a server, in the order in which they were measured."""
    by_server: dict[str, list[Measurement]] = {}
    for m in measurements:
        if m.case == case:
            by_server.setdefault(m.server, []).append(m)
    return [_line(group) for group in by_server.values()]


def _line(group: Sequence[Measurement]) -> Line:
    at: dict[int, dict[str, float]] = {}
    for concurrency in [load.concurrency for load in group[0].loads]:
        loads = [load for m in group for load in m.loads if load.concurrency == concurrency]
        at[concurrency] = {
            **{key: statistics.median(getattr(x, key) for x in loads) for key in _MEDIANS},
            **{key: max(getattr(x, key) for x in loads) for key in _WORST},
        }
    return Line(
        server=group[0].server,
        family=group[0].family,
        rounds=len(group),
        ready_seconds=statistics.median(m.ready_seconds for m in group),
        pss_mb=statistics.median(m.pss_mb for m in group),
        at=at,
    )


def table(measurements: Sequence[Measurement], failures: Sequence[Failure], case: str) -> str:
    """Return the markdown of one case: a line a server, and whoever could not be measured, with the reason."""
    found = lines(measurements, case)
    out = [f"## {CASES[case].title}", ""]
    if found:
        levels = list(found[0].at)
        each = ", ".join(map(str, levels))
        head = [
            "server",
            *(f"c={c}: rps / P50 / P99 ms" for c in levels),
            *(
                f"CPU µs a request, c={each}",
                "ready s",
                "PSS MB",
                "load's cores",
                "others' cores, worst",
                "rounds",
            ),
        ]
        out += [row(head), row(["---"] * len(head)), *(row(_cells(line)) for line in found)]
    missing = [f for f in failures if f.case == case]
    out += ["", *(f"- not measured: **{f.server}** (round {f.round}): {f.reason}" for f in missing)]
    return "\n".join(out).rstrip() + "\n"


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: Line) -> list[str]:
    def each(key: str, form: str) -> str:
        return " / ".join(format(at[key], form) for at in line.at.values())

    def speed(at: Mapping[str, float]) -> str:
        failed = f" ({at['failed']:.0f} failed)" if at["failed"] else ""
        return f"{at['rps']:,.0f} / {at['p50_ms']:.2f} / {at['p99_ms']:.2f}{failed}"

    foreign = max(at["foreign_cpu"] for at in line.at.values())
    return [
        line.server,
        *(speed(at) for at in line.at.values()),
        each("cpu_us", ",.0f"),
        f"{line.ready_seconds:.1f}",
        f"{line.pss_mb:.0f}",
        each("wrk_cpu", ".2f"),
        f"{foreign:.2f}{' !' if foreign > FOREIGN_LIMIT else ''}",
        str(line.rounds),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One of ours over the best of *against* at one concurrency; `rival` is which one that was."""

    case: str
    ours: str
    concurrency: int
    against: str
    rival: str
    rps: float
    p50: float
    p99: float


def ratios(measurements: Sequence[Measurement]) -> list[Ratio]:
    """Return the ratios that matter, of each of our variants against the best variant of each rival.

    More is better in `rps`, less in `p50` and `p99`.
    """
    found = []
    for case in dict.fromkeys(m.case for m in measurements):
        all_lines = lines(measurements, case)
        for ours in (x for x in all_lines if x.family == OURS):
            for against, belongs in RIVALS.items():
                rivals = [x for x in all_lines if belongs(x)]
                if rivals:
                    found += [_ratio(case, c, against, ours, rivals) for c in ours.at]
    return found


def _ratio(case: str, concurrency: int, against: str, ours: Line, rivals: Sequence[Line]) -> Ratio:
    best = max(rivals, key=lambda x: x.at[concurrency]["rps"])
    mine, theirs = ours.at[concurrency], best.at[concurrency]
    return Ratio(
        case=case,
        ours=ours.server,
        concurrency=concurrency,
        against=against,
        rival=best.server,
        rps=mine["rps"] / max(theirs["rps"], 1e-9),
        p50=mine["p50_ms"] / max(theirs["p50_ms"], 1e-9),
        p99=mine["p99_ms"] / max(theirs["p99_ms"], 1e-9),
    )


def ratio_table(found: Sequence[Ratio]) -> str:
    """Return the ratios as markdown: requests a second (P50, P99), by concurrency."""
    if not found:
        return "No ratios: they need our server and at least one other.\n"
    levels = sorted({r.concurrency for r in found})
    head = ["model", "ours", "÷", *(f"c={c}: rps (P50, P99), rival" for c in levels)]
    out = ["## Ratios", "", row(head), row(["---"] * len(head))]
    for key in dict.fromkeys((r.case, r.ours, r.against) for r in found):
        of = {r.concurrency: r for r in found if (r.case, r.ours, r.against) == key}
        out.append(row([*key, *(_said(of[c]) if c in of else "" for c in levels)]))
    return "\n".join(out) + "\n"


def _said(ratio: Ratio) -> str:
    return f"{ratio.rps:.2f} ({ratio.p50:.2f}, {ratio.p99:.2f}), {ratio.rival}"


def plot(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw requests a second and P99, a row of panels a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(m.case for m in measurements))
    figure, panels = pyplot.subplots(
        len(cases), 2, figsize=(13, 4.2 * len(cases)), squeeze=False, layout="constrained"
    )
    for pair, case in zip(panels, cases, strict=True):
        found = lines(measurements, case)
        for panel, key, label in ((pair[0], "rps", "requests a second"), (pair[1], "p99_ms", "P99, ms")):
            _bars(panel, found, key)
            panel.set_title(f"{CASES[case].title}: {label}", fontsize=10)
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(panel, found: Sequence[Line], key: str) -> None:
    levels = list(found[0].at)
    height = 0.8 / len(levels)
    for number, concurrency in enumerate(levels):
        places = [place + (number - (len(levels) - 1) / 2) * height for place in range(len(found))]
        values = [line.at[concurrency][key] for line in found]
        panel.barh(places, values, height=height, label=f"c={concurrency}", color=f"C{number}")
    panel.set_yticks(range(len(found)), [line.server for line in found], fontsize=8)
    for label, line in zip(panel.get_yticklabels(), found, strict=True):
        label.set_fontweight("bold" if line.family == OURS else "normal")
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.grid(axis="x", alpha=0.3)
