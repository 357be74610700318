"""Opens any folder with an embedding model as an `Encoder`."""

import os

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.sentence_transformer import SentenceTransformerEncoder, is_foreign


def load_encoder(
    model: str | os.PathLike[str], *, query_prompt: str = "", document_prompt: str = "", shared: bool = False
) -> Encoder:
    """Loads a model folder, a Hugging Face folder of a pplx-embed model, or a sentence-transformers folder of another.

    Args:
        model: the folder. Its files say which kind it is.
        query_prompt, document_prompt: texts before every query and document. They override the prompts of a
            sentence-transformers folder. pplx-embed models take none.
        shared: of `Embedder`; models of other libraries stay on one process.

    Raises:
        BadInput: there is no readable model, or it takes no prompts.
    """
    if is_foreign(model):
        return SentenceTransformerEncoder(model, query_prompt=query_prompt, document_prompt=document_prompt)
    if query_prompt or document_prompt:
        raise BadInput(f"{model} was trained without prompts; leave query_prompt and document_prompt out")
    from pplx_jax.inference.embedder import Embedder  # imports the whole model code

    return Embedder.load(model, shared=shared)
