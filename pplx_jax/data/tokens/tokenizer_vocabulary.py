"""The vocabulary of a pretrained model: its `tokenizer.json`, read with the `tokenizers` package.

It is made for Qwen's byte-level BPE, and works for any tokenizer of that format. The mask, separator and pad tokens are
found by name, never by id: in `vocabulary.json` next to the tokenizer, else in `tokenizer_config.json`, else Qwen's,
else SmolLM2's.

No text encodes to a special token: the name of one in a text is encoded as ordinary text. The same holds for the names
of those three tokens, even if they are not special (Qwen's `<|fim_pad|>` is not). Other added tokens, such as
`<think>`, are ordinary content. Truncation, padding and appended tokens of the tokenizer are switched off
(Qwen3-Embedding appends an end token).
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.byte_bound import ByteBound
from pplx_jax.data.tokens.vocabulary import TOKENIZER, Vocabulary, write_vocabulary_file

if TYPE_CHECKING:
    import tokenizers

NAMES = "vocabulary.json"
_DECLARED = {"mask": "mask_token", "separator": "sep_token", "pad": "pad_token"}  # in tokenizer_config.json
# The first one that the tokenizer has: Qwen's, SmolLM2's.
_DEFAULTS = {"mask": ("<|fim_pad|>", "<empty_output>"), "separator": ("<|endoftext|>",), "pad": ("<|endoftext|>",)}


@dataclasses.dataclass(frozen=True)
class TokenizerVocabulary(Vocabulary):
    """The bytes of a `tokenizer.json`, and the names of the three tokens that training needs."""

    model: bytes = dataclasses.field(repr=False)
    mask: str
    separator: str
    pad: str

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        mask_token: str | None = None,
        separator_token: str | None = None,
        pad_token: str | None = None,
    ) -> "TokenizerVocabulary":
        """Reads a `tokenizer.json`, or the one in a folder.

        Args:
            path: the file or its folder.
            mask_token: the name of an existing token; if None, it is found as the module docstring says.
            separator_token: likewise, another token.
            pad_token: likewise; it may be the separator.

        Raises:
            BadInput: a file is missing or damaged, a token does not exist, or its name encodes to it.
        """
        path = as_path(path)
        path = path / TOKENIZER if path.is_dir() else path
        given = {"mask": mask_token, "separator": separator_token, "pad": pad_token}
        try:
            model = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror or error}; give a {TOKENIZER}") from None
        return cls.of(
            path, model, _names(path.parent) | {role: name for role, name in given.items() if name is not None}
        )

    @classmethod
    def of(cls, path: pathlib.Path, model: bytes, names: Mapping[str, str]) -> "TokenizerVocabulary":
        """Checks the content of a `tokenizer.json`.

        Args:
            path: where it is from, for messages.
            model: the content.
            names: role ("mask", "separator", "pad") -> token name; one that is missing is the default.

        Raises:
            BadInput: as `read`.
        """
        defaults = {
            role: next((name for name in known if json.dumps(name).encode() in model), known[0])
            for role, known in _DEFAULTS.items()
        }
        vocabulary = cls(path, model, **(defaults | dict(names)))
        try:
            vocabulary._tokenizer  # noqa: B018  (parses the file)
        except ImportError:
            raise BadInput(f"{path} needs the package tokenizers; pip install tokenizers") from None
        except Exception as error:  # the package raises the bare class
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{path} is not a tokenizer ({reason}); copy it again from where it was published") from None
        vocabulary._check()
        return vocabulary

    @functools.cached_property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_str(self.model.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Added again as special, with the same id: `encode_special_tokens` applies to special tokens only.
        tokenizer.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for token in tokenizer.get_added_tokens_decoder().values()
                if token.content in self._names and not token.special
            ]
        )
        tokenizer.encode_special_tokens = True
        return tokenizer

    def __reduce__(self):  # another process parses the bytes again
        return type(self), (self.path, self.model, self.mask, self.separator, self.pad)

    @property
    def _names(self) -> tuple[str, str, str]:
        return self.mask, self.separator, self.pad

    @functools.cached_property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def pad_id(self) -> int:
        return self._id("pad", self.pad)

    @functools.cached_property
    def mask_id(self) -> int:
        return self._id("mask", self.mask)

    @functools.cached_property
    def separator_id(self) -> int:
        return self._id("separator", self.separator)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model + json.dumps(self._names).encode()).hexdigest()

    @functools.cached_property
    def plain_model(self) -> bytes:
        """The file for other libraries: unchanged, unless it makes them truncate, pad or append."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.model.decode())
        content = json.loads(self.model)
        unwanted = {key for key in ("truncation", "padding") if content.get(key) is not None}
        unwanted |= {"post_processor"} if tokenizer.num_special_tokens_to_add(False) else set()
        if not unwanted:
            return self.model
        return json.dumps(content | dict.fromkeys(unwanted), ensure_ascii=False, indent=2).encode()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def least_tokens(self, text: str) -> int:
        return self._bound.least_tokens(text)

    @functools.cached_property
    def _bound(self) -> ByteBound:
        return ByteBound.of(json.loads(self.model))

    def decode(self, ids: Iterable[int]) -> str:
        special = {self.pad_id, self.mask_id, self.separator_id}
        return self._tokenizer.decode([int(token) for token in ids if int(token) not in special])

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        folder = as_path(folder)
        names = {"mask": self.mask, "separator": self.separator, "pad": self.pad}
        write_vocabulary_file(folder / NAMES, (json.dumps(names, indent=2) + "\n").encode())
        return write_vocabulary_file(folder / TOKENIZER, self.model)

    def _id(self, role: str, name: str) -> int:
        token = self._tokenizer.token_to_id(name)
        if token is None:
            raise BadInput(f"{self.path} has no token {name!r} for the {role}; name one that it has")
        return token

    def _check(self) -> None:
        if self.mask_id == self.separator_id:
            raise BadInput(f"{self.path}: mask and separator are both {self.mask!r}; name two tokens")
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: place for place, token in added.items() if token.special}
        special |= {name: self._id("text", name) for name in self._names}
        for name, token in special.items():
            if token in self.encode(name) + self.encode(f"a {name}{name} b"):
                raise BadInput(f"{self.path}: the text {name!r} gives the token of that name; name a special token")


def _names(folder: pathlib.Path) -> dict[str, str]:
    """Returns role -> token name, from the files next to the tokenizer."""
    if (folder / NAMES).exists():
        content = _read_object(folder / NAMES)
        names = {role: content.get(role) for role in _DECLARED}
        if not all(isinstance(name, str) for name in names.values()):
            raise BadInput(f"{folder / NAMES} does not name {', '.join(_DECLARED)}; run the import again")
        return {role: str(name) for role, name in names.items()}
    if not (folder / "tokenizer_config.json").exists():
        return {}
    content = _read_object(folder / "tokenizer_config.json")
    declared = {role: content.get(key) for role, key in _DECLARED.items()}
    declared = {role: name["content"] if isinstance(name, dict) else name for role, name in declared.items()}
    return {role: name for role, name in declared.items() if isinstance(name, str)}


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, fix="copy it again")
