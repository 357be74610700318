"""A job on a TPU slice of Vertex AI: a custom job with one worker pool; its one replica is all hosts of the slice."""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput

KINDS = ("v5e", "v6e")
LONGEST_SECONDS = 28 * 24 * 3600


def custom_job(
    name: str,
    image: str,
    args: Sequence[str],
    environment: Mapping[str, str],
    slices: TpuSlices,
    *,
    service_account: str | None,
) -> dict[str, Any]:
    """Returns the job, in the form of `aiplatform_v1.CustomJob`.

    Args:
      name: display name.
      image: container image; its entry point is `launch/entry.py`.
      args: the arguments of `pplx-jax`.
      environment: environment variables of every host.
      slices: one slice of v5e or v6e.
      service_account: e-mail address of an account with access to the bucket; None for Vertex AI's own.

    Raises:
      BadInput: Vertex AI does not have this hardware.
    """
    check_slices(slices)
    spec: dict[str, Any] = {
        "worker_pool_specs": [
            {
                "machine_spec": {"machine_type": slices.machine_type, "tpu_topology": slices.topology},
                "replica_count": 1,  # slices, not hosts
                "container_spec": {
                    "image_uri": image,
                    "args": list(args),
                    "env": [{"name": key, "value": value} for key, value in environment.items()],
                },
            }
        ],
        # When one host restarts, all do: training resumes from its last checkpoint.
        "scheduling": {"restart_job_on_worker_restart": True, "timeout": {"seconds": LONGEST_SECONDS}},
    }
    if service_account:
        spec["service_account"] = service_account
    return {"display_name": name, "job_spec": spec}


def check_slices(slices: TpuSlices) -> None:
    """Raises BadInput if Vertex AI does not have this hardware, before anything is built."""
    if slices.kind not in KINDS:
        raise BadInput(f"--tpu={slices.kind}: Vertex AI trains on {' and '.join(KINDS)}; use --executor=kubernetes")
    if slices.num_slices > 1:
        raise BadInput(f"--num_slices={slices.num_slices}: Vertex AI trains on one slice; use --executor=kubernetes")
