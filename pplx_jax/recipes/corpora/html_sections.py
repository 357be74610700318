"""Splits pages of documentation in HTML or Mallard (projectmallard.org, the format of GNOME's help) at their headings.

What surrounds the text is left out: navigation, headers, footers, scripts, links of a page to its own sections.
"""

import html.parser
import re
from typing import NamedTuple

from pplx_jax.recipes.corpora.markdown_sections import Section, cut_text

_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_WITHOUT_END = frozenset("area base br col embed hr img input link meta source track wbr".split())
_LEFT_OUT = frozenset("script style head nav header footer aside noscript button form svg info media".split())
_LEFT_OUT_CLASSES = frozenset(
    "navheader navfooter related sphinxsidebar footer toc headerlink indexterm highlighttable-linenos".split()
)
_BLOCKS = frozenset("p div li ul ol dl dt dd tr table pre br section article blockquote item steps list screen".split())
_GENERATED = re.compile(r"id[a-z]*-?\d+|.*[.]id\d+|index-\d+")  # numbers that differ between translations
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"^\s*(?:(?:\d+|[A-Z])\.)+(?:\d+\.?)?\s+")  # 5.7. and A.1 before a heading


class _Part(NamedTuple):
    heading: str
    anchor: str
    text: str


def page_sections(page: str) -> list[Section]:
    """Returns the sections of a page in order. Short ones are left out, long ones are cut.

    The anchor of a section is the one in the page, or the number of its heading among all of the page where the page
    has none: translations of a page have the same headings.
    """
    parser = _Page()
    parser.feed(page)
    parser.close()
    parts = parser.finished()
    title, found = next((part.heading for part in parts if part.heading), ""), []
    for number, part in enumerate(parts):
        text = cut_text(part.text)
        if part.heading and text:
            anchor = part.anchor or f"{number} of {len(parts)}"
            found.append(Section(title, part.heading, anchor, text))
    return found


class _Page(html.parser.HTMLParser):
    """Collects the headings of a page with the text below each."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self._parts: list[_Part] = []
        self._heading, self._anchor = "", ""
        self._text: list[str] = []
        self._words: list[str] = []  # of the heading that is open
        self._in_heading = ""  # its tag
        self._pending = ""  # the last name of a place since the last text
        self._left_out, self._depth, self._preformatted = "", 0, 0
        self._open: list[str] = []  # elements of Mallard that can hold a title

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        if self._left_out:
            self._depth += tag == self._left_out
            return
        classes = set((of.get("class") or "").split())
        if tag in _LEFT_OUT or classes & _LEFT_OUT_CLASSES or of.get("role") == "navigation":
            if tag not in _WITHOUT_END:
                self._left_out, self._depth = tag, 1
            return
        name = of.get("id") or (of.get("name") if tag == "a" else None) or ""
        if name and not _GENERATED.fullmatch(name):
            self._pending = name
        if tag in ("page", "section", "figure", "table", "list", "note", "steps", "terms"):
            self._open.append(tag)
        if tag in _HEADINGS or (tag == "title" and self._open and self._open[-1] in ("page", "section")):
            self._begin(tag)
        elif tag in ("pre", "screen"):
            self._preformatted += 1
        if tag in _BLOCKS and not self._in_heading:
            self._text.append("\n")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _WITHOUT_END:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if self._left_out:
            self._depth -= tag == self._left_out
            if not self._depth:
                self._left_out = ""
            return
        if tag == self._in_heading:
            self._heading = _NUMBER.sub("", _SPACE.sub(" ", "".join(self._words)).strip(" \u00b6#"))
            self._anchor, self._pending, self._in_heading = self._pending, "", ""
        if self._open and tag == self._open[-1]:
            self._open.pop()
        if tag in ("pre", "screen"):
            self._preformatted = max(self._preformatted - 1, 0)
        if tag in _BLOCKS and not self._in_heading:
            self._text.append("\n")

    def handle_data(self, data):
        if self._left_out:
            return
        if self._in_heading:
            self._words.append(data)
            return
        self._text.append(data if self._preformatted else _SPACE.sub(" ", data))
        if data.strip():
            self._pending = ""

    def _begin(self, tag: str) -> None:
        self._end()
        self._in_heading, self._words = tag, []

    def _end(self) -> None:
        lines = (line.rstrip() if line.startswith("  ") else line.strip() for line in "".join(self._text).split("\n"))
        text = "\n".join(line for line in lines if line)
        if self._heading or text:
            self._parts.append(_Part(self._heading, self._anchor, text))
        self._heading, self._anchor, self._text = "", "", []

    def finished(self) -> list[_Part]:
        """Returns the headings of the page, each with the text up to the next."""
        self._end()
        return [part for part in self._parts if part.heading]
