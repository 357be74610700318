"""Files and folders in a bucket, on a server of the same protocol: complete or absent, cached, retried, refused."""

import asyncio
import time
import types

import gcsfs.retry
import pytest

from pplx_jax.core import log_folder
from pplx_jax.core.buckets import WRITING, cache_folder, filesystem, local_copy, remove, require_usable, staged
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, read_json_if_valid, write_json
from pplx_jax.core.log_folder import LogFolder
from pplx_jax.core.output_folder import replaced_folder, require_free
from pplx_jax.core.paths import as_path, joined, relative


def names_in(folder):
    return sorted(name.removeprefix(str(folder)[5:] + "/") for name in filesystem().find(str(folder)[5:]))


def downloads(server):
    return sum("/download/" in request for request in server.requests)


class TestFiles:
    def test_an_object_is_written_and_read(self, bucket):
        write_json(bucket / "a" / "b.json", {"one": 1})
        assert read_json(bucket / "a" / "b.json") == {"one": 1}
        assert (bucket / "a").is_dir() and [path.name for path in (bucket / "a").iterdir()] == ["b.json"]
        assert read_json_if_valid(bucket / "a" / "c.json") is None
        with pytest.raises(BadInput, match="c.json is missing"):
            read_json(bucket / "a" / "c.json")

    def test_a_write_that_fails_leaves_the_former_object(self, bucket):
        write_json(bucket / "b.json", {"one": 1})
        with pytest.raises(RuntimeError), atomic_path(bucket / "b.json") as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert read_json(bucket / "b.json") == {"one": 1} and names_in(bucket) == ["b.json"]

    def test_a_busy_server_is_asked_again(self, bucket, bucket_server, monkeypatch):
        # gcsfs waits 1 s, 2 s and so on between its tries.
        monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=lambda _: asyncio.sleep(0.01)))
        bucket_server.refusals = 3  # a closed connection, 429, 503
        write_json(bucket / "b.json", {"one": 1})
        assert bucket_server.refusals == 0
        bucket_server.refusals = 3
        assert read_json(bucket / "b.json") == {"one": 1}
        assert bucket_server.refusals == 0


class TestLocalCopies:
    def test_a_version_is_downloaded_once(self, bucket, bucket_server):
        write_json(bucket / "set" / "in" / "a.json", {"one": 1})
        write_json(bucket / "set" / "b.json", {"two": 2})
        copy = local_copy(bucket / "set")
        assert copy.name == "set" and copy.is_relative_to(cache_folder())
        assert read_json(copy / "in" / "a.json") == {"one": 1} and read_json(copy / "b.json") == {"two": 2}
        before = downloads(bucket_server)
        assert local_copy(bucket / "set") == copy and downloads(bucket_server) == before
        write_json(bucket / "set" / "b.json", {"two": 3})
        changed = local_copy(bucket / "set")
        assert read_json(changed / "b.json") == {"two": 3} and read_json(copy / "b.json") == {"two": 2}
        assert downloads(bucket_server) == before + 1
        assert local_copy(bucket / "set" / "b.json").name == "b.json" and downloads(bucket_server) == before + 1
        assert not list(cache_folder().glob("partial-*"))

    def test_a_name_that_begins_alike_is_another(self, bucket):
        for name in ("set", "set2"):
            write_json(bucket / name / "a.json", {"name": name})
        assert [path.name for path in local_copy(bucket / "set").iterdir()] == ["a.json"]
        remove(bucket / "set")
        assert names_in(bucket) == ["set2/a.json"]

    def test_what_is_absent_or_local_is_unchanged(self, bucket, tmp_path):
        assert local_copy(bucket / "nothing") == bucket / "nothing"
        assert local_copy(tmp_path) == tmp_path


class TestFolders:
    def test_the_mark_is_deleted_first_and_uploaded_last(self, bucket, bucket_server):
        for content in ("former", "new"):
            bucket_server.requests.clear()
            with replaced_folder(bucket / "out", last="mark.json") as folder:
                (folder / "inner").mkdir()
                (folder / "inner" / f"{content}.txt").write_text(content)
                (folder / "mark.json").write_text(content)
        changes = [request for request in bucket_server.requests if not request.startswith("GET")]
        assert names_in(bucket / "out") == ["inner/new.txt", "mark.json"]
        assert (bucket / "out" / "mark.json").read_text() == "new"
        deleted = next(place for place, request in enumerate(changes) if "batch" in request or "mark.json" in request)
        uploads = [place for place, request in enumerate(changes) if "/upload/" in request]
        assert uploads[0] < deleted < uploads[1]  # the first upload says that the folder is being written

    def test_one_that_was_interrupted_has_no_mark_and_is_written_again(self, bucket, monkeypatch):
        def fails(*_):
            raise ConnectionError("killed")

        def write(text):
            with replaced_folder(bucket / "out", last="mark.json") as folder:
                (folder / "mark.json").write_text(text)

        write("former")
        with monkeypatch.context() as patched, pytest.raises(ConnectionError):
            patched.setattr(filesystem(), "put_file", fails)
            write("new")
        assert names_in(bucket / "out") == [WRITING]
        require_free(bucket / "out", "output", lambda _: False)
        with pytest.raises(BadInput, match="is not complete"):
            local_copy(bucket / "out")
        write("new")
        assert names_in(bucket / "out") == ["mark.json"]
        with pytest.raises(BadInput, match="is in the way and no output"):
            require_free(bucket / "out", "output", lambda _: False)

    def test_links_are_followed(self, bucket, tmp_path):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "a.txt").write_text("a")
        with staged(bucket / "out") as folder:
            folder.mkdir()
            (folder / "linked").symlink_to(tmp_path / "set")
        assert names_in(bucket / "out") == ["linked/a.txt"]
        remove(bucket / "out")
        remove(bucket / "out")
        assert not (bucket / "out").exists()


class TestLogs:
    def test_lines_are_uploaded_while_they_are_written(self, bucket, monkeypatch):
        monkeypatch.setattr(log_folder, "_SECONDS", 0.01)
        (bucket / "metrics.jsonl").write_text("1\n")
        with LogFolder(bucket, ("metrics.jsonl", "absent.json")) as logs:
            with (logs.local / "metrics.jsonl").open("a") as file:
                file.write("2\n")
            deadline = time.monotonic() + 60
            while (bucket / "metrics.jsonl").read_text() != "1\n2\n":
                assert time.monotonic() < deadline
                time.sleep(0.01)
        (logs.local / "late.json").write_text("{}")
        logs.upload()
        assert names_in(bucket) == ["late.json", "metrics.jsonl"]

    def test_the_end_uploads_and_an_unchanged_file_is_not_uploaded_again(self, bucket, bucket_server):
        with LogFolder(bucket) as logs:
            (logs.local / "events").mkdir()
            (logs.local / "events" / "a").write_bytes(b"a")
        assert (bucket / "events" / "a").read_bytes() == b"a"
        bucket_server.requests.clear()
        logs.upload()
        assert not bucket_server.requests

    def test_a_local_folder_is_written_directly(self, tmp_path):
        with LogFolder(tmp_path, ("metrics.jsonl",)) as logs:
            assert logs.local == tmp_path

    def test_other_processes_write_nothing(self, bucket):
        with LogFolder(bucket, write=False) as logs:
            (logs.local / "a").write_bytes(b"a")
        assert not bucket.exists()


def test_a_bucket_that_cannot_be_used_is_refused(bucket):
    require_usable(bucket / "run", output=True)
    require_usable(as_path("gs://bucket"), output=False)
    assert names_in(bucket) == []
    for output, role in ((True, "Storage Object User"), (False, "Storage Object Viewer")):
        with pytest.raises(BadInput, match=f"^gs://no-such-bucket/run cannot be .*{role} on the bucket$"):
            require_usable(as_path("gs://no-such-bucket/run"), output)


@pytest.mark.parametrize(
    ("forbidden", "told"),
    [
        ("POST /upload/", "cannot be written .*Storage Object User"),
        ("DELETE ", "cannot be written .*Storage Object User"),
        ("GET /storage/v1/b/bucket ", "the role Storage Legacy Bucket Reader"),
    ],
)
def test_a_missing_right_is_named(bucket, bucket_server, monkeypatch, forbidden, told):
    monkeypatch.setattr(bucket_server, "forbidden", forbidden)
    with pytest.raises(BadInput, match=told):
        require_usable(bucket, output=True)


def test_paths_between_folders(tmp_path):
    embedded, model = as_path("gs://bucket/run/embeddings"), as_path("gs://bucket/run/merged")
    assert relative(model, embedded) == "../merged" and joined(embedded, "../merged") == model
    for target in (as_path("gs://other/model"), tmp_path / "model"):
        assert joined(embedded, relative(target, embedded)) == target
    assert joined(tmp_path, relative(model, tmp_path)) == model
    assert joined(tmp_path, relative(tmp_path / "model", tmp_path)) == tmp_path / "model"
