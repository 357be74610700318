"""A corpus that exists already: a folder of corpus files, which are linked into the run, or copied from a bucket."""

import dataclasses
import pathlib
import shutil
from typing import Any

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import absolute, as_path, is_bucket
from pplx_jax.data.sources.corpus import WrittenCorpus
from pplx_jax.data.sources.corpus_writer import corpus_folder

FILES = (
    "text.jsonl",
    "pairs.jsonl",
    "documents.jsonl",
    "search.jsonl",
    "evaluation/corpus.jsonl",
    "evaluation/queries.jsonl",
    "evaluation/qrels.tsv",
)


@dataclasses.dataclass(frozen=True)
class FolderCorpus(WrittenCorpus):
    """The files that `WrittenCorpus` describes, and `probes/` if there is one. Lines are checked during tokenisation.

    Attributes:
        path: the folder, which may be in a bucket. It must not move while a run uses it.
    """

    path: str

    def build(self, output: pathlib.Path) -> dict[str, Any]:
        """Links or copies the files into `output`, and returns their sizes in bytes.

        Raises:
            BadInput: files are missing; one line names all of them.
        """
        folder = absolute(local_copy(as_path(self.path)))
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise BadInput(f"FolderCorpus.path {folder} lacks {', '.join(missing)}; write them there")
        probes = sorted(str(path.relative_to(folder)) for path in folder.glob("probes/*/*") if path.is_file())
        names = (*FILES, *probes)
        with corpus_folder(pathlib.Path(output)) as partial:
            for name in names:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                if is_bucket(self.path):  # other machines do not have the cache of this one
                    shutil.copyfile(folder / name, partial / name)
                else:
                    (partial / name).symlink_to(folder / name)
        return {"bytes": {name: (folder / name).stat().st_size for name in names}}
