"""Fuzz one codec with atheris: python tests/fuzz/codecs.py TARGET [RUNS] [SEED]. Ends with 0 if all held.

An input that broke something is told, and written to the working directory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["mlopsnb.serving"]):
    import targets

LONGEST_INPUT = 65_536
SECONDS = 5


def mutated(target: targets.Target, data: bytes, size: int, seed: int) -> bytes:
    """Half of the time as libFuzzer does, which follows the code, else with what is known to make trouble."""
    random = Random(seed)
    if random.random() < 0.5:
        return atheris.Mutate(data, size)
    return targets.mutated(data or random.choice(target.seeds), target.words, random)[:size]


def main() -> None:
    name, runs, seed = [*sys.argv[1:], *("20000", "1")[len(sys.argv) - 2 :]]
    target = targets.TARGETS[name]
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory, "corpus")
        corpus.mkdir()
        for number, content in enumerate(target.seeds):
            assert target.run(content) is not None, "a seed must be good"
            Path(corpus, str(number)).write_bytes(content)
        # A process that was forked begins with its parent's peak, and that is what the fuzzer looks at.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={LONGEST_INPUT}", f"-timeout={SECONDS}"]
        atheris.Setup(
            [sys.argv[0], *options, f"-rss_limit_mb={before + 2048}", str(corpus)],
            lambda data: target.run(data) and None,
            custom_mutator=lambda data, size, seed: mutated(target, data, size, seed),
        )
        atheris.Fuzz()


main()
