"""Pages of documentation from unpacked packages, with their translations.

    FOLDER/PACKAGE/...   the files of each package, as `pplx_jax.recipes.corpora.debian_docs` writes them

The language of a page is an element of its path: `help/de/text/a.html`, `translations/de/a.html`, `de/a.html`,
`a.de.html`; English if there is none. Without that element, a page has the same path in all its translations, also
where each is a package of its own (`libreoffice-help-de`), whose name may be an element too.
"""

import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from absl import logging

from pplx_jax.core.errors import BadInput
from pplx_jax.recipes.corpora.aligned_text import PIVOT_PAGES, Pages
from pplx_jax.recipes.corpora.html_sections import page_sections
from pplx_jax.recipes.corpora.markdown_sections import Section

_SUFFIXES = (".html", ".htm", ".xhtml", ".page")
# ISO 639-1 and nds, without codes that are usual names of other folders.
_CODES = frozenset(
    "ab af am an ar ast az be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fr fy ga gd gl gu he hi hr hu hy "
    "id it ja ka kk km kn ko ku ky lb lg lo lt lv mg mk ml mn mr ms nb nds ne nl nn oc om pa pl ps pt ro ru si sk sl "
    "sq sr sv sw ta te tg th tk tr tt ug uk ur uz vi wa xh yi zh zu".split()
)
_ALSO_FOLDERS = frozenset("as io is my no or so to".split())  # languages below a folder `help` only
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]([A-Za-z]{2}|valencia|Hans|Hant))?(@[a-z]+)?")
_USUAL = {"en-US": "en", "it-IT": "it", "ja-JP": "ja", "ko-KR": "ko"}  # one name for each language


class Page(NamedTuple):
    """A file.

    Attributes:
        source: its package without the language.
        path: its path in the package without the language.
        language: its code, such as de or pt-BR.
        file: where it is.
    """

    source: str
    path: str
    language: str
    file: pathlib.Path


def find_pages(folder: pathlib.Path) -> Iterator[Page]:
    """Yields the pages of all packages in a folder, in the order of their paths. Links are not followed.

    Raises:
        BadInput: the folder does not exist.
    """
    if not folder.is_dir():
        raise BadInput(
            f"no folder {folder}; `python -m pplx_jax.recipes.corpora.debian_docs {folder}` downloads documentation"
        )
    for package in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        source, of_package = _package_language(package.name)
        for at, folders, names in os.walk(package):
            folders.sort()
            for name in sorted(names):
                file = pathlib.Path(at, name)
                if name.endswith(_SUFFIXES) and not file.is_symlink():
                    parts = file.relative_to(package).parts
                    path, language = _path_language(tuple(source if part == package.name else part for part in parts))
                    yield Page(source, path, language or of_package or PIVOT_PAGES, file)


def read_pages(source: str, pages: Collection[Page]) -> Pages:
    """Reads the pages of a source.

    A section that an earlier page of its language has too, or that is the English text instead of a translation, is
    left out. Bytes that are no UTF-8 are replaced.
    """
    sections: dict[str, dict[str, list[Section]]] = {}
    text: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    for page in sorted(pages, key=lambda page: (page.language != PIVOT_PAGES, page.language, page.path)):
        found = page_sections(page.file.read_text(encoding="utf-8", errors="replace"))
        kept = []
        for section in found:
            known = (page.language, section.text)
            if known in seen or (page.language != PIVOT_PAGES and (PIVOT_PAGES, section.text) in seen):
                continue
            seen.add(known)
            kept.append(section)
        if kept:
            sections.setdefault(page.path, {})[page.language] = kept
            text[page.path, page.language] = "\n\n".join(f"{section.heading}\n{section.text}" for section in kept)
    logging.info("%s: %d pages, %d with text", source, len(pages), len(text))
    return Pages(source, dict(sorted(sections.items())), text)


def language_code(name: str) -> str:
    """Returns the code of a language as file names give it (`pt_BR`, `pt-br`, `en-us`, `C`); "" if it is none."""
    if name == "C":
        return PIVOT_PAGES
    match = _LANGUAGE.fullmatch(name)
    if match is None or match[1] not in _CODES:
        return ""
    region = match[2] or ""
    code = "-".join(filter(None, (match[1], region.upper() if len(region) == 2 else region)))
    return _USUAL.get(code, code) + (match[3] or "")


def _package_language(package: str) -> tuple[str, str]:
    """Returns the name of a package without its language, and the language."""
    parts = package.split("-")
    for length in (2, 1):
        language = language_code("-".join(parts[-length:])) if len(parts) > length else ""
        if language:
            return "-".join(parts[:-length]), language
    return package, ""


def _path_language(parts: tuple[str, ...]) -> tuple[str, str]:
    """Returns a path without its language, and the language; "" if it names none."""
    *folders, name = parts
    stem, *between, suffix = name.split(".")
    if between and (language := language_code(between[-1])):
        return "/".join([*folders, ".".join([stem, *between[:-1], suffix])]), language
    for place, folder in enumerate(folders):
        language = language_code(folder)
        if not language and folder in _ALSO_FOLDERS and folders[place - 1 : place] == ["help"]:
            language = folder
        if language:
            above = folders[: place - 1] if folders[place - 1 : place] == ["translations"] else folders[:place]
            return "/".join([*above, *folders[place + 1 :], name]), language
    return "/".join(parts), ""
