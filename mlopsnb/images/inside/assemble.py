"""`assemble.py SITE VENV_SITE OUT LIST...`: make a layer of each list of files, from what pip installed in SITE.

A list names the files that a layer of the image holds, a line each, so the image has what was proved and no more; its
first line is the digest of the requirements that it was made for. Files are linked, not copied, to `OUT/NAME/VENV_SITE`
for each list NAME, and to VENV_SITE itself. If `requirements.txt` has been changed since, the last list stands for all
files that no other one names.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path


def main(site: Path, venv_site: Path, out: Path, lists: list[Path]) -> None:
    """Link the files; say which are missing and exit if any is."""
    lock = hashlib.sha256((Path(__file__).parent / "requirements.txt").read_bytes()).hexdigest()
    wanted, changed = {}, False
    for path in lists:
        made_for, *files = path.read_text(encoding="utf-8").splitlines()
        wanted[path.stem] = files
        changed = made_for != lock
    found = {p.relative_to(site).as_posix() for p in site.rglob("*") if not p.is_dir()}
    if changed:
        *others, last = wanted
        wanted = {name: [f for f in wanted[name] if f in found] for name in others}
        wanted[last] = sorted(found.difference(*wanted.values()))
    elif missing := [f for files in wanted.values() for f in files if f not in found]:
        sys.exit(
            f"pip did not install {len(missing)} of the files that the image needs, such as {missing[0]}"
        )
    for name, files in wanted.items():
        for file in files:
            link(site / file, out / name / venv_site.relative_to("/") / file)
            link(site / file, venv_site / file)
        (out / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(site)


def link(source: Path, target: Path) -> None:
    """Link one file, readable for all and writable for its owner alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    os.link(source, target)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [Path(a) for a in sys.argv[4:]])
