"""A corpus of documentation in many languages: unpacked packages of a Linux distribution (`docs_pages.py`).

- A heading, with the title of its page, asks for the text below it, in its own language (source PACKAGE) and in
  another one if the page is translated (source PACKAGE-across). A sentence asks for the rest of its section.
- The sections of a page are a document in chunks; their headings are its queries.
- A page is a text for diffusion.

Whole packages and a share of the pages, each in all its languages, are held out. The evaluation sets are docs-LANGUAGE
(headings and sections of one language) and docs-LANGUAGE-en (headings of that language, English sections).
"""

import collections
import dataclasses
import pathlib
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.set_samples import draw, restricted, sampled
from pplx_jax.data.sources.corpus import WrittenCorpus
from pplx_jax.recipes.corpora.aligned_text import PIVOT_PAGES, Pages
from pplx_jax.recipes.corpora.checked_corpus import PairSamples, write_corpus
from pplx_jax.recipes.corpora.docs_pages import Page, find_pages, read_pages
from pplx_jax.recipes.corpora.training_rows import TrainingRows


@dataclasses.dataclass(frozen=True)
class DocsCorpus(WrittenCorpus):
    """Which documentation is trained on, and which is evaluated on.

    Attributes:
        path: the folder of unpacked packages.
        languages: codes of the languages to read besides English, such as de or pt-BR; all if empty.
        held_out: packages to evaluate on only, without a language in their name, such as `python3.11-doc`.
        held_out_share: share of the pages of the other packages to evaluate on, each in all its languages.
        evaluated: languages with an evaluation set docs-LANGUAGE.
        across: languages with an evaluation set docs-LANGUAGE-en.
        most_queries, most_documents: size of a seeded sample of each evaluation set; 0 for all.
        most_pages: number of pages to read of each package, each in all its languages; 0 for all.
        most_pairs: size of a seeded sample of the pairs of each package; 0 for all.
        seed: seed of all draws.
    """

    path: str
    languages: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_share: float = 0.03
    evaluated: tuple[str, ...] = (PIVOT_PAGES,)
    across: tuple[str, ...] = ()
    most_queries: int = 0
    most_documents: int = 0
    most_pages: int = 0
    most_pairs: int = 0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.held_out_share < 1:
            raise BadInput(f"DocsCorpus.held_out_share={self.held_out_share}; set it to 0 or more and less than 1")
        if not self.evaluated and not self.across:
            raise BadInput("DocsCorpus.evaluated and across are empty; name a language to evaluate on")
        if PIVOT_PAGES in self.across:
            raise BadInput(f"DocsCorpus.across: {PIVOT_PAGES} asks for itself; name it in evaluated")

    def build(self, output: pathlib.Path) -> dict[str, Any]:
        """Writes the corpus folder, completely or not at all, and returns its counts.

        Raises:
            BadInput: see `parts`; or a training row overlaps with the evaluation.
        """
        rows, evaluation = self.parts()
        output.parent.mkdir(parents=True, exist_ok=True)
        return write_corpus(output, rows, evaluation, samples=PairSamples(self.most_pairs, seed=self.seed))

    def parts(self) -> tuple[TrainingRows, dict[str, RetrievalSet]]:
        """Returns the training rows and the evaluation sets by name.

        Raises:
            BadInput: there is no folder, page, held-out package or language of that name, or nothing to evaluate on.
        """
        found: dict[str, dict[str, list[Page]]] = collections.defaultdict(lambda: collections.defaultdict(list))
        known = set()
        for page in find_pages(pathlib.Path(self.path)):
            known.add(page.language)
            if not self.languages or page.language in (PIVOT_PAGES, *self.languages):
                found[page.source][page.path].append(page)
        if not found:
            raise BadInput(f"DocsCorpus.path: no page of documentation in {self.path}")
        self._require("languages", (*self.languages, *self.evaluated, *self.across), known)
        self._require("held_out", self.held_out, found)
        rows, held = TrainingRows(), []
        for source, by_path in sorted(found.items()):
            paths = sorted(by_path, key=lambda path: draw(self.seed, "page", source, path))[: self.most_pages or None]
            pages = read_pages(source, [page for path in paths for page in by_path[path]])
            tested = {path for path in pages.sections if self._tested(source, path)}
            rows.extend(pages.within(pages.sections.keys() - tested).rows(self.seed))
            held.append(pages.within(tested))
        return rows, self._sets(held)

    def _tested(self, source: str, path: str) -> bool:
        return source in self.held_out or draw(self.seed, "held out", source, path) < self.held_out_share

    def _sets(self, held: list[Pages]) -> dict[str, RetrievalSet]:
        """Returns the evaluation sets, of the pages of all packages together."""
        together = Pages(
            "docs",
            {f"{of.source}/{path}": versions for of in held for path, versions in of.sections.items()},
            {},
        )
        sets = {f"docs-{language}": together.retrieval_set(language) for language in self.evaluated}
        sets |= {
            f"docs-{language}-{PIVOT_PAGES}": together.retrieval_set(PIVOT_PAGES, asked_in=language)
            for language in self.across
        }
        sets = {
            name: sampled(_unambiguous(data), self.most_documents, self.most_queries, self.seed)
            for name, data in sets.items()
        }
        if empty := [name for name, data in sets.items() if not data.query_ids]:
            raise BadInput(
                f"DocsCorpus: nothing is held out for {', '.join(empty)}; raise held_out_share or name a package in "
                "held_out"
            )
        return sets

    def _require(self, field: str, names: tuple[str, ...], known) -> None:
        if missing := sorted(set(names) - set(known)):
            raise BadInput(f"DocsCorpus.{field}: {self.path} has no {missing[0]}; it has {', '.join(sorted(known))}")


def _unambiguous(data: RetrievalSet) -> RetrievalSet:
    """Leaves out the headings that several sections have."""
    times = collections.Counter(data.queries)
    once = {name for name, text in zip(data.query_ids, data.queries, strict=True) if times[text] == 1}
    return restricted(data, range(len(data.documents)), once.__contains__)
