"""`mlflow models build-docker` and `docker push`, with what it needs to run on a machine that pulls no image.

Its base `python:X-slim` is stood in for by our base with nginx (which it would install) and with pip set up for the
wheelhouse: both save it time, and neither adds to what it puts into an image.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from images_peers.common import Built, Work, find, run, timed
from images_peers.dockerfile import remove_descendants, remove_images
from images_peers.wheels import download

_STAND_IN = """\
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends nginx && rm -rf /var/lib/apt/lists/*
RUN printf '[global]\\nno-index = true\\nfind-links = {wheelhouse}\\ntrusted-host = {host}\\n' > /etc/pip.conf \\
 && ln -sf "$(command -v python3)" /usr/local/bin/python
"""


class MLflow:
    """MLflow with its own server, environment manager `local`: the fastest of its ways."""

    name = "mlflow"

    def prepare(self, work: Work) -> None:
        """Bring what it installs to the wheelhouse, make the stand-in base, and save the models as MLflow's."""
        import mlflow
        import numpy as np
        import torch

        log = work.log(self.name)
        self._pins = [f"torch=={torch.__version__}", f"numpy=={np.__version__}"]
        for number, package in enumerate(work.models):
            _save(package, work.root / "mlflow" / str(number), self._pins)
        download(work.wheels, f"mlflow=={mlflow.__version__}", "gunicorn[gevent]", *self._pins)
        # Its image begins with the versions of pip and the like that the model was saved with.
        for tool in _tools(work.root / "mlflow" / "0" / "python_env.yaml"):
            download(work.wheels, "--no-deps", tool)
        self._base = f"python:{work.prefix}"
        place = work.root / "stand-in"
        place.mkdir()
        host = work.wheelhouse.split("//")[1].partition(":")[0]
        text = _STAND_IN.format(base=work.base, wheelhouse=work.wheelhouse, host=host)
        (place / "Dockerfile").write_text(text)
        run([find("docker"), "build", "--tag", self._base, str(place)], log)

    def cold(self, work: Work, round_: int) -> Built:
        """Build after its layers were removed from the builder's cache, and push."""
        remove_images(f"{work.registry}/{work.prefix}-{self.name}-*")
        return self._build(work, round_, 0)

    def changed(self, work: Work, round_: int, model: int) -> Built:
        """Build another model and push it."""
        return self._build(work, round_, model)

    again = changed

    def _build(self, work: Work, round_: int, model: int) -> Built:
        reference = f"{work.repository(self.name, round_)}:m{model}"
        where = str(work.root / "mlflow" / str(model))
        # The command has no option for the base; the function behind it does.
        call = f"build_docker(model_uri={where!r}, name={reference!r}, env_manager='local', base_image={self._base!r})"
        seconds = timed(
            [sys.executable, "-c", f"import mlflow.models; mlflow.models.{call}"],
            ["docker", "push", "--quiet", reference],
            log=work.log(self.name),
        )
        return Built(seconds, reference)

    def clean(self, work: Work) -> None:
        """Remove its images, what a failed build left, and the stand-in."""
        remove_images(f"{work.registry}/{work.prefix}-{self.name}-*")
        remove_descendants(f"python:{work.prefix}")
        remove_images(f"python:{work.prefix}")


def _tools(environment: Path) -> list[str]:
    """Return the requirements in the first list, `build_dependencies`, of MLflow's description of an environment."""
    import yaml

    return [str(line) for line in yaml.safe_load(environment.read_text())["build_dependencies"]]


def _save(package: Path, into: Path, pins: list[str]) -> None:
    """Save the TorchScript model of *package* in MLflow's own flavour."""
    import mlflow.pytorch
    import torch

    (file,) = [p for p in (package / "model").rglob("*") if p.suffix == ".pt"]
    shutil.rmtree(into, ignore_errors=True)
    options: dict[str, Any] = {"pip_requirements": pins, "serialization_format": "pickle"}
    mlflow.pytorch.save_model(torch.jit.load(str(file)), str(into), **options)
