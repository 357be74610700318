"""Parallel text in several languages: news sentences aligned by line, and pages aligned by path."""

import collections
import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.set_samples import draw
from pplx_jax.recipes.corpora.markdown_sections import Section, sections
from pplx_jax.recipes.corpora.training_rows import Row, TrainingRows, cropped_pairs, read_rows

PIVOT = "eng"
PIVOT_PAGES = "en"
CHUNK_LINES = 2  # sentences of a chunk of a document


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Aligned sentences: language -> line -> text, and line -> document, in order."""

    source: str
    text: Mapping[str, Mapping[int, str]]
    document: Mapping[int, str]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Sentences":
        """Reads `{lang, doc, line, text}` rows."""
        text: dict[str, dict[int, str]] = collections.defaultdict(dict)
        document = {}
        for row in read_rows(path, "lang", "doc", "line", "text"):
            text[row["lang"]][row["line"]] = row["text"]
            document[row["line"]] = row["doc"]
        return cls(path.name.split(".")[0], dict(text), dict(sorted(document.items())))

    def within(self, documents: Collection[str]) -> "Sentences":
        """Returns the sentences of some documents."""
        lines = {line: name for line, name in self.document.items() if name in documents}
        text = {lang: {line: of[line] for line in lines if line in of} for lang, of in self.text.items()}
        return Sentences(self.source, text, lines)

    def in_languages(self, languages: Collection[str]) -> "Sentences":
        """Returns the sentences of English and of some languages; of all languages if none is given.

        Raises:
            BadInput: a language does not exist.
        """
        if not languages:
            return self
        for language in languages:
            self._require(language)
        kept = {*languages, PIVOT}
        return Sentences(self.source, {lang: of for lang, of in self.text.items() if lang in kept}, self.document)

    @property
    def documents(self) -> dict[str, list[int]]:
        """Document -> its lines in order."""
        found: dict[str, list[int]] = {}
        for line, name in self.document.items():
            found.setdefault(name, []).append(line)
        return found

    def rows(self, seed: int, contextual_share: float = 0.3, partners: int = 1) -> TrainingRows:
        """Returns pairs across languages, contextual documents with queries in other languages, and plain texts.

        Args:
            seed: seed of the draws.
            contextual_share: share of the documents of each language that become contextual documents. Their queries
                are translations of their sentences.
            partners: number of translations that each sentence is paired with; equal draws count once.
        """
        found, languages, names = TrainingRows(), sorted(self.text), ("query", "document", "source")
        for language in languages:
            for line in self.text[language] if language != PIVOT else ():
                pairs = (self._pair(language, line, languages, seed, partner) for partner in range(partners))
                found.pairs += [dict(zip(names, pair, strict=True)) for pair in dict.fromkeys(pairs)]
            for name, lines in self.documents.items():
                present = [line for line in lines if line in self.text[language]]
                found.texts.append(
                    {"text": " ".join(self.text[language][line] for line in present), "source": self.source}
                )
                if draw(seed, "contextual", language, name) < contextual_share and len(present) > CHUNK_LINES:
                    found.documents.append(self._document(language, name, present, languages, seed))
        found.pairs = [row for row in found.pairs if row["query"] and row["document"]]
        return found

    def _pair(
        self, language: str, line: int, languages: Sequence[str], seed: int, partner: int
    ) -> tuple[str, str, str]:
        """Returns (query, document, source): a sentence and a translation, in English or a third language."""
        chance = draw(seed, "pair", language, line, partner)
        third = languages[int(draw(seed, "third", language, line, partner) * len(languages))]
        other = PIVOT if chance < 0.7 or third == language else third
        text, translation = self.text[language][line], self.text[other].get(line, "")
        return (translation, text, self.source) if chance > 0.4 else (text, translation, self.source)

    def _document(self, language: str, name: str, lines: Sequence[int], languages: Sequence[str], seed: int) -> Row:
        text = self.text[language]
        groups = [lines[start : start + CHUNK_LINES] for start in range(0, len(lines), CHUNK_LINES)]
        queries = []
        for chunk, group in enumerate(groups):
            line = group[int(draw(seed, "line", language, name, chunk) * len(group))]
            asked_in = languages[int(draw(seed, "asked", language, line) * len(languages))]
            if asked_in != language and line in self.text[asked_in]:
                queries.append({"text": self.text[asked_in][line], "chunk": chunk})
        chunks = [" ".join(text[line] for line in group) for group in groups]
        return {"id": f"{name}:{language}", "source": self.source, "chunks": chunks, "queries": queries}

    def _require(self, language: str) -> None:
        if language not in self.text or PIVOT not in self.text:
            raise BadInput(f"{self.source} has no {language}; it has {', '.join(sorted(self.text))}")

    def retrieval_set(self, language: str) -> RetrievalSet:
        """Returns a set whose queries are sentences of a language and whose passages are all English sentences.

        Raises:
            BadInput: the language does not exist.
        """
        self._require(language)
        lines = [line for line in self.document if line in self.text[PIVOT] and line in self.text[language]]
        place = {line: at for of in self.documents.values() for at, line in enumerate(of)}
        return RetrievalSet(
            document_ids=[f"{PIVOT}:{line}" for line in lines],
            documents=[self.text[PIVOT][line] for line in lines],
            parents=[self.document[line] for line in lines],
            chunks=[place[line] for line in lines],
            query_ids=[f"{language}:{line}" for line in lines],
            queries=[self.text[language][line] for line in lines],
            qrels={f"{language}:{line}": {f"{PIVOT}:{line}": 1} for line in lines},
        )


@dataclasses.dataclass(frozen=True)
class Pages:
    """Aligned pages: path -> language -> sections, and (path, language) -> the whole page."""

    source: str
    sections: Mapping[str, Mapping[str, list[Section]]]
    text: Mapping[tuple[str, str], str]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Pages":
        """Reads `{lang, path, text}` rows of Markdown."""
        cut: dict[str, dict[str, list[Section]]] = collections.defaultdict(dict)
        text = {}
        for row in read_rows(path, "lang", "path", "text"):
            cut[row["path"]][row["lang"]] = sections(row["text"])
            text[row["path"], row["lang"]] = row["text"]
        return cls(path.name.split(".")[0], dict(cut), text)

    def within(self, paths: Collection[str]) -> "Pages":
        """Returns the pages of some paths."""
        cut = {path: of for path, of in self.sections.items() if path in paths}
        return Pages(self.source, cut, {key: text for key, text in self.text.items() if key[0] in paths})

    def rows(self, seed: int) -> TrainingRows:
        """Returns pairs of heading and text within and across languages, and pages with their headings as queries."""
        found = TrainingRows()
        for path, versions in self.sections.items():
            for language, page in versions.items():
                found.pairs += [
                    {"query": _asked(section), "document": section.text, "source": self.source} for section in page
                ]
                found.pairs += self._across(path, language, seed)
                if len(page) > 1:
                    queries = [{"text": _asked(section), "chunk": chunk} for chunk, section in enumerate(page)]
                    chunks = [section.text for section in page]
                    row = {"id": f"{path}:{language}", "source": self.source, "chunks": chunks, "queries": queries}
                    found.documents.append(row)
                crops = cropped_pairs(self.source, (section.text for section in page), seed)
                found.pairs += crops
        found.texts += [{"text": text, "source": self.source} for text in self.text.values()]
        return found

    def _across(self, path: str, language: str, seed: int) -> Iterable[Row]:
        """Yields the heading of each section with the section of the same anchor in another language."""
        others = sorted(self.sections[path].keys() - {language})
        for section in self.sections[path][language]:
            if not others or not section.anchor:
                continue
            other = others[int(draw(seed, "across", path, language, section.anchor) * len(others))]
            for same in self._same(path, section, other):
                yield {"query": _asked(section), "document": same.text, "source": f"{self.source}-across"}

    def retrieval_set(self, language: str = PIVOT_PAGES, asked_in: str | None = None) -> RetrievalSet:
        """Returns a set whose passages are all sections of a language.

        Args:
            language: the language of the passages.
            asked_in: the language of the queries, which are headings: of the sections themselves if None, else of the
                sections of the same anchor.
        """
        found = [
            (path, chunk, section)
            for path, versions in self.sections.items()
            for chunk, section in enumerate(versions.get(language, ()))
        ]
        names = [f"{path}#{chunk}" for path, chunk, _ in found]
        queries = {
            name: _asked(same)
            for name, (path, _, section) in zip(names, found, strict=True)
            for same in ([section] if asked_in is None else self._same(path, section, asked_in))
        }
        return RetrievalSet(
            document_ids=names,
            documents=[section.text for _, _, section in found],
            parents=[path for path, _, _ in found],
            chunks=[chunk for _, chunk, _ in found],
            query_ids=[f"query:{name}" for name in queries],
            queries=list(queries.values()),
            qrels={f"query:{name}": {name: 1} for name in queries},
        )

    def _same(self, path: str, section: Section, language: str) -> list[Section]:
        """Returns the section of another language that has the same anchor; [] if there is none."""
        others = self.sections[path].get(language, ()) if section.anchor else ()
        return [one for one in others if one.anchor == section.anchor][:1]


def _asked(section: Section) -> str:
    return section.heading if section.heading == section.title else f"{section.title}: {section.heading}"
