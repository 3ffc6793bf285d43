"""What our server should reach beside the others, and whether it did, from the measurements of one run alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving_peers.cases import CASES
from serving_peers.report import OURS, RIVALS, Line, Measurement, lines, row

if TYPE_CHECKING:
    from serving_peers.forward import Limit

FORWARD = "the model alone"
_ONE = f"{OURS}, 1 worker"
_NAMES = {"rps": "requests a second", "p50_ms": "P50", "p99_ms": "P99"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """*key* of *ours* over that of the best of *against*: at least *bound* for rps, at most for a time.

    *at* is the concurrency; None: each at its best. The bare servers have one process, and so has ours beside them.
    """

    case: str
    at: int | None
    key: str
    against: str
    bound: float
    ours: str = OURS

    def __str__(self) -> str:
        sign = "≥" if self.key == "rps" else "≤"
        place = "best concurrency" if self.at is None else f"c={self.at}"
        return f"{place}: {_NAMES[self.key]} {sign} {self.bound:g} of {self.against}"


TARGETS = (
    Wanted("mlp", 64, "rps", "Triton", 2),
    Wanted("mlp", 64, "rps", "best Python peer", 10),
    Wanted("mlp", 64, "p99_ms", "best peer", 1),
    Wanted("mlp", 64, "rps", "bare loop", 0.85, ours=_ONE),
    Wanted("mlp", 64, "rps", "ceiling", 0.6, ours=_ONE),
    Wanted("mlp", 1, "p50_ms", "Triton", 0.8),
    Wanted("mlp", 1, "p50_ms", "best Python peer", 0.35),
    Wanted("conv", None, "rps", FORWARD, 0.95),
    Wanted("conv", None, "rps", "best peer", 1),
    Wanted("conv", 8, "p99_ms", "best peer", 1),
    *(Wanted("table", c, "rps", "best Python peer", 5) for c in (1, 8, 64)),
    Wanted("table-binary", None, "rps", FORWARD, 0.9),
    *(Wanted("mlp-grpc", c, "rps", "MLServer", 1.8, ours=_ONE) for c in (1, 8, 64)),
    *(Wanted("mlp-grpc", c, "rps", "MLServer", 3) for c in (8, 64)),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one target: the *ratio* to *rival*; without data there is no ratio, and *missing* says of whom."""

    wanted: Wanted
    ratio: float | None = None
    rival: str = ""
    missing: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met, None if nobody knows."""
        if self.ratio is None:
            return None
        return (
            self.ratio >= self.wanted.bound if self.wanted.key == "rps" else self.ratio <= self.wanted.bound
        )


def verdicts(measurements: Sequence[Measurement], limits: Sequence[Limit]) -> list[Verdict]:
    """Return what came of every target."""
    by_case = {case: lines(measurements, case) for case in CASES}
    return [_verdict(wanted, by_case[wanted.case], limits) for wanted in TARGETS]


def _verdict(wanted: Wanted, found: Sequence[Line], limits: Sequence[Limit]) -> Verdict:
    ours = [line for line in found if line.server == wanted.ours]
    if not ours:
        return Verdict(wanted, missing=wanted.ours)
    mine = _value(ours[0], wanted)
    if wanted.against == FORWARD:
        alone = [x for x in limits if x.case == wanted.case]
        if not alone:
            return Verdict(wanted, missing=FORWARD)
        rows = statistics.median(x.rows_per_second for x in alone)
        ratio = mine * CASES[wanted.case].rows / rows
        best = max(ours[0].at.values(), key=lambda at: at["rps"])
        left = 1 - best["wrk_cpu"] / alone[0].instances
        return Verdict(
            wanted,
            ratio,
            f"{rows:,.0f} rows a second ({ratio / left:.2f} on what the load left of the cores)",
        )
    rivals = [line for line in found if RIVALS[wanted.against](line)]
    if not rivals:
        return Verdict(wanted, missing=wanted.against)
    best = (max if wanted.key == "rps" else min)(rivals, key=lambda line: _value(line, wanted))
    return Verdict(wanted, mine / max(_value(best, wanted), 1e-9), best.server)


def _value(line: Line, wanted: Wanted) -> float:
    if wanted.at is not None:
        return line.at[wanted.at][wanted.key]
    return max(at[wanted.key] for at in line.at.values())


def block(found: Sequence[Verdict]) -> str:
    """Return the targets as markdown."""
    out = ["## Targets", "", row(["model", "target", "found", "rival", ""]), row(["---"] * 5)]
    for verdict in found:
        wanted = verdict.wanted
        if verdict.ratio is None:
            cells = ["", "", f"not known: {verdict.missing} was not measured"]
        else:
            cells = [f"{verdict.ratio:.2f}", verdict.rival, "met" if verdict.met else "NOT met"]
        ours = "" if wanted.ours == OURS else f" ({wanted.ours})"
        out.append(row([wanted.case, f"{wanted}{ours}", *cells]))
    return "\n".join(out) + "\n"
