"""Workdirs in a bucket: /gcs/BUCKET/..., a path everywhere, since the bucket is mounted there.

Vertex AI mounts every bucket there by itself, Kubernetes by the CSI driver of Cloud Storage FUSE, a TPU VM by gcsfuse.
"""

import pathlib

from pplx_jax.core.errors import BadInput

MOUNT = "/gcs"


def bucket_of(workdir: str) -> str:
    """The bucket of a workdir.

    Raises:
      BadInput: it is in none.
    """
    parts = pathlib.PurePosixPath(workdir).parts
    if parts[:2] != ("/", MOUNT.strip("/")) or len(parts) < 4:
        raise BadInput(f"--workdir={workdir}: jobs in the cloud write to a bucket; give {MOUNT}/BUCKET/RUN")
    return parts[2]
