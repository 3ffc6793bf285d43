"""Progress as data."""

from __future__ import annotations

from mlopsnb.events import report_progress, reporting_to, step, told_as


def test_what_is_part_of_a_step_is_told_as_its_progress():
    events = []
    with reporting_to(events.append), step("restore") as log, told_as("restore"):
        report_progress("route", "2 of 3 pods ready")
        log.result = "as before"
    assert [(e.step, e.state, e.message) for e in events] == [
        ("restore", "started", ""),
        ("restore", "progress", "2 of 3 pods ready"),
        ("restore", "succeeded", "as before"),
    ]
