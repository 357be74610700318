"""Opens a vocabulary of either kind."""

import os

from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.sentencepiece_vocabulary import SentencePieceVocabulary
from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary
from pplx_jax.data.tokens.vocabulary import FILE_NAME, TOKENIZER, Vocabulary


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Reads a SentencePiece `.model` file, a `tokenizer.json`, or a folder that holds one of them.

    A folder that holds both gives the SentencePiece model.

    Raises:
        BadInput: the file is missing or damaged, or a symbol that training needs is missing.
    """
    path = as_path(path)
    if path.is_dir():
        tokenizer_only = not (path / FILE_NAME).exists() and (path / TOKENIZER).exists()
        path = path / (TOKENIZER if tokenizer_only else FILE_NAME)
    if path.suffix == ".json":
        return TokenizerVocabulary.read(path)
    return SentencePieceVocabulary.read(path)
