"""TPU slices as executors of XManager: Kubernetes and Vertex AI.

XManager's own executors for these know the TPUs v2 and v3 and ask for no hosts and no topology, so ours are registered
beside them. A job has one name for good, by trial and stage: launching again finds the one that is there and waits.
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
MOST_MISSED = 20  # looks in a row that the network or the service may leave unanswered


class JobFailed(RuntimeError):
    """A job has ended, and not well; the message says which and why."""


class _TpuExecutor(xm.Executor):
    """What the two have in common: XManager calls `launch` for all jobs of a kind."""

    def __init__(self, name: str):
        self.name = name
        self._refused: str | None = None
        registry.register(type(self), launch=type(self).launch)

    @classmethod
    async def launch(cls, local_experiment_unit: Any, job_group: xm.JobGroup) -> list[Any]:
        """Submits every job of the group. XManager keeps the handles of its own executors alone, hence none."""
        for job in xm.job_operators.flatten_jobs(job_group):
            image, executor = job.executable, job.executor
            if isinstance(executor, cls):
                assert isinstance(image, executables.GoogleContainerRegistryImage)
                args = xm.merge_args(image.args, job.args).to_list(str)
                environment = {**image.env_vars, **job.env_vars}
                try:
                    await asyncio.to_thread(executor.submit, image.image_path, args, environment)
                except Exception as error:  # of whichever client; XManager would take the other trials down with it
                    executor._refused = f"{executor.name} is refused: {error}"
        return []

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the job, or finds it."""
        raise NotImplementedError

    def has_ended(self) -> bool:
        """Whether the job has ended well.

        Raises:
          JobFailed: it has ended otherwise.
        """
        raise NotImplementedError

    async def wait(self) -> None:
        """Returns when the job has ended well.

        Raises:
          JobFailed: it never will.
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
            except Exception as error:  # of whichever client: it may answer the next time
                missed += 1
                if missed > MOST_MISSED:
                    raise JobFailed(f"{self.name} is not heard of: {error}") from error
            await asyncio.sleep(POLL_SECONDS)


class TpuKubernetes(_TpuExecutor):
    """A JobSet in the cluster that kubectl is set to.

    Args:
      name: of the JobSet.
      slices: hardware.
      options: the keywords of `jobset`.
    """

    @classmethod
    def Spec(cls) -> xm.ExecutorSpec:  # the name is XManager's
        """What it is packaged for."""
        return xm_local.KubernetesSpec()

    def __init__(self, name: str, slices: TpuSlices, **options: Any):
        super().__init__(name)
        self._slices, self._options = slices, options

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the JobSet, or finds the one of that name."""
        from kubernetes.client import ApiException

        body = jobset(self.name, image, args, environment, self._slices, **self._options)
        try:
            self._api().create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, body)
        except ApiException as error:
            if error.status != 409:
                raise
            print(f"JobSet {self.name} is there already; waiting for it")

    def has_ended(self) -> bool:
        """As its conditions tell."""
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
      name: shown.
      slices: hardware.
      project: of Google Cloud.
      region: such as "us-central1".
      service_account: see `custom_job`.
    """

    @classmethod
    def Spec(cls) -> xm.ExecutorSpec:  # the name is XManager's
        """What it is packaged for."""
        return xm_local.VertexSpec()

    def __init__(self, name: str, slices: TpuSlices, *, project: str, region: str, service_account: str | None = None):
        super().__init__(name)
        self._slices, self._service_account = slices, service_account
        self._region, self._parent = region, f"projects/{project}/locations/{region}"
        self._resource = ""

    def submit(self, image: str, args: list[str], environment: Mapping[str, str]) -> None:
        """Creates the custom job, or finds one of that name that has not ended."""
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
        """As its state tells."""
        from google.cloud.aiplatform_v1 import JobState

        job = self._client().get_custom_job(name=self._resource)
        if job.state in (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_EXPIRED):
            raise JobFailed(f"custom job {self._resource}: {JobState(job.state).name}: {job.error.message}")
        return job.state == JobState.JOB_STATE_SUCCEEDED

    def _client(self) -> Any:
        from google.cloud.aiplatform_v1 import JobServiceClient

        endpoint = {"api_endpoint": f"{self._region}-aiplatform.googleapis.com"}
        return JobServiceClient(client_options=endpoint, transport="rest")
