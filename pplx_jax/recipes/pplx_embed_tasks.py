"""The sources of `gin/data/pplx_embed.gin` in the registries of SeqIO and TFDS, after one import:

    import pplx_jax.recipes.pplx_embed_tasks

    seqio.get_mixture_or_task("pplx_embed.pair")
    tfds.load("pplx_embed/pair", data_dir="prepared")

Environment variables say where the files are. They are read at the import; the files at the first dataset.

PPLX_DATA_ROOT   the folder or bucket of the sources; by default the current folder
PPLX_VOCABULARY  a vocabulary, or a model folder that holds one
PPLX_EVALUATION  evaluation sets whose texts are left out; by default nothing is left out
"""

import os

from pplx_jax.recipes.seqio_registry import register_recipe

_FILES = ("gin/recipes/pplx_embed_0p6b.gin", "gin/data/pplx_embed.gin")
_evaluation = os.environ.get("PPLX_EVALUATION", "")

MIXTURES = register_recipe(
    "pplx_embed",
    _FILES,
    (
        f"DATA_ROOT={os.environ.get('PPLX_DATA_ROOT', '')!r}",
        f"EVALUATION={_evaluation!r}",
        f"SourceCorpus.drop_overlap={bool(_evaluation)}",
        "INITIAL=''",
        "run.model=@Qwen3Config()",
    ),
    vocabulary=os.environ.get("PPLX_VOCABULARY"),
)
