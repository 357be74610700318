"""Which texts are URLs, and which of those are taken."""

import pathlib

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import local_path, path_or_url, scheme


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("gs://bucket/x", "gs"),
        (pathlib.Path("gs://bucket/x"), "gs"),  # pathlib drops a slash
        ("S3://bucket", "s3"),
        ("file:/x", "file"),
        ("runs/gs", None),
        ("C:/runs", None),
        ("module:Name", None),
        ("./gs:/x", None),
    ],
)
def test_scheme(path, wanted):
    assert scheme(path) == wanted


def test_a_file_url_is_the_local_path():
    assert local_path("file:///a%20b/c") == local_path("file://localhost/a b/c") == pathlib.Path("/a b/c")
    assert local_path("a/b") == pathlib.Path("a/b")
    with pytest.raises(BadInput, match="names another machine, bucket"):
        local_path("file://bucket/x")


@pytest.mark.parametrize("url", ["gs://b/x", "s3://b/x", "memory://b/x", "http://b/x", "nonsense://b/x"])
def test_other_urls_are_no_local_paths(url):
    with pytest.raises(BadInput, match="is a URL"):
        local_path(url)


def test_urls_that_storage_reads_and_writes():
    assert path_or_url("gs://b/x") == path_or_url("gs://b/x", output=True) == "gs://b/x"
    assert path_or_url("https://host/x.jsonl") == "https://host/x.jsonl"
    assert path_or_url("file:///x/y", output=True) == "/x/y"
    for url, output in (("https://h/x", True), ("memory://x", False), ("nonsense://x", False)):
        with pytest.raises(BadInput, match="cannot be"):
            path_or_url(url, output)
