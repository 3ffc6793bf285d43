from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys

import pytest

from mlopsnb.serving.errors import BadOption
from mlopsnb.serving.logfile import LogFile
from mlopsnb.targets.process_state import RevisionFiles


def sizes(path):
    return [p.stat().st_size for p in sorted(path.parent.glob(f"{path.name}*"))]


def test_a_full_file_makes_place_and_two_are_kept(tmp_path):
    path = tmp_path / "log"
    file = LogFile(path, max_bytes=100)
    for n in range(100):
        file.write(b"%03d line of 20 bytes\n" % n)
    file.close()
    assert path.read_bytes() == b"".join(b"%03d line of 20 bytes\n" % n for n in range(96, 100))
    assert (tmp_path / "log.1").read_bytes() == b"".join(
        b"%03d line of 20 bytes\n" % n for n in range(92, 96)
    )
    assert sizes(path) == [84, 84]


def test_what_does_not_fit_even_an_empty_file_is_written_all_the_same(tmp_path):
    file = LogFile(tmp_path / "log", max_bytes=10)
    file.write(b"x" * 50)
    file.write(b"y" * 50)
    file.close()
    assert ((tmp_path / "log.1").read_bytes(), (tmp_path / "log").read_bytes()) == (b"x" * 50, b"y" * 50)


def test_it_goes_on_with_what_is_there_and_follows_who_moves_it(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    file = LogFile(path)
    file.write(b"a\n")
    path.rename(tmp_path / "moved")  # as logrotate does
    file.write(b"b\n")
    path.unlink()
    file.write(b"c\n")
    file.close()
    assert ((tmp_path / "moved").read_bytes(), path.read_bytes()) == (b"old\na\n", b"c\n")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    with pytest.raises(BadOption, match="cannot be opened: No such file or directory"):
        LogFile(tmp_path / "missing" / "log")


ROUNDS = 20


def _write_many(directory, who, barrier):
    for number in range(ROUNDS):
        file = LogFile(directory / f"log-{number}", max_bytes=6000)
        barrier.wait()
        for n in range(400):
            file.write(b"%d %06d\n" % (who, n))
        file.close()


def test_processes_share_a_file_and_lose_no_line(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_write_many, args=(tmp_path, who, barrier)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 3
    for number in range(ROUNDS):
        parts = [tmp_path / f"log-{number}.1", tmp_path / f"log-{number}"]
        lines = [line for part in parts for line in part.read_bytes().splitlines()]
        assert sorted(lines) == [b"%d %06d" % (who, n) for who in range(3) for n in range(400)]
        assert parts[0].stat().st_size > 5900


def test_everything_that_the_process_says_goes_along(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from mlopsnb.serving.logfile import LogFile\n"
        "file = LogFile(Path(sys.argv[1]), max_bytes=100, also=(1, 2))\n"
        "for n in range(6):\n"
        "    os.write(1, b'out %d\\n' % n); print('err', n, file=sys.stderr, flush=True)\n"
        "    file.write(b'line %d of the log itself\\n' % n)\n"
    )
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    kinds = (("out", ""), ("err", ""), ("line", " of the log itself"))
    said = [f"{what} {n}{more}" for n in range(6) for what, more in kinds]
    assert (tmp_path / "log.1").read_text().splitlines() == said[8:17]  # what was before is gone
    assert path.read_text().splitlines() == said[17:]


def test_a_server_keeps_its_log_bounded_and_the_target_reads_across(serve, make_package, tmp_path, body):
    files = RevisionFiles(tmp_path)
    assert list(files.lines()) == []
    runtime = serve(make_package(), "--port", "0", "--log-file", files.log, "--log-max-bytes", "4000")
    for n in range(40):
        runtime.infer(body(), {"x-request-id": f"r{n}"})
        while not any(f'"r{n}"' in line for line in files.lines()):  # so that each is written by itself
            pass
    assert runtime.stop() == 0
    ids = [json.loads(line)["request_id"] for line in files.lines()]
    assert ids == [f"r{n}" for n in range(40 - len(ids), 40)]
    assert len(ids) > 20
    assert max(sizes(files.log)) <= 4000
    assert len(sizes(files.log)) == 2
    assert runtime.log_lines == []
    assert files.last_lines(2) == list(files.lines())[-2:]


def test_the_log_is_read_whole_while_it_is_moved(tmp_path):
    files = RevisionFiles(tmp_path)
    (tmp_path / "server.log.1").write_text("a\nb\n")
    files.log.write_text("c\nd\n")
    lines = files.lines()
    assert next(lines) == "a"
    files.log.rename(tmp_path / "server.log.1")
    files.log.write_text("e\n")
    assert list(lines) == ["b", "c", "d"]
    assert list(files.lines()) == ["c", "d", "e"]


def test_a_log_file_that_cannot_be_opened_ends_the_start(serve, make_package, tmp_path):
    runtime = serve(make_package(), "--port", "0", "--log-file", tmp_path / "no" / "log")
    assert runtime.process.wait(20) == 2
    assert "cannot be opened" in runtime.report["error"]
