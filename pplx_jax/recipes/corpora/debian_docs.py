"""Downloads documentation from Debian's or Ubuntu's archive for `DocsCorpus`, and unpacks it. It needs no root.

    python -m pplx_jax.recipes.corpora.debian_docs FOLDER [PATTERN ...]

The packages come by `apt-get download` and are unpacked by `dpkg-deb`, each into FOLDER/PACKAGE; nothing is installed.
A package that is there already is not downloaded again. Each has its own licence (FOLDER/PACKAGE/usr/share/doc).
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from absl import logging

from pplx_jax.core.errors import BAD_INPUT, DONE, FAILED, BadInput, Failed
from pplx_jax.core.output_folder import replaced_folder

# Regular expressions of package names. Together about 250 MB to download in Debian 12.
PATTERNS = (
    r"libreoffice-help-(?!common).*",
    r"gnome-user-docs",
    r"debian-reference-(?!common).*",
    r"developers-reference(-..)?",
    r"maint-guide(-.+)?",
    r"debian-faq(-.+)?",
    r"installation-guide-amd64",
    r"aptitude-doc-.*",
    r"python3\.\d+-doc",
    r"linux-doc-\d.*",
    r"postgresql-doc-\d+",
    r"git-doc",
)


def download(folder: pathlib.Path, patterns: Sequence[str] = PATTERNS) -> list[str]:
    """Downloads and unpacks the packages whose whole name matches a pattern, and returns their names.

    Raises:
        BadInput: this system has no apt, its lists are empty, or no package matches a pattern.
        Failed: a download fails, or an archive is damaged. The same call continues.
    """
    for program in ("apt-cache", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise BadInput(f"no {program} here; run this on Debian or Ubuntu and copy the folder")
    names = sorted(set(_run("apt-cache", "pkgnames").split()))
    if not names:
        raise BadInput("apt knows no packages; run `apt-get update` once")
    chosen: list[str] = []
    for pattern in patterns:
        try:
            matching = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise BadInput(f"{pattern!r} is no regular expression: {error}") from None
        if not matching:
            raise BadInput(f"no package matches {pattern!r}; `apt-cache pkgnames` lists them")
        chosen += [name for name in matching if name not in chosen]
    missing = [name for name in chosen if not (folder / name).exists()]
    archives = folder / ".archives"  # apt-get continues with those that are there
    archives.mkdir(parents=True, exist_ok=True)
    if missing:
        logging.info("downloading %d packages: %s", len(missing), " ".join(missing))
        _run("apt-get", "-qq", "download", *missing, cwd=str(archives))
    for name in missing:
        archive = max(archives.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
        with replaced_folder(folder / name) as partial:
            _run("dpkg-deb", "-x", str(archive), str(partial))
    shutil.rmtree(archives)
    return chosen


def _run(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failed(f"`{' '.join(command)[:200]}` failed: {reason}; run the same command to continue")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="the folder to unpack into")
    parser.add_argument("patterns", nargs="*", help=f"regular expressions of package names (default: {PATTERNS})")
    options = parser.parse_args(argv)
    logging.set_verbosity(logging.INFO)
    try:
        names = download(options.folder, options.patterns or PATTERNS)
    except (BadInput, Failed) as error:
        print(f"debian_docs: error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, BadInput) else FAILED
    print(f"{len(names)} packages in {options.folder}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
