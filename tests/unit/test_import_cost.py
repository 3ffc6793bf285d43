"""What importing and loading mlopsnb pulls in, seen from fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *(
        "torch",
        "tensorflow",
        "keras",
        "mlflow",
        "docker",
        "kubernetes",
        "matplotlib",
        "pandas",
        "scipy",
        "sklearn",
    ),
    *("httpx", "uvicorn", "ipywidgets"),
}
SHELL = (
    "from IPython.core.interactiveshell import InteractiveShell as S\n"
    "from traitlets.config import Config\n"
    "shell = S.instance(config=Config({'HistoryManager': {'enabled': False}}))\n"
)


def run(code, *options, **environment):
    import os

    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def loaded_by(code, tmp_path):
    report = "\nimport sys\nprint(*sorted({m.partition('.')[0] for m in sys.modules}), sep='\\n')"
    done = run(code + report, IPYTHONDIR=str(tmp_path))
    assert done.stderr == ""
    return set(done.stdout.split())


def test_import_loads_nothing_heavy(tmp_path):
    loaded = loaded_by("import mlopsnb; dir(mlopsnb)", tmp_path)
    assert "mlopsnb" in loaded
    assert loaded & {*HEAVY, "numpy", "IPython"} == set()


def test_load_ext_loads_nothing_heavy_and_is_silent(tmp_path):
    loaded = loaded_by(SHELL + "shell.run_line_magic('load_ext', 'mlopsnb')", tmp_path)
    assert "mlopsnb" in loaded
    assert loaded & {*HEAVY, "numpy"} == set()


def test_help_and_overview_and_completion_of_options_load_nothing_heavy(tmp_path):
    code = (
        SHELL + "shell.run_line_magic('load_ext', 'mlopsnb')\n"
        "str(shell.run_line_magic('mlopsnb', ''))\n"
        "[m for m in shell.Completer.custom_matchers][0]\n"
        "from mlopsnb.notebook.completion import offer\n"
        "assert offer('%deploy --form', {}, list).values == ('--format',)\n"
        "assert offer('%deploy x --format t', {}, list).values\n"
    )
    assert loaded_by(code, tmp_path) & {*HEAVY, "numpy"} == set()


def test_load_ext_reads_few_files(tmp_path):
    """Each module is a file to find, read and run; `benchmarks/import_time.py` says how long they take."""
    code = (
        SHELL + "import sys\n"
        "before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'mlopsnb')\n"
        "print(len(set(sys.modules) - before))"
    )
    assert int(run(code, IPYTHONDIR=str(tmp_path)).stdout) <= 40


@pytest.mark.parametrize("name", ["IPython", "numpy", "torch", "mlflow"])
def test_import_works_without(name):
    run(
        f"import sys; sys.modules[{name!r}] = None; import mlopsnb, mlopsnb.errors, mlopsnb.records, mlopsnb.settings"
    )
