"""What drift reports should reach beside the others, and whether a run did."""

from __future__ import annotations

LARGE, MEDIUM = "1000000x50", "100000x20"


def lines(found):
    """Return a line for each figure of *found* that has a target, as text, and whether it is met."""
    return [
        *_speed(found),
        *_loans(found.get("car loans")),
        *_alarms(found.get("false alarms and power", {})),
        *_times(found.get("rendering, ms", {})),
    ]


def _least(name, value, bound, unit=""):
    return f"{name}: {value:.4g}{unit}, target ≥ {bound:g}{unit}", value >= bound


def _most(name, value, bound, unit=""):
    return f"{name}: {value:.4g}{unit}, target ≤ {bound:g}{unit}", value <= bound


def _speed(found):
    bounds = {LARGE: {"wall": 100, "memory": 10}, MEDIUM: {"wall": 50}}
    for size in (one for one in found if "x" in one and one.split("x")[0].isdigit()):
        measured = found[size]
        wanted = {**bounds.get(size, {}), "import": 10, "page": 15}
        for figure, bound in wanted.items():
            yield _least(f"{size}: {figure}, Evidently's over ours", measured[figure]["ratio"], bound)
        same = measured["same verdict"]
        yield _least(
            f"{size}: columns of {same['columns']} with the same verdict", same["same"], same["columns"]
        )


def _loans(loans):
    if loans:
        ours = loans["mlopsnb"]
        yield _least("car loans: drifting cells found", ours["found"], ours["of"])
        yield _most("car loans: false cells", ours["false"], 0)
        yield from _estimates("CBPE of two classes", loans["cbpe"])
        yield from _estimates("CBPE of three classes", loans["multiclass"])


def _estimates(name, measured):
    yield _most(f"{name}: largest difference from NannyML", measured["largest difference"], 1e-4)
    yield _least(f"{name}: CPU, NannyML's over ours", measured["ratio"], 20)


def _alarms(sizes):
    for size, sides in sizes.items():
        ours, theirs = sides["mlopsnb"], sides["evidently"]
        yield _most(f"{size}: clean reports with an alarm", ours["clean reports with an alarm"], 0.05)
        if min(map(int, size.split(" against "))) >= 5000:
            yield _least(f"{size}: found of what moved", ours["found"], round(theirs["found"] - 0.02, 4))


def _times(rendering):
    bounds = {"render": 20, "render 48 windows": 20, "merge 240 snapshots": 2}
    for name, took in rendering.items():
        yield _most(name, took, bounds[name], " ms")
