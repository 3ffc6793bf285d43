"""What an engine's builder tells, read line by line; as dockerd 20.10 writes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.images.buildlog import BuildLog

BASE, DEPENDENCIES, COPIED, CHECKED = "c32cf7d68ab4", "1a876fab5c8e", "435bde1e75b0", "8f8c0df1b56b"
LINES = [
    "Step 1/4 : FROM python@sha256:0a AS base",
    f" ---> {BASE}",
    "Step 2/4 : FROM dependencies AS check",
    f" ---> {DEPENDENCIES}",
    "Step 3/4 : COPY scripts/check.py /build/",
    " ---> Using cache",
    f" ---> {COPIED}",
    'Step 4/4 : RUN ["python", "check.py"]',
    " ---> Running in a6943bd000f7",
]


def read(*texts, **last):
    log = BuildLog()
    for text in texts:
        log.read({"stream": text})
    if last:
        log.read(last)
    return log


def test_a_build_that_is_under_way():
    log = read(*(f"{line}\n" for line in LINES), "one\ntwo", "\x1b[91m and a half\x1b[0m\nthree")
    assert (log.step, log.steps, log.instruction) == (4, 4, 'RUN ["python", "check.py"]')
    assert log.stages == {"python@sha256:0a": BASE, "dependencies": DEPENDENCIES}
    assert (log.made, log.containers) == ([], ["a6943bd000f7"])
    assert (log.tail, log.error, log.image) == ("one\ntwo and a half", "", "")


def test_a_build_that_is_done():
    log = read(
        *(f"{line}\n" for line in LINES),
        "Removing intermediate container a6943bd000f7\n",
        f" ---> {CHECKED}\n",
        aux={"ID": f"sha256:{CHECKED}"},
    )
    log.read({"stream": f"Successfully built {CHECKED}\n"})
    assert (log.made, log.containers, log.image) == ([CHECKED], [], f"sha256:{CHECKED}")


def test_a_build_that_failed_says_the_last_lines_of_its_step():
    log = read(
        *(f"{line}\n" for line in LINES),
        *(f"line {n}\n" for n in range(30)),
        "the last",
        error="The command returned 1",
    )
    assert log.error == "The command returned 1"
    assert log.tail.splitlines() == [*(f"line {n}" for n in range(19, 30)), "the last"]


def test_an_engine_that_names_no_id_but_says_so():
    assert read("Successfully built 8f8c0df1b56b\n").image == "8f8c0df1b56b"


@given(st.text(), st.lists(st.integers(0, 500)))
def test_it_does_not_matter_how_the_stream_is_cut(more, cuts):
    text = "\n".join([*LINES, more, ""])
    ends = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    whole, cut = read(text), read(*pieces)
    assert vars(whole).keys() == vars(cut).keys()
    assert (whole.tail, whole.made, whole.stages, whole.step) == (cut.tail, cut.made, cut.stages, cut.step)


@given(
    st.dictionaries(
        st.sampled_from(["stream", "aux", "error", "status"]), st.none() | st.text() | st.integers()
    )
)
def test_nothing_an_engine_says_breaks_it(message):
    BuildLog().read(message)
