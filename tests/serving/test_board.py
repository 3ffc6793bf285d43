"""What processes of one server share: counters, a note, and a stream of whole lines."""

from __future__ import annotations

import os
from collections import Counter

from mlopsnb.serving.board import Board, Row
from mlopsnb.serving.requestlog import WholeLines


def test_counters_go_on_where_the_last_worker_stopped():
    board = Board(2)
    parts = [Row(board, n, start=8).take(3) for n in (0, 1)]
    parts[0].own[1] += 2
    parts[1].own[1] += 40
    assert parts[0].total() == parts[1].total() == [0, 42, 0]
    again = Row(board, 1, start=8).take(3)
    again.own[1] += 100
    assert (list(again.own), parts[0].total()) == ([0, 140, 0], [0, 142, 0])
    assert board.note == {}
    board.leave_note({"workers": 2})
    assert board.note == {"workers": 2}


def test_lines_of_several_processes_stay_whole():
    read, end = os.pipe()
    pids = []
    for name in (b"a", b"b", b"c"):
        if not (pid := os.fork()):
            WholeLines(end).write(b"".join(name * n + b"\n" for n in range(1, 400)))
            os._exit(0)
        pids.append(pid)
    os.close(end)
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    for pid in pids:
        os.waitpid(pid, 0)
    assert Counter(lines) == Counter(name * n for name in (b"a", b"b", b"c") for n in range(1, 400))
