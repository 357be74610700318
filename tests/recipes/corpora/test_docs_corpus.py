"""The corpus of documentation on small packages of the same formats: sections, languages, what is held out."""

import json
import pathlib
import subprocess

import pytest

from pplx_jax.core.errors import BAD_INPUT, DONE, BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.data.sources.overlap import Overlap, texts_within
from pplx_jax.evaluation.scoring.retrieval_sets import read_sets
from pplx_jax.recipes.corpora import debian_docs
from pplx_jax.recipes.corpora.docs_corpus import DocsCorpus
from pplx_jax.recipes.corpora.docs_pages import find_pages, language_code
from pplx_jax.recipes.corpora.html_sections import page_sections

PAGES = 24
NAMES = {"en": "Page", "de": "Seite", "pt-BR": "Lado", "ja": "頁", "as": "পৃষ্ঠা"}


def words(*names):
    """Twenty words that no other names give."""
    return " ".join(f"{'x'.join(map(str, names))}w{number}" for number in range(20))


def html(language, page, *, text=None):
    """A page with navigation around two sections: the first has a name, the second has none."""
    name = NAMES[language]
    return f"""<!DOCTYPE html><html><head><title>Not this</title><script>if (a < b) c();</script></head><body>
<header><h1>Product</h1></header><nav><h2>Contents</h2><ul><li>one<li>two</ul></nav>
<div class="navheader"><div><h2>Before</h2></div></div>
<section id="first-{page}"><h1>{page}.1. {name} {page}<a class="headerlink" href="#">\u00b6</a></h1>
<p>{text or words("first", language, page)}, <b>bold</b> &amp; plain.</p></section>
<h2><a id="idm4711"></a>Part of {name} {page}</h2>
<p>Use it:</p><pre>
for line in file:
    print(line)
</pre><ul><li>{words("second", language, page)}</li></ul>
<h2>Short</h2><p>Too short.</p>
<footer><p>{words("footer")}</p></footer></body></html>"""


def mallard(language, page):
    return f"""<?xml version="1.0" encoding="utf-8"?>
<page xmlns="http://projectmallard.org/1.0/" type="topic" id="topic{page}">
  <info><link type="guide" xref="x"/><title type="link">Not this</title><desc>Nor this.</desc></info>
  <title>Topic of {NAMES[language]} {page}</title>
  <p>{words("mallard", language, page)} and <code>code</code> in a line.</p>
  <section id="part"><title>Part</title><list><title>A list</title><item><p>{words("item", language, page)}</p></item>
  </list></section>
</page>"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for page in range(PAGES):
        # A package for each language.
        for package, language, place in (("en-us", "en", "en-US"), ("de", "de", "de"), ("pt-br", "pt-BR", "pt-BR")):
            write(folder / f"office-help-{package}/usr/share/help/{place}/text/{page}.html", html(language, page))
        # All languages in one package, English in its own folder C.
        for language, place in (("en", "C"), ("de", "de")):
            write(folder / f"user-docs/usr/share/help/{place}/topic{page}.page", mallard(language, page))
        # The language is in the name of the file; one page is not translated, one is a copy of another.
        write(folder / f"guide-en/usr/share/guide-en/{page}.en.html", html("en", 100 + page))
        kept = words("first", "en", 100 + page) if page == 3 else None
        write(folder / f"guide-de/usr/share/guide-de/{page}.de.html", html("de", 100 + page, text=kept))
        write(folder / f"python-doc/usr/share/doc/python/{page}.html", html("en", 200 + page))
        # English above a folder of translations; a language whose code is a usual name of folders.
        write(folder / f"kernel-doc/usr/share/doc/html/a/{page}.html", html("en", 300 + page))
        write(folder / f"kernel-doc/usr/share/doc/html/translations/ja_JP/a/{page}.html", html("ja", 300 + page))
        write(folder / f"user-docs/usr/share/help/as/topic{page}.page", mallard("as", page))
    write(folder / "guide-en/usr/share/guide-en/copy.html", html("en", 105))
    (folder / "python-doc/usr/share/doc/link.html").symlink_to("python/0.html")
    write(folder / ".python-doc.partial/usr/share/doc/python/0.html", html("en", 999))
    return folder


def corpus(folder, **fields):
    usual = {"held_out": ("python-doc",), "held_out_share": 0.2, "evaluated": ("en", "de"), "across": ("de",)}
    return DocsCorpus(path=str(folder), **{**usual, **fields})


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("corpus") / "corpus"
    return output, corpus(folder).build(output)


def rows_of(output, name):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sections_of_html_are_its_headings_with_their_text():
    first, second = page_sections(html("en", 7))
    assert (first.title, first.heading, first.anchor) == ("Page 7", "Page 7", "first-7")
    assert first.text == f"{words('first', 'en', 7)}, bold & plain."
    assert (second.title, second.heading) == ("Page 7", "Part of Page 7")
    assert second.anchor == "1 of 3"  # a number that was generated is no name
    assert second.text == f"Use it:\nfor line in file:\n    print(line)\n{words('second', 'en', 7)}"


def test_sections_of_mallard():
    first, second = page_sections(mallard("de", 3))
    assert (first.title, first.heading, first.anchor) == ("Topic of Seite 3", "Topic of Seite 3", "topic3")
    assert first.text == f"{words('mallard', 'de', 3)} and code in a line."
    assert (second.heading, second.anchor) == ("Part", "part")
    assert second.text == f"A list\n{words('item', 'de', 3)}"


def test_a_page_has_one_path_in_all_languages(folder):
    found = {}
    for page in find_pages(folder):
        found.setdefault((page.source, page.path), set()).add(page.language)
    assert found["office-help", "usr/share/help/text/0.html"] == {"en", "de", "pt-BR"}
    assert found["user-docs", "usr/share/help/topic0.page"] == {"en", "de", "as"}
    assert found["kernel-doc", "usr/share/doc/html/a/0.html"] == {"en", "ja"}
    assert found["guide", "usr/share/guide/0.html"] == {"en", "de"}
    assert found["python-doc", "usr/share/doc/python/0.html"] == {"en"}
    assert len(found) == 5 * PAGES + 1  # and the copy; no link, no package that is being unpacked


@pytest.mark.parametrize(
    "name, code",
    [
        ("de", "de"), ("pt_BR", "pt-BR"), ("zh-cn", "zh-CN"), ("en-US", "en"), ("C", "en"), ("en_GB", "en-GB"),
        ("ja_JP", "ja"), ("ca-valencia", "ca-valencia"), ("sr@latin", "sr@latin"),
        ("text", ""), ("io", ""), ("doc", ""), ("de-facto", ""),
    ],
)  # fmt: skip
def test_codes_of_languages(name, code):
    assert language_code(name) == code


def test_sets_are_whole_pages_of_held_out_packages_and_of_the_share(built):
    output, counts = built
    sets = read_sets(output / "evaluation")
    assert set(sets) == {"docs-en", "docs-de", "docs-de-en"}
    parents = {parent.split("/")[0] for parent in sets["docs-en"].parents}
    assert parents == {"python-doc", "office-help", "user-docs", "guide", "kernel-doc"}
    assert sum(parent.startswith("python-doc") for parent in set(sets["docs-en"].parents)) == PAGES
    assert set(sets["docs-de"].parents) < set(sets["docs-en"].parents)
    across = sets["docs-de-en"]
    answer = dict(zip(across.document_ids, across.documents, strict=True))
    for name, text in zip(across.query_ids, across.queries, strict=True):
        (document,) = across.qrels[name]
        number = text.split("Seite ")[1].split(":")[0]
        assert f"xenx{number}w0" in answer[document]
    assert counts["evaluated"]["docs-en"]["documents"] == len(sets["docs-en"].documents)
    assert rows_of(output, "search")


def test_nothing_of_a_set_is_trained_on_in_any_language(built):
    output, _ = built
    sets = read_sets(output / "evaluation").values()
    overlap = Overlap(text for one in sets for text in (*one.documents, *one.queries))
    held = {parent for one in sets for parent in one.parents if parent.startswith("office-help")}
    assert 0 < len(held) < PAGES
    for name in ("text", "pairs", "documents"):
        for row in rows_of(output, name):
            assert not any(map(overlap.of, texts_within(row)))
            assert row["source"].removesuffix("-across") in ("office-help", "user-docs", "guide", "kernel-doc")
    trained = {
        row["text"].split("xpt-BRx")[1].split("w")[0] for row in rows_of(output, "text") if "xpt-BRx" in row["text"]
    }
    tested = {parent.rpartition("/")[2].split(".")[0] for parent in held}
    assert trained and not trained & tested


def test_pairs_within_and_across_languages(built):
    output, _ = built
    pairs = rows_of(output, "pairs")
    assert any(row["query"] == "Lado 2: Part of Lado 2" and "secondxpt-BRx2w0" in row["document"] for row in pairs)
    across = [row for row in pairs if row["source"] == "office-help-across"]
    assert len(across) > 2 * PAGES
    for row in across:
        name, number = row["query"].split(":")[0].split()
        language = {value: code for code, value in NAMES.items()}[name]
        assert f"x{number}w0" in row["document"] and f"x{language}x" not in row["document"]
        assert row["document"].startswith("first") == (row["query"] == f"{name} {number}")


def test_what_is_not_translated_or_repeated_is_left_out(folder):
    # Held out, so that no row is dropped for its overlap with a set.
    rows, sets = corpus(folder, held_out=(), held_out_share=0.1, seed=1).parts()
    texts = [row["text"] for row in rows.texts]
    held = "".join(sets["docs-en"].documents)
    untranslated = words("first", "en", 103)
    assert sum(untranslated in text for text in texts) + (untranslated in held) == 1
    assert sum(words("first", "en", 105) in text for text in texts) + (words("first", "en", 105) in held) == 1
    assert all("Short" not in text and "footer" not in text for text in texts)


def test_languages_and_samples(folder, tmp_path):
    fields = {"languages": ("de",), "most_pages": 10, "most_pairs": 7, "most_queries": 4, "held_out_share": 0.5}
    counts = corpus(folder, **fields).build(tmp_path / "corpus")
    assert max(counts["pairs_of"].values()) == 7
    assert all(of["queries"] <= 4 for of in counts["evaluated"].values())
    assert not any("pt-BR" in row["text"] for row in rows_of(tmp_path / "corpus", "text"))
    assert len({row["id"].split(":")[0] for row in rows_of(tmp_path / "corpus", "documents")}) <= 40


def test_the_same_folder_gives_the_same_bytes(built, folder, tmp_path):
    output, _ = built
    corpus(folder).build(tmp_path / "corpus")
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        assert (tmp_path / "corpus" / path.relative_to(output)).read_bytes() == path.read_bytes(), path
    assert read_beir(output / "evaluation" / "docs-en").has_context


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"path": "/nowhere"}, "no folder /nowhere; .*debian_docs"),
        ({"languages": ("xx",)}, "languages: .* has no xx; it has as, de, en, ja, pt-BR"),
        ({"evaluated": ("fr",)}, "has no fr"),
        (
            {"held_out": ("office",)},
            "held_out: .* has no office; it has guide, kernel-doc, office-help, python-doc, user-docs",
        ),
        ({"held_out_share": 0.0}, "nothing is held out for docs-de"),
        ({"held_out_share": 1.5}, "held_out_share=1.5"),
        ({"evaluated": (), "across": ()}, "name a language"),
        ({"across": ("en",)}, "en asks for itself"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(folder, tmp_path, fields, words):
    with pytest.raises(BadInput, match=words):
        corpus(folder, **fields).build(tmp_path / "corpus") if "path" not in fields else DocsCorpus(**fields).build(
            tmp_path / "corpus"
        )
    assert not (tmp_path / "corpus").exists()


class Archive:
    """Stands for apt and dpkg-deb: knows packages, and writes a page for each."""

    def __init__(self, *names):
        self.names, self.downloaded, self.broken = names, [], ""

    def __call__(self, *command, cwd=None):
        if command[0] == "apt-cache":
            return "\n".join(self.names)
        if command[0] == "apt-get":
            for name in command[3:]:
                archive = pathlib.Path(cwd) / f"{name}_1_all.deb"
                if name == self.broken:
                    raise debian_docs.Failed(f"no {self.broken}")
                if not archive.exists():
                    self.downloaded.append(name)
                    write(archive, name)
            return ""
        archive, output = map(pathlib.Path, command[-2:])
        write(output / "usr/share/doc/page.html", html("en", len(archive.read_text())))
        return ""


@pytest.fixture
def archive(monkeypatch):
    archive = Archive("git-doc", "git", "debian-faq", "debian-faq-de", "libreoffice-help-common")
    monkeypatch.setattr(debian_docs, "_run", archive)
    monkeypatch.setattr(debian_docs.shutil, "which", lambda name: name)
    return archive


def test_packages_are_downloaded_once_each_to_its_folder(archive, tmp_path, capsys):
    archive.broken = "git-doc"
    command = [str(tmp_path / "docs"), "debian-faq(-.+)?", "git-doc"]
    assert debian_docs.main(command) == debian_docs.FAILED
    assert not list(find_pages(tmp_path / "docs"))
    archive.broken = ""
    assert debian_docs.main(command) == debian_docs.main(command) == DONE
    assert [path.name for path in sorted((tmp_path / "docs").iterdir())] == ["debian-faq", "debian-faq-de", "git-doc"]
    assert archive.downloaded == ["debian-faq", "debian-faq-de", "git-doc"]
    assert "3 packages" in capsys.readouterr().out
    assert {page.source for page in find_pages(tmp_path / "docs")} == {"debian-faq", "git-doc"}


@pytest.mark.parametrize(
    "pattern, words", [("nothing", "no package matches 'nothing'"), ("(", "no regular expression")]
)
def test_a_pattern_that_names_nothing_is_refused(archive, tmp_path, capsys, pattern, words):
    assert debian_docs.main([str(tmp_path / "docs"), pattern]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and not (tmp_path / "docs").exists()


def test_a_real_package_is_unpacked(tmp_path):
    """dpkg-deb makes and reads it; nothing is downloaded."""
    if debian_docs.shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb")
    write(
        tmp_path / "tree/DEBIAN/control",
        "Package: a-doc\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n",
    )
    write(tmp_path / "tree/usr/share/doc/a/de/page.html", html("de", 1))
    subprocess.run(["dpkg-deb", "-b", tmp_path / "tree", tmp_path / "a.deb"], check=True, capture_output=True)
    (tmp_path / "docs").mkdir()
    debian_docs._run("dpkg-deb", "-x", str(tmp_path / "a.deb"), str(tmp_path / "docs" / "a-doc"))
    (page,) = find_pages(tmp_path / "docs")
    assert (page.source, page.path, page.language) == ("a-doc", "usr/share/doc/a/page.html", "de")
    with pytest.raises(debian_docs.Failed, match="dpkg-deb .* failed: .*; run the same command"):
        debian_docs._run("dpkg-deb", "-x", str(tmp_path / "none.deb"), str(tmp_path / "other"))
