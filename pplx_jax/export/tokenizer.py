"""Converts our SentencePiece vocabulary to a Hugging Face tokenizer that gives the same ids.

Four differences need care:

- SentencePiece normalizes by longest match. `Precompiled` looks at one grapheme at a time and normalizes its shortest
  prefix. So sequences are composed first (`NFC`, except where SentencePiece does not compose) and graphemes are split
  into single characters.
- Text never gives control symbols and byte pieces, but the Unigram model has no piece types. Here their score is so low
  that any spelling with other pieces wins.
- A special token that is registered as *added* is cut out of the text. `tokenizer.json` adds none, and transformers,
  which adds those of its configuration, is configured to split them.
- No token is appended.

One difference remains, ties: SentencePiece adds float32 scores, so rounding decides between spellings with the same
pieces in another order (a run of dashes). Scores that are multiples of 2^-8 add exactly, and both agree.
"""

import json
import pathlib
import sys
import unicodedata
from collections import defaultdict
from typing import TYPE_CHECKING

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.normalization import CAMEL_CASE
from pplx_jax.data.tokens.sentencepiece_vocabulary import MASK, PAD, SEPARATOR, UNKNOWN, SentencePieceVocabulary
from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary
from pplx_jax.data.tokens.vocabulary import TOKENIZER, Vocabulary

if TYPE_CHECKING:
    import tokenizers

_NEVER = -1e6  # score of a piece that text must never give
_BREAK = "\x01"  # separates characters; every normalization rule set of SentencePiece deletes it
_NON_ASCII = r"[^\x00-\x7F]"
_SPACE = "\u2581"


def convert_tokenizer(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    """Returns a `tokenizers.Tokenizer` with the ids of a SentencePiece vocabulary.

    Raises:
      BadInput: the vocabulary is not a unigram model with byte fallback and the default white-space rules of
        SentencePiece, or cannot spell the names of its control symbols.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if not isinstance(vocabulary, SentencePieceVocabulary):
        raise BadInput(f"vocabulary {vocabulary.path} is not a SentencePiece model and needs no conversion")
    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.model)  # type: ignore[attr-defined]
    _check(proto, vocabulary)
    normal = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
    scores = [(piece.piece, piece.score if piece.piece in normal else _NEVER) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=vocabulary.unknown_id, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),  # a deleted first character would stay, because it has nothing to be aligned with
            normalizers.Replace(Regex(_uncomposed()), _BREAK),
            normalizers.Replace(Regex(CAMEL_CASE), " "),
            normalizers.NFC(),
            normalizers.Replace(Regex(f"(?={_NON_ASCII})|(?<={_NON_ASCII})"), _BREAK),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Strip(),
            # SentencePiece removes its own sign for a space from the end, and puts one before every text.
            normalizers.Replace(Regex(f"[ {_SPACE}]+$"), ""),
            normalizers.Replace(Regex(f"^{_SPACE}"), f" {_SPACE}"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def save_tokenizer(
    vocabulary: Vocabulary, folder: pathlib.Path, max_length: int, *, spell_special_tokens: bool = False
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` for `AutoTokenizer`.

    Args:
      vocabulary: a SentencePiece vocabulary, which is converted, or that of a pretrained model, which is copied.
      folder: an existing folder.
      max_length: the model's limit; transformers warns about longer texts.
      spell_special_tokens: whether the `tokenizer.json` of a pretrained model gets no special tokens, see
        `without_special_tokens`. A converted one has none.

    Raises:
      BadInput: as in `convert_tokenizer` and `without_special_tokens`.
    """
    if isinstance(vocabulary, TokenizerVocabulary):
        content = without_special_tokens(vocabulary) if spell_special_tokens else vocabulary.plain_model
        (folder / TOKENIZER).write_bytes(content)
        special = {"pad_token": vocabulary.pad, "mask_token": vocabulary.mask, "sep_token": vocabulary.separator}
    else:
        convert_tokenizer(vocabulary).save(str(folder / TOKENIZER))
        special = {"pad_token": PAD, "unk_token": UNKNOWN, "mask_token": MASK, "sep_token": SEPARATOR}
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
        **special,
    }
    for name, content in (("tokenizer_config.json", configuration), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def without_special_tokens(vocabulary: TokenizerVocabulary) -> bytes:
    """Returns the `tokenizer.json` of a pretrained model without special tokens; their ids become ordinary tokens.

    The package `tokenizers` alone, which text-embeddings-inference uses, would find their names in a text. Without
    them, no merges give their ids, and their names are spelled with other tokens, as by `Embedder` and transformers.

    Raises:
      BadInput: it is no BPE, or its merges can give a special token.
    """
    from tokenizers import Tokenizer

    content = json.loads(vocabulary.plain_model)
    if content["model"].get("type") != "BPE":
        raise BadInput(f"{vocabulary.path} is no BPE tokenizer; leave --spell_special_tokens out")
    named = {vocabulary.mask, vocabulary.separator, vocabulary.pad}
    content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}  # keeps all ids
    special = [token for token in content["added_tokens"] if token["special"] or token["content"] in named]
    content["added_tokens"] = [token for token in content["added_tokens"] if token not in special]
    plain = json.dumps(content, ensure_ascii=False, indent=2)
    tokenizer = Tokenizer.from_str(plain)
    for token in special:
        text = f"a {token['content']}{token['content']} b"
        if tokenizer.encode(text).ids != vocabulary.encode(text):
            raise BadInput(f"{vocabulary.path}: merges give {token['content']!r}; leave --spell_special_tokens out")
    return plain.encode()


def _check(proto, vocabulary: SentencePieceVocabulary) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    expected = {
        "model_type unigram": trainer.model_type == trainer.UNIGRAM,
        "byte_fallback": trainer.byte_fallback,
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "no whitespace suffixes": not trainer.treat_whitespace_as_suffix,
        "no user-defined symbols": all(piece.type != piece.USER_DEFINED for piece in proto.pieces),
    }
    missing = [name for name, holds in expected.items() if not holds]
    normal = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
    names = "".join(piece.piece for piece in proto.pieces if piece.piece not in normal)
    # If every character is a piece, no choice depends on the score of unknown characters, which _NEVER lowers.
    characters = set("".join(normal)) | set(names) - set("ABCDEF")
    if unspelled := sorted(characters - normal):
        missing.append(f"single-character pieces for {' '.join(unspelled)}")
    if missing:
        raise BadInput(
            f"vocabulary {vocabulary.path} cannot be converted to tokenizer.json: it lacks {', '.join(missing)}; "
            "train it with train_vocabulary on text that contains these characters"
        )


def _uncomposed() -> str:
    """Returns a pattern of the places where a character must not be composed with the characters before it.

    SentencePiece composes exactly the full canonical decompositions of single characters. NFC does more: it sorts
    marks, adds marks to composed characters, and skips marks in between.
    """
    bases = defaultdict(set)  # prefix of the marks in a decomposition -> its bases
    for code in range(0x80, sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.decomposition(character)[:1] not in ("", "<"):
            base, *marks = unicodedata.normalize("NFD", character)
            for end in range(1, len(marks) + 1):
                bases["".join(marks[:end])].add(base)
    vowel, final = "[\u1161-\u1175]", "[\u11a8-\u11c2]"  # Hangul composes by arithmetic
    composed = [f"(?<={_class(found)}{marks[:-1]}){marks[-1]}" for marks, found in sorted(bases.items())]
    composed += [f"(?<=[\u1100-\u1112]){vowel}", f"(?<=[\u1100-\u1112]{vowel}){final}"]
    marks = f"[{''.join(sorted(set(''.join(bases))))}\u1161-\u1175\u11a8-\u11c2\\p{{M}}]"
    # The camel case rule has already separated a capital letter from a mark after it.
    return f"(?<=[a-z][A-Z])(?={marks})|(?={marks})(?!{'|'.join(composed)})"


def _class(characters: set[str]) -> str:
    # Hexadecimal, because some bases are special in a character class.
    return "[" + "".join(f"\\x{{{ord(character):X}}}" for character in sorted(characters)) + "]"
