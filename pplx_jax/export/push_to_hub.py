"""Uploads an exported model to the Hugging Face hub."""

import pathlib
import re
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.packages import require_packages
from pplx_jax.core.paths import require_local

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_EXPORTED = ("config.json", "modules.json", "tokenizer.json", "README.md")


def push_to_hub(
    folder: pathlib.Path, repository: str, *, revision: str | None = None, private: bool = False
) -> dict[str, Any]:
    """Uploads an exported folder in one commit. The repository is made if there is none.

    Files that the repository has already are not sent again, and its other files stay. An interrupted upload
    makes no commit. The token is that of huggingface_hub: HF_TOKEN, or the one of `hf auth login`.

    Args:
      folder: what `export_hf` wrote.
      repository: its name, ORG/NAME.
      revision: the branch to commit to, which is made if there is none; None for the main one.
      private: whether a new repository is private.

    Returns:
      {"repository": its URL, "commit": its hash}.

    Raises:
      BadInput: the folder is no export, the name is invalid, there is no token, or the hub refuses or does not answer.
    """
    folder = require_local(folder, "give a folder of this machine")
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}; give the folder that export-hf wrote")
    if missing := [name for name in _EXPORTED if not (folder / name).is_file()]:
        raise BadInput(f"{folder} has no {missing[0]}; give the folder that export-hf wrote")
    if not _REPOSITORY.fullmatch(repository):
        raise BadInput(f"{repository!r} is no repository of the hub; give ORG/NAME")
    require_packages("the hub", "huggingface_hub", extra="convert")
    import huggingface_hub

    api = huggingface_hub.HfApi()
    if api.token is None and huggingface_hub.get_token() is None:
        raise BadInput("no token of the Hugging Face hub; set HF_TOKEN to one that may write, or run `hf auth login`")
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repository, revision=revision, commit_message="Model of pplx-jax"
        )
    except Exception as error:  # of the hub, the network or a proxy; the library has many types
        line = " ".join(str(error).split()) or repr(error)
        raise BadInput(
            f"no commit was made to {repository}: {line}; check the name, the network and that the token may write"
        ) from None
    return {"repository": str(made), "commit": commit.oid}
