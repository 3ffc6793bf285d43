"""A reference profile for a package that is measured, so that our server counts live rows as it does by default."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlopsnb import manifest, profiles
from mlopsnb.profiles import DriftProfile, Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_BINS = 64


def add(package: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Put a profile of *inputs* and *outputs*, rows by columns of floats, into *package*."""
    features = (*_features(inputs, "input"), *_features(outputs, "output"))
    made = DriftProfile(features=features, rows=len(next(iter(inputs.values()))))
    (package / profiles.FILE).write_text(profiles.to_json(made))
    described = manifest.read(package)
    manifest.write(package, replace(described, files=manifest.file_digests(package)))


def _features(tensors: Mapping[str, np.ndarray], role: Literal["input", "output"]) -> Iterator[Feature]:
    for name, array in tensors.items():
        for column in range(array.shape[1]):
            values = array[:, column].astype(np.float64)
            edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1], method="lower"))
            bins = np.searchsorted(edges, values, "left")
            yield Feature(
                name=f"{name}_{column}",
                tensor=name,
                column=column,
                role=role,
                edges=tuple(edges.tolist()),
                counts=tuple(np.bincount(bins, minlength=len(edges) + 1).tolist()),
                low=float(edges[0]),
                high=float(edges[-1]),
                mean=float(values.mean()),
                std=float(values.std()),
            )
