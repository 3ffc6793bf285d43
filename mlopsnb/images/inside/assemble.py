"""`assemble.py SITE VENV_SITE OUT LIST...`: make a layer of each list of files, from what pip installed in SITE.

A list has a line, `PATH<tab>MODE`, for each file that a layer of the image holds: what was proved, and no more. Its first
line is the digest of the requirements that it was made for. Files are linked, not copied, to `OUT/NAME/VENV_SITE` for each
list NAME, and to VENV_SITE itself. If `requirements.txt` has been changed since, all files go with the last list that no
other one names.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path


def main(site: Path, venv_site: Path, out: Path, lists: list[Path]) -> None:
    """Link the files; say which are missing and exit if any is."""
    lock = hashlib.sha256((Path(__file__).parent / "requirements.txt").read_bytes()).hexdigest()
    found = {p.relative_to(site).as_posix() for p in site.rglob("*") if not p.is_dir()}
    wanted, changed = {}, False
    for path in lists:
        made_for, *lines = path.read_text(encoding="utf-8").splitlines()
        changed = made_for != lock
        wanted[path.stem] = {
            name: int(mode, 8) for name, _, mode in (line.rpartition("\t") for line in lines)
        }
    if changed:
        wanted = as_installed(site, found, wanted)
    elif missing := [name for files in wanted.values() for name in files if name not in found]:
        sys.exit(
            f"pip did not install {len(missing)} of the files that the image needs, such as {missing[0]}"
        )
    for layer, files in wanted.items():
        (out / layer).mkdir(parents=True, exist_ok=True)
        for name, mode in files.items():
            (site / name).chmod(mode)
            for target in (out / layer / venv_site.relative_to("/") / name, venv_site / name):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(site / name, target)
    shutil.rmtree(site)


def as_installed(site: Path, found: set[str], wanted: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return lists of what was installed, whatever it is: a file stays in its layer, and a new one joins the last."""
    modes = {name: 0o755 if (site / name).stat().st_mode & 0o100 else 0o644 for name in sorted(found)}
    *layers, last = wanted
    split = {layer: {name: modes.pop(name) for name in wanted[layer] if name in modes} for layer in layers}
    return {**split, last: modes}


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [Path(a) for a in sys.argv[4:]])
