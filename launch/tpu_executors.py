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
from launch.tpu_slices import TpuSlices

POLL_SECONDS = 30.0
MOST_MISSED = 20  # failed requests in a row before the wait is given up


class JobFailed(RuntimeError):
    """A job has failed; the message says which one and why."""


class _TpuExecutor(xm.Executor):
    """The common part of both executors. XManager calls `launch` for all jobs of a kind."""

    def __init__(self, name: str):
        self.name = name
        self._refused: str | None = None
        registry.register(type(self), launch=type(self).launch)

    @classmethod
    async def launch(cls, local_experiment_unit: Any, job_group: xm.JobGroup) -> list[Any]:
        """Submits every job of the group. Returns no handles: XManager keeps only those of its own executors."""
        for job in xm.job_operators.flatten_jobs(job_group):
            image, executor = job.executable, job.executor
            if isinstance(executor, cls):
                assert isinstance(image, executables.GoogleContainerRegistryImage)
                args = xm.merge_args(image.args, job.args).to_list(str)
                environment = {**image.env_vars, **job.env_vars}
                try:
                    await asyncio.to_thread(executor.submit, image.image_path, args, environment)
                except Exception as error:  # from any client library; XManager would stop the other trials too
                    executor._refused = f"{executor.name} was refused: {error}"
        return []

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the job, or finds an existing one."""
        raise NotImplementedError

    def has_ended(self) -> bool:
        """Returns whether the job has succeeded.

        Raises:
          JobFailed: it has failed.
        """
        raise NotImplementedError

    async def wait(self) -> None:
        """Waits until the job has succeeded.

        Raises:
          JobFailed: it has failed, or its service does not answer.
        """
        if self._refused:
            raise JobFailed(self._refused)
        missed = 0
        while True:
            try:
                if await asyncio.to_thread(self.has_ended):
                    return
                missed = 0
            except JobFailed:
                raise
            except Exception as error:  # from any client library; the next request may succeed
                missed += 1
                if missed > MOST_MISSED:
                    raise JobFailed(f"{self.name}: no answer about it: {error}") from error
            await asyncio.sleep(POLL_SECONDS)


class TpuKubernetes(_TpuExecutor):
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

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the JobSet, or finds the one with this name."""
        from kubernetes.client import ApiException

        body = jobset(self.name, image, args, environment, self._slices, **self._options)
        try:
            self._api().create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, body)
        except ApiException as error:
            if error.status != 409:
                raise
            print(f"JobSet {self.name} exists already; waiting for it")

    def has_ended(self) -> bool:
        """Reads the conditions of the JobSet."""
        found: Any = self._api().get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, self.name)
        conditions = found.get("status", {}).get("conditions", [])
        ended = {one["type"]: one.get("message", "") for one in conditions if one["status"] == "True"}
        if "Failed" in ended:
            raise JobFailed(f"JobSet {self.name}: {ended['Failed']}; to try again: kubectl delete jobset {self.name}")
        return "Completed" in ended

    def _api(self) -> Any:
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        return client.CustomObjectsApi()


class TpuVertex(_TpuExecutor):
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
        self._resource = ""

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the custom job, or finds a running one with this name."""
        running = " OR ".join(f'state="JOB_STATE_{state}"' for state in ("QUEUED", "PENDING", "RUNNING"))
        request = {"parent": self._parent, "filter": f'display_name="{self.name}" AND ({running})'}
        found = next(iter(self._client().list_custom_jobs(request=request)), None)
        if found is not None:
            print(f"custom job {self.name} is running already; waiting for it")
        else:
            body = custom_job(self.name, image, args, environment, self._slices, service_account=self._service_account)
            found = self._client().create_custom_job(parent=self._parent, custom_job=body)
        self._resource = found.name

    def has_ended(self) -> bool:
        """Reads the state of the custom job."""
        from google.cloud.aiplatform_v1 import JobState

        job = self._client().get_custom_job(name=self._resource)
        if job.state in (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_EXPIRED):
            raise JobFailed(f"custom job {self._resource}: {JobState(job.state).name}: {job.error.message}")
        return job.state == JobState.JOB_STATE_SUCCEEDED

    def _client(self) -> Any:
        from google.cloud.aiplatform_v1 import JobServiceClient

        endpoint = {"api_endpoint": f"{self._region}-aiplatform.googleapis.com"}
        return JobServiceClient(client_options=endpoint, transport="rest")
