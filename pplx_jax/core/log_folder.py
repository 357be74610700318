"""Files that grow while a process runs (metrics, TensorBoard events), in a folder that may be in a bucket.

An object of a bucket cannot be appended to. So the files are written on this machine and uploaded again when they have
changed: twice a minute, whenever `upload` is called, and at the end.
"""

import os
import pathlib
import tempfile
import threading
from collections.abc import Sequence

from absl import logging

from pplx_jax.core.buckets import filesystem
from pplx_jax.core.paths import is_bucket

_SECONDS = 30.0


class LogFolder:
    """A context manager. Does nothing for a folder of this machine.

    Args:
        folder: where the files are to be.
        continued: names of files in it that are continued.
        write: whether this process writes; one process of a job does.

    Attributes:
        local: the folder to write to. It is deleted with this object if it is not `folder` itself.
    """

    def __init__(self, folder: pathlib.Path, continued: Sequence[str] = (), write: bool = True):
        self.local, self._remote = folder, folder if is_bucket(folder) else None
        self._write, self._uploaded = write, dict[str, tuple[int, int]]()
        self._stopped, self._uploading = threading.Event(), threading.Lock()
        if self._remote is None:
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="pplx-jax-logs-")
        self.local = pathlib.Path(self._scratch.name) / folder.parent.name / folder.name
        self.local.mkdir(parents=True)
        for name in continued:
            if (folder / name).exists():
                (self.local / name).write_bytes((folder / name).read_bytes())
                self._uploaded[name] = _state(self.local / name)

    def __enter__(self) -> "LogFolder":
        if self._remote is not None and self._write:
            threading.Thread(target=self._upload_again, daemon=True, name="upload of logs").start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        try:
            self.upload()
        except Exception as error:
            if failure is None:
                raise
            logging.warning("%s: the last lines of the logs are not uploaded (%s)", self._remote, error)

    def upload(self) -> None:
        """Uploads the files that have changed. What is written before a checkpoint is then as safe as that."""
        if self._remote is None or not self._write:
            return
        with self._uploading:
            for place, _, names in os.walk(self.local):
                for file in (pathlib.Path(place) / name for name in sorted(names) if not name.startswith(".")):
                    name, state = file.relative_to(self.local).as_posix(), _state(file)
                    if self._uploaded.get(name) != state:
                        filesystem().pipe_file(str(self._remote / name), file.read_bytes())
                        self._uploaded[name] = state

    def _upload_again(self) -> None:
        while not self._stopped.wait(_SECONDS):
            try:
                self.upload()
            except Exception as error:  # the next one may succeed; the last one raises
                logging.warning("%s: the logs are not uploaded (%s); trying again", self._remote, error)


def _state(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
