"""Sections of pages: their headings with the text below. Splits Markdown pages."""

import dataclasses
import re

_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*(?:\{\s*#([\w-]+)\s*\})?\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_MARKUP = re.compile(r"<[^>]*>|\*\*|__|`")


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with the text below it.

    Attributes:
        title: the title of the page.
        heading: the heading without markup; the title for the text before the first other heading.
        anchor: its name in links, equal in all translations; empty if the page has none.
        text: the text without the heading.
    """

    title: str
    heading: str
    anchor: str
    text: str


def cut_text(text: str, *, min_characters: int = 80, max_characters: int = 2400) -> str:
    """Returns the text of a section: "" if it is shorter than a section is, cut at an end of line if it is longer."""
    text = text.strip()
    if len(text) > max_characters:
        end = text.rfind("\n", max_characters // 2, max_characters)
        text = text[: end if end > 0 else max_characters].rstrip()
    return text if len(text) >= min_characters else ""


def sections(page: str) -> list[Section]:
    """Returns the sections of a page in order. Short ones are left out, long ones are cut."""
    found, title = [], ""
    heading, anchor, lines, fenced = "", "", [], False

    def close():
        text = cut_text("\n".join(lines))
        if heading and text:
            found.append(Section(title, heading, anchor, text))

    for line in page.splitlines():
        fenced ^= bool(_FENCE.match(line))  # a comment in a code block is not a heading
        match = None if fenced else _HEADING.match(line)
        if match is None:
            lines.append(line)
            continue
        close()
        heading, anchor, lines = _MARKUP.sub("", match[2]).strip(), match[3] or "", []
        title = title or heading
    close()
    return found
