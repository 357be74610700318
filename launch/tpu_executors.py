"""XManager executors for TPU slices on Kubernetes and on Vertex AI.

XManager's own executors support only TPU v2 and v3, without hosts and topologies, so ours are registered in addition.
The name of a job depends only on its trial and stage: a second launch finds the existing job and waits for it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from xmanager import xm, xm_local
from xmanager.xm_local import executables, registry

from launch.custom_job import custom_job
from launch.jobset import GROUP, NAMESPACE, PLURAL, VERSION, jobset
from launch.tpu_handles import CustomJob, JobSet, RefusedJob, TpuHandle, kubernetes_api, vertex_client
from launch.tpu_slices import TpuSlices


class TpuExecutor(xm.Executor):
    """The common part of both executors. XManager calls `launch` for all jobs of a kind."""

    def __init__(self, name: str):
        self.name = name
        registry.register(type(self), launch=type(self).launch)

    @classmethod
    async def launch(cls, local_experiment_unit: Any, job_group: xm.JobGroup) -> list[TpuHandle]:
        """Submits every job of the group and returns their handles, which the unit waits for and stops."""
        found: list[TpuHandle] = []
        for job in xm.job_operators.flatten_jobs(job_group):
            image, executor = job.executable, job.executor
            if isinstance(executor, cls):
                assert isinstance(image, executables.GoogleContainerRegistryImage)
                args = xm.merge_args(image.args, job.args).to_list(str)
                environment = {**image.env_vars, **job.env_vars}
                try:
                    found.append(await asyncio.to_thread(executor.submit, image.image_path, args, environment))
                except Exception as error:  # from any client library; XManager would stop the other trials too
                    found.append(RefusedJob(executor.name, str(error)))
        # A unit keeps the handles that `launch` returns only of XManager's own executors.
        local_experiment_unit._non_local_execution_handles.extend(found)
        return found

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> TpuHandle:
        """Creates the job, or finds an existing one."""
        raise NotImplementedError

    def find(self) -> TpuHandle | None:
        """Returns the handle of the existing job, if there is one."""
        raise NotImplementedError


class TpuKubernetes(TpuExecutor):
    """A JobSet in the current cluster of kubectl.

    Args:
      name: name of the JobSet.
      slices: the hardware.
      options: further arguments of `jobset`.
    """

    @classmethod
    def Spec(cls) -> xm.ExecutorSpec:  # the name is XManager's
        """Returns how XManager packages for it."""
        return xm_local.KubernetesSpec()

    def __init__(self, name: str, slices: TpuSlices, **options: Any):
        super().__init__(name)
        self._slices, self._options = slices, options

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> TpuHandle:
        """Creates the JobSet, or finds the one with this name."""
        from kubernetes.client import ApiException

        body = jobset(self.name, image, args, environment, self._slices, **self._options)
        try:
            kubernetes_api().create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, body)
        except ApiException as error:
            if error.status != 409:
                raise
            print(f"JobSet {self.name} exists already; waiting for it")
        return JobSet(self.name)

    def find(self) -> TpuHandle | None:
        """Looks for the JobSet with this name."""
        found = JobSet(self.name)
        return found if found.exists() else None


class TpuVertex(TpuExecutor):
    """A custom job of Vertex AI.

    Args:
      name: display name.
      slices: the hardware.
      project: Google Cloud project.
      region: such as "us-central1".
      service_account: see `custom_job`.
    """

    @classmethod
    def Spec(cls) -> xm.ExecutorSpec:  # the name is XManager's
        """Returns how XManager packages for it."""
        return xm_local.VertexSpec()

    def __init__(self, name: str, slices: TpuSlices, *, project: str, region: str, service_account: str | None = None):
        super().__init__(name)
        self._slices, self._service_account = slices, service_account
        self._region, self._parent = region, f"projects/{project}/locations/{region}"

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> TpuHandle:
        """Creates the custom job, or finds a running one with this name."""
        found = self.find()
        if found is not None:
            print(f"custom job {self.name} is running already; waiting for it")
            return found
        body = custom_job(self.name, image, args, environment, self._slices, service_account=self._service_account)
        created = vertex_client(self._region).create_custom_job(parent=self._parent, custom_job=body)
        return CustomJob(created.name, self._region)

    def find(self) -> TpuHandle | None:
        """Looks for a custom job with this display name that has not ended."""
        running = " OR ".join(f'state="JOB_STATE_{state}"' for state in ("QUEUED", "PENDING", "RUNNING"))
        request = {"parent": self._parent, "filter": f'display_name="{self.name}" AND ({running})'}
        found = next(iter(vertex_client(self._region).list_custom_jobs(request=request)), None)
        return None if found is None else CustomJob(found.name, self._region)
