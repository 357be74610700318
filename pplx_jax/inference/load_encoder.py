"""Opens any folder with an embedding model as an `Encoder`."""

import os

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import DOCUMENT, QUERY
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.sentence_transformer import SentenceTransformerEncoder, is_foreign


def load_encoder(
    model: str | os.PathLike[str],
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    max_length: int | None = None,
    shared: bool = False,
    deterministic: bool = False,
) -> Encoder:
    """Loads a model folder, a Hugging Face folder of a pplx-embed model, or a sentence-transformers folder of another.

    Args:
        model: the folder, or the name of a model of the Hugging Face hub. Its files say which kind it is.
        query_prompt, document_prompt: texts before every query and document, in place of the prompts of the model.
            "" for none; None for those of the model.
        max_length: a limit in tokens below the model's; None for the model's.
        shared: of `Embedder`; models of other libraries stay on one process.
        deterministic: of `Embedder`.

    Raises:
        BadInput: there is no readable model, `max_length` is above the model's limit, or `deterministic` is asked of a
            model of another library.
    """
    model = find_model(model)
    if is_foreign(model):
        if deterministic:
            raise BadInput(f"{model}: deterministic is for the models of this package; leave it out")
        return SentenceTransformerEncoder(
            model, query_prompt=query_prompt, document_prompt=document_prompt, max_length=max_length
        )
    from pplx_jax.inference.embedder import Embedder  # imports the whole model code

    prompts = {QUERY: query_prompt, DOCUMENT: document_prompt}
    options = {"shared": shared, "prompts": prompts, "max_length": max_length, "deterministic": deterministic}
    return Embedder.load(model, **options)
