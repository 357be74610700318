"""The page to search an index by hand: what a person sees, and what a hostile text or query cannot do there."""

import html
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest
from helpers.html_checker import Checker
from serving.conftest import running

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.open_index import open_index
from pplx_jax.serving.batching import Batcher
from pplx_jax.serving.search_page import SearchPage

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert(1)</script> open"
ROWS = [
    {"id": "io", "text": "read the file", "path": "io.py", "line": 7},
    {"id": "net", "chunks": ["open the socket", "read the socket", "close"], "path": "net.py"},
    {"id": "bad", "text": HOSTILE},
]


class Page(Checker):
    VOID = {"meta", "br", "input"}


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    embed_file(folder / "model", folder / "in.jsonl", folder / "vectors", encoder=model)
    build_index(folder / "vectors", folder / "library")
    return open_index(folder / "library")


@pytest.fixture(scope="module")
def page_url(model, index):
    with running(model, index=index) as url:
        yield url


def get(url, **fields):
    """(status, page, text that a person sees)."""
    try:
        with urllib.request.urlopen(f"{url}/?{urllib.parse.urlencode(fields)}", timeout=60) as reply:
            status, page, headers = reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        status, page, headers = error.code, error.read().decode(), error.headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    checker = Page()
    checker.feed(page)
    assert not checker.open
    return status, page, " ".join(" ".join(checker.text).split())


def test_a_query_finds_documents_with_their_chunks(page_url, index, model):
    status, page, text = get(page_url)
    assert status == 200 and "library" in text and "documents" not in text
    assert f"{index.count} vectors of {index.dims} dimensions" in text
    status, page, text = get(page_url, q="open the socket", k=2)
    hits = index.search_texts(["open the socket"], model, 2)[0]
    assert status == 200 and "2 documents; encoded in" in text
    names = [hit.get("document", hit["id"]) for hit in hits]
    assert sorted(names, key=lambda name: page.index(f"<h3>{name}<small>")) == names
    for hit in hits:
        assert f"{hit['score']:.4f}" in text
        assert f"<mark>{html.escape(hit['text'])}</mark>" in page
    net = hits[names.index("net")]
    order = [page.index(f"chunk {chunk['chunk']},") for chunk in sorted(net["chunks"], key=lambda c: c["chunk"])]
    assert order == sorted(order) and "net.py" in text


def test_texts_and_queries_are_shown_and_not_run(page_url):
    query = '"><script>alert(2)</script>'
    status, page, text = get(page_url, q=query + " open")
    assert status == 200 and "<script>" not in page
    assert HOSTILE in text


def test_what_is_wrong_is_said_on_the_page(page_url, model):
    assert get(page_url, q="read", k="many")[0::2][0] == 422
    status, _, text = get(page_url, q="read", k=101)
    assert status == 422 and "k is not a number from 1 to 100" in text
    status, _, text = get(page_url, q="file " * 300)
    assert status == 400 and "tokens, the model takes 256; shorten it" in text


def test_an_index_of_another_model_is_refused(model, index, monkeypatch):
    monkeypatch.setattr(index, "model_fingerprint", "another")
    batcher = Batcher(model.encode_tokens, max_tokens=1, max_wait=0, max_queued_tokens=1)
    with pytest.raises(BadInput, match="made by model another, this one is"):
        SearchPage(index, model, batcher)


def test_there_is_no_page_without_an_index(url):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/")


def browse(folder, *words):
    """What headless Chromium prints, and what it complains of."""
    given = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}"]
    done = subprocess.run([str(BROWSER), *given, *words], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_shows_the_hits_and_runs_nothing(page_url, tmp_path):
    images = pytest.importorskip("PIL.Image")
    fields = urllib.parse.urlencode({"q": '"><script>document.title="run"</script> read open', "k": 3})
    page, complaints = browse(tmp_path, "--dump-dom", f"{page_url}/?{fields}")
    assert not complaints  # of the policy, or of what the page loads
    assert "<title>library" in page and page.count("<article") == 3
    assert page.count("<mark>") == 3 and HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in page
    colours = []
    for name, query in (("empty", ""), ("hits", f"?{fields}")):
        picture = tmp_path / f"{name}.png"
        browse(tmp_path, f"--screenshot={picture}", "--window-size=800,900", f"{page_url}/{query}")
        image = images.open(picture).convert("RGB")
        colours.append({colour for _, colour in image.getcolors(image.width * image.height)})
    assert len(colours[1]) > len(colours[0]) > 2  # the best chunks have a colour of their own
