"""What of an installed package is of no use to a model server. Pure.

The list is what was seen to be safe for PyTorch, TensorFlow, ONNX Runtime and what they need; `prove` holds it against
each model. Directories called `test` or `testing` stay: PyTorch, NumPy and absl import theirs.
"""

from __future__ import annotations

PROFILE = "1"
"""Names this list. Whatever is kept by a name of it is made anew when the list changes."""

_SUFFIXES = (
    *(".a", ".c", ".cc", ".cmake", ".cpp", ".cuh", ".h", ".hpp", ".inc", ".pxd", ".pyi", ".pyx"),
    *(".pyc", ".pyo"),
)
_DIRECTORIES = (
    *("torch/include/", "torch/share/", "torch/test/", "tensorflow/include/", "clang/"),
    "bin/",  # its scripts name the Python of this machine
)
_RECORDS = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
"""What an installer notes about itself and this machine."""

_KEPT = ("torch/bin/torch_shm_manager", "numpy/_core/tests/_natype.py")


def is_needed(path: str) -> bool:
    """Say whether the file *path*, relative to `site-packages`, goes into the image."""
    if path in _KEPT:
        return True
    if path.startswith((*_DIRECTORIES, "torch/bin/", "../", "/")) or path.endswith(_SUFFIXES):
        return False
    *directories, name = path.split("/")
    if "tests" in directories or "__pycache__" in directories:
        return False
    return not (directories and directories[0].endswith(".dist-info") and name in _RECORDS)
