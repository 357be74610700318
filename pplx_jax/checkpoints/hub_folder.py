"""Models of the Hugging Face hub by name: `org/name`, or `org/name@revision` for a pinned one.

The files are those of the hub's cache on this machine (HF_HOME). What is missing is downloaded; with HF_HUB_OFFLINE=1
nothing is.
"""

import os
import pathlib
import re

from absl import logging

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path, is_bucket

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_UNREAD = ["onnx/*", "openvino/*", "coreml/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite"]


def find_model(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a model: a path as it is, or the folder of the hub's cache that has the named model.

    A name is what has the form of one, if neither the path nor its first folder exists here. So `run/merged` stays a
    path where `run` is a folder.

    Raises:
        BadInput: there is no such model or revision, or it cannot be fetched.
    """
    text = os.fspath(path)
    found = None if is_bucket(path) else _NAME.fullmatch(text)
    if found is None or os.path.exists(text) or os.path.exists(text.partition("/")[0]):
        return as_path(path)
    return pathlib.Path(_snapshot(found["repo"], found["revision"]))


def _snapshot(repo: str, revision: str | None) -> str:
    missing = f"no model in {repo}: the folder does not exist, and"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise BadInput(f"{missing} the hub needs huggingface_hub: pip install 'pplx-jax[convert]'") from None
    try:
        folder = snapshot_download(repo, revision=revision, ignore_patterns=_UNREAD)
    except GatedRepoError:
        raise BadInput(f"{missing} {repo} of the hub is gated; accept its terms there and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise BadInput(f"{repo} of the hub has no revision {revision!r}; check the name after the @") from None
    except RepositoryNotFoundError:
        raise BadInput(f"{missing} the hub has no model of this name; check it, or set HF_TOKEN") from None
    except LocalEntryNotFoundError:
        at = f" at {revision}" if revision else ""
        raise BadInput(
            f"{missing} {repo}{at} of the hub is not in the cache and cannot be fetched; check the network and "
            "HF_HUB_OFFLINE, or give a folder"
        ) from None
    except Exception as error:  # of the hub, the network, a proxy or the cache; the library has many types
        raise BadInput(
            f"{missing} the hub cannot be read ({(str(error).splitlines() or [repr(error)])[0]}); try again"
        ) from None
    logging.info("%s is read from %s", repo, folder)
    return folder
