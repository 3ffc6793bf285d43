"""The same traffic from a Prometheus server: its raw samples, so that one way of counting serves both.

HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/. A range selector in an instant query returns samples
as they were scraped; `query_range` would resample them and hide restarts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlopsnb import rollout
from mlopsnb.errors import DeployError, UserError
from mlopsnb.extras import need
from mlopsnb.monitoring.counting import SERIES, Counts, Levels, Sample, Window, gather
from mlopsnb.monitoring.sampling import since_start

if TYPE_CHECKING:
    from mlopsnb.records import Release, Revision

_SECONDS = 20.0
_CELLS = 60
_OF_PROCESS = tuple(name for name in SERIES if name.startswith("process_"))

Scraped = dict[str, list[Sample]]
"""The samples of each replica, oldest first."""


def windows(
    address: str, release: Release, seconds: float
) -> tuple[dict[int, Window], dict[int, tuple[Window, ...]]]:
    """Return for each running revision its totals, and its traffic over the last *seconds* in up to 60 windows.

    Series are found by the labels `model_name` and `model_version`, which the servers give them. `DeployError` if the
    server cannot be asked, or knows nothing of this deployment.
    """
    by_version: dict[str, Revision] = {}
    for revision in rollout.running(release):
        version = rollout.version(revision)
        if version in by_version:
            raise UserError(
                f"revisions {by_version[version].id} and {revision.id} serve the same model version {version}; "
                "Prometheus cannot tell them apart",
                hint="%mlopsnb set prometheus= asks the replicas themselves",
            )
        by_version[version] = revision
    end = time.time()
    totals, points = {}, {}
    with need("httpx", extra="deploy").Client(base_url=address, timeout=_SECONDS) as http:
        for version, revision in by_version.items():
            scraped = _scraped(http, address, release.name, version, seconds)
            totals[revision.id] = since_start(samples[-1] for samples in scraped.values())
            points[revision.id] = cells(scraped, end - seconds, end)
    if not any(total.levels.replicas for total in totals.values()):
        raise DeployError(
            f"Prometheus at {address} has no series with model_name={release.name!r} of the last {seconds:g} s",
            hint="ask for a longer time, or see its page Status > Target health",
        )
    return totals, points


def _scraped(http: Any, address: str, name: str, version: str, seconds: float) -> Scraped:
    ours = f"model_name={_quoted(name)},model_version={_quoted(version)}"
    names = "|".join(n for n in SERIES if n not in _OF_PROCESS)
    found = _query(http, address, f'{{__name__=~"{names}",{ours}}}[{seconds:g}s]')
    places = sorted({_place(series["metric"]) for series in found})
    if places:
        instances = "|".join(re.escape(place) for place in places)
        names = "|".join(_OF_PROCESS)
        asked = f'{{__name__=~"{names}",instance=~{_quoted(instances)}}}[{seconds:g}s]'
        found = [*found, *_query(http, address, asked)]
    return arranged(found)


def arranged(found: Sequence[Mapping[str, Any]]) -> Scraped:
    """Put the *found* series (as the API returns them) together to samples: one scrape gives all the same time."""
    scrapes: dict[tuple[str, float], list[tuple[str, Mapping[str, str], float]]] = {}
    for series in found:
        labels = series["metric"]
        for at, value in series["values"]:
            scrapes.setdefault((_place(labels), float(at)), []).append(
                (labels["__name__"], labels, float(value))
            )
    scraped: Scraped = {}
    for (place, at), one in sorted(scrapes.items(), key=lambda item: item[0][1]):
        if any(
            name.startswith("mlopsnb_") for name, _, _ in one
        ):  # else of another process in the same place
            scraped.setdefault(place, []).append(gather(one, at))
    return scraped


def cells(scraped: Scraped, start: float, end: float) -> tuple[Window, ...]:
    """Return the traffic between two times in windows of one length, none shorter than what lies between two scrapes."""
    pairs = [(a, b) for samples in scraped.values() for a, b in pairwise(samples)]
    if not pairs:
        return ()
    length = max((end - start) / _CELLS, *(b.at - a.at for a, b in pairs))
    count = max(int((end - start) / length), 1)
    length = (end - start) / count
    counts = [Counts() for _ in range(count)]
    levels: list[dict[str, Levels]] = [{} for _ in range(count)]
    for place, samples in scraped.items():
        for older, newer in zip([None, *samples], samples, strict=False):
            cell = min(max(int((newer.at - start) / length), 0), count - 1)
            new = older is None and newer.started > start
            counts[cell] += newer.counts if new else newer.since(older)
            levels[cell][place] = newer.levels
    return tuple(
        Window(
            at=start + (i + 1) * length,
            seconds=length,
            counts=counts[i],
            levels=sum(levels[i].values(), Levels()),
        )
        for i in range(count)
    )


def _place(labels: Mapping[str, str]) -> str:
    return labels.get("instance", "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _query(http: Any, address: str, query: str) -> list[Any]:
    httpx = need("httpx", extra="deploy")
    try:
        answer = http.post("/api/v1/query", data={"query": query})
        told = answer.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise DeployError(
            f"Prometheus at {address} cannot be asked: {exc}",
            hint="check the setting `prometheus`; %mlopsnb set prometheus= asks the replicas themselves",
        ) from exc
    if not isinstance(told, dict) or told.get("status") != "success":
        said = told.get("error", "") if isinstance(told, dict) else ""
        raise DeployError(
            f"Prometheus at {address} answered {answer.status_code}: {said or answer.text[:200]}"
        )
    return list(told["data"]["result"])
