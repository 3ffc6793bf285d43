"""Who works here: one answer for revisions, runs, claims and the cleaning that asks whose things they are."""

from __future__ import annotations

import getpass
import os


def user() -> str:
    """Return the name of whoever works here: JupyterHub's, where every pod has the same user, else the system's.

    A user number without a name, as containers have, is returned as the number.
    """
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())
