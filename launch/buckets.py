"""Workdirs in a bucket, which is mounted at /gcs/BUCKET wherever a job runs, so that a path is the same everywhere.

Vertex AI mounts every bucket there, Kubernetes with the CSI driver of Cloud Storage FUSE, a TPU VM with gcsfuse.
"""

import pathlib

from pplx_jax.core.errors import BadInput

MOUNT = "/gcs"


def bucket_of(workdir: str) -> str:
    """Returns the bucket of a workdir.

    Raises:
      BadInput: the workdir is not in a bucket.
    """
    parts = pathlib.PurePosixPath(workdir).parts
    if parts[:2] != ("/", MOUNT.strip("/")) or len(parts) < 4:
        raise BadInput(f"--workdir={workdir}: jobs in the cloud write to a bucket; give {MOUNT}/BUCKET/RUN")
    return parts[2]
