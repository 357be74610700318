"""Embeds a corpus on N slices: N jobs of `pplx-jax embed` that share an output and do not know each other.

Each embeds one share of the corpus, with all hosts of its slice. A slice that is taken away delays only its own
share, and the job that finds all shards finished writes the manifest.
"""

import hashlib
import pathlib
import shlex
from collections.abc import Sequence

from launch.jobs import Job, LaunchedTrial
from pplx_jax.cli.parser import parse
from pplx_jax.cli.verbs import VERBS
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import is_bucket

_JOB = "embed"
_GIVEN_HERE = ("shard", "coordinator", "num_processes", "process_id", "startup_seconds", "workdir")


def embedding_trials(
    words: str, workdir: str, *, slices: int, package: str, host_words: Sequence[str] = ()
) -> list[LaunchedTrial]:
    """Returns a trial for each slice, whose workdir WORKDIR/000, WORKDIR/001, ... has only its `trial.json`.

    Args:
      words: the flags of `pplx-jax embed` in one string: --model, --input, --output and others.
      workdir: of the launch.
      slices: number of slices, and of shares.
      package: digest of the code that runs.
      host_words: flags with which the hosts of a slice find each other.

    Raises:
      BadInput: `pplx-jax embed` does not take these flags, or a path is relative.
    """
    try:
        flags = shlex.split(words)
    except ValueError as error:
        raise BadInput(f"--embed={words}: {error}; quote it as one string") from None
    given = parse([_JOB, *flags], VERBS)
    if taken := [name for name in _GIVEN_HERE if given.get(name) is not None]:
        raise BadInput(f"--embed has --{taken[0]}, which each job gets from the launcher; leave it out")
    for name in ("input", "output"):
        path = str(given[name])
        if not is_bucket(path) and not pathlib.PurePosixPath(path).is_absolute():
            raise BadInput(f"--embed has --{name}={path}; give an absolute path: jobs start elsewhere")
    digest = hashlib.sha256(shlex.join(flags).encode()).hexdigest()
    trials = []
    for number in range(slices):
        share = f"{number}/{slices}"
        record = {
            "sweep": None,
            "trial": number,
            "parameters": {"shard": share},
            "gin_files": [],
            "gin_params": [],
            "stage": _JOB,
            "fingerprint": hashlib.sha256(f"{digest} {share}".encode()).hexdigest(),
            "package": package,
        }
        job = Job(_JOB, (_JOB, *flags, f"--shard={share}", *host_words))
        trials.append(LaunchedTrial(f"{number:03d}", f"{workdir.rstrip('/')}/{number:03d}", (job,), record))
    return trials
