"""A copy of the working tree, so that edits after the launch do not change what runs."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Sequence

from pplx_jax.configuration.statements import SEARCH_PATHS
from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import replaced_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("pplx_jax", "gin", "launch", "setup.py", "constraints.txt", "README.md", "LICENSE")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*")


@dataclasses.dataclass(frozen=True)
class Package:
    """A copy of the working tree.

    Attributes:
      path: the folder.
      digest: hash of names and contents; equal trees have equal digests.
    """

    path: pathlib.Path
    digest: str


def digest_of(root: pathlib.Path = ROOT) -> str:
    """Returns the digest of the working tree as it is now."""
    total = hashlib.sha256()
    for path in _files(root):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def pack(folder: pathlib.Path, root: pathlib.Path = ROOT) -> Package:
    """Copies the working tree to FOLDER/DIGEST, unless that copy exists."""
    digest = digest_of(root)
    path = folder / digest
    if not path.exists():
        with replaced_folder(path) as temporary:
            for part in PARTS:
                source = root / part
                if source.is_dir():
                    shutil.copytree(source, temporary / part, ignore=_LEFT_OUT)
                else:
                    shutil.copy2(source, temporary / part)
            shutil.copy2(temporary / "launch" / "Dockerfile", temporary / "Dockerfile")  # where Cloud Build looks
    return Package(path, digest)


def packaged_name(gin_file: str, root: pathlib.Path = ROOT) -> str:
    """Returns the path of a gin file within the package.

    Raises:
      BadInput: there is no such file, or it is not part of the package.
    """
    found = next((folder / gin_file for folder in SEARCH_PATHS if (folder / gin_file).is_file()), None)
    if found is None:
        raise BadInput(f"no gin file {gin_file}")
    path = found.resolve()
    if not path.is_relative_to(root) or path.relative_to(root).parts[0] not in PARTS:
        raise BadInput(f"{gin_file} is not in {root / 'gin'}, the folder that jobs get a copy of; move it there")
    return str(path.relative_to(root))


def require_absolute(gin_params: Sequence[str]) -> None:
    """Refuses bindings to relative paths that exist on this machine: where jobs run they would mean something else.

    Raises:
      BadInput: a binding is such a path.
    """
    for param in gin_params:
        _, _, text = param.partition("=")
        path = text.strip().strip("'\"")
        if path and not os.path.isabs(path) and os.path.exists(path):
            whole = os.path.abspath(path)
            raise BadInput(f"--gin_param={param}: jobs run elsewhere; give the absolute path, {whole}")


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    found = [root / part for part in PARTS if (root / part).is_file()]
    for part in PARTS:
        found += [path for path in (root / part).rglob("*") if path.is_file()]
    hidden = ("__pycache__", ".")
    return sorted(
        path
        for path in found
        if not any(piece.startswith(hidden) or piece.endswith(".egg-info") for piece in path.relative_to(root).parts)
    )
