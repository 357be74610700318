"""The first sentence of a docstring as a query: one line, without markup."""

import inspect
import re
from collections.abc import Iterator

MIN_WORDS, MAX_WORDS = 3, 64
_LONG = 24  # words; a longer summary is cut to its first sentence

_RULE = re.compile(r"[-=~*#\s]*")
_SECTION = re.compile(
    r"^(?:args|arguments|parameters?|params|returns?|yields?|raises?|attributes|examples?|notes?|usage|inputs?|outputs?"
    r"|references|see also|todo|warnings?)\s*:?$"
    r"|^(?:[:@][a-z]|>>> |\.\. |[-=~*#]{3,})",
    re.IGNORECASE,
)
_DOCSTRING = re.compile(r'^[ \t]+"""(.+?)"""', re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"^\s*(?:def|class|import|from|return|if|self\.)\b", re.MULTILINE)
_SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)(?:\s*(?:->|:)\s*\S+)?\.?|[\w.]+\(.*\)\s*->.*")
_PARAMETER = re.compile(r"`?\w+`? ?\([^)]*\) ?:|\w+ : \w")
_MARKUP = (
    (re.compile(r":[\w:.+-]+:`(?:[^`<]*<)?[~!]?([^`>]*)>?`"), r"\1"),  # :class:`~a.B`, :ref:`words <target>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `words <https://...>`_
    (re.compile(r"\[([^\]]+)\]\([^)\s]+\)"), r"\1"),  # [words](https://...)
    (re.compile(r"\[[^\]\s]+\]_|https?://\S+|</?[a-z][^>]*>"), ""),  # [1]_, <b>
    (re.compile(r"`+"), ""),
    (re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*]+)(?<=\S)\1(?![\w*])"), r"\2"),  # *words*, **words**
    (re.compile(r"\b(?:[a-z_]\w*\.){2,}(?=\w)"), ""),  # a.b.C
)
_TRIVIAL = re.compile(
    r"(?:see\b|deprecated|alias(?:es)?\b|same as\b|like\b|inherit|todo\b|fixme\b|note\b|warning\b|override"
    r"|copied\b|refer to\b|(?:the )?docstring|implements?\s+\S+$|wrapper for \S+$|internal\b|for internal"
    r"|do not use|please\b|dummy\b|(?:auto-?)?generated|undocumented|not implemented"
    r"|this (?:method|function|class) is deprecated)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<![.\s][a-z])(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=\s+[A-Z\"'(])")


def summary(docstring: str) -> str | None:
    """Returns the first paragraph on one line, cut to a sentence if long; None if it says too little.

    Rejected: fewer than MIN_WORDS words, pointers to elsewhere ("See base class"), deprecations, text that is
    not ASCII or mostly symbols, lists of parameters.
    """
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=2)[:2]:
        text = _prose(paragraph)
        if text and not _SIGNATURE.fullmatch(text):  # numpy style: a signature precedes the summary
            return _clean(text)
    return None


def described(source: str, least: int = 80) -> Iterator[tuple[str, str]]:
    """Yields (summary, rest) of each docstring in Python source that has more than a summary. The source may be cut.

    Args:
        source: the code.
        least: the smallest number of characters of the rest.
    """
    for match in _DOCSTRING.finditer(source):
        text = inspect.cleandoc(match[1])
        first, _, rest = text.partition("\n\n")
        rest = rest.strip()
        # In a cut source the quotes may be out of step, so that code between two docstrings matches.
        if len(rest) >= least and not _CODE.search(rest) and (says := summary(first)):
            yield says, rest


def _prose(paragraph: str) -> str:
    """Joins the lines before the first section, rule, field or doctest."""
    lines = [line.strip() for line in paragraph.split("\n")]
    while lines and _RULE.fullmatch(lines[0]):
        lines.pop(0)
    end = next((index for index, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    return " ".join(" ".join(lines[:end]).split())


def _clean(text: str) -> str | None:
    if not text.isascii() or _PARAMETER.match(text):
        return None
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split()).strip(" :;,-")
    if len(text.split()) > _LONG and (end := _SENTENCE_END.search(text)):
        text = text[: end.end()]
    words = text.split()
    text = " ".join(words[:MAX_WORDS])
    spelled = sum(any(character.isalpha() for character in word) for word in words)
    letters = sum(character.isalpha() or character == " " for character in text)
    if spelled < MIN_WORDS or letters < 0.75 * len(text) or _TRIVIAL.match(text.rstrip(".")):
        return None
    return text
