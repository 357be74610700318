"""Handles of jobs in the cloud, with which XManager waits for a job, asks for its state and stops it."""

import abc
import asyncio
from typing import Any

from xmanager.xm_local.handles import ExecutionHandle
from xmanager.xm_local.status import LocalWorkUnitStatus, LocalWorkUnitStatusEnum

from launch.jobset import GROUP, NAMESPACE, PLURAL, VERSION

POLL_SECONDS = 30.0
MOST_MISSED = 20  # failed requests in a row before the wait is given up

RUNNING, COMPLETED = LocalWorkUnitStatusEnum.RUNNING, LocalWorkUnitStatusEnum.COMPLETED
FAILED, CANCELLED = LocalWorkUnitStatusEnum.FAILED, LocalWorkUnitStatusEnum.CANCELLED


class JobFailed(RuntimeError):
    """A job has not succeeded; the message says which one and why."""


class TpuHandle(ExecutionHandle):
    """A job that was submitted."""

    @abc.abstractmethod
    def state(self) -> tuple[LocalWorkUnitStatusEnum, str]:
        """Asks for the state of the job, and for the reason if it has not succeeded."""

    def get_status(self) -> LocalWorkUnitStatus:
        """Returns the state of the job as XManager has it."""
        return LocalWorkUnitStatus(*self.state())

    async def wait(self) -> None:
        """Waits until the job has succeeded.

        Raises:
          JobFailed: it has failed or was stopped, or its service does not answer.
        """
        missed = 0
        while True:
            try:
                state, reason = await asyncio.to_thread(self.state)
                missed = 0
            except Exception as error:  # from any client library; the next request may succeed
                missed += 1
                if missed > MOST_MISSED:
                    raise JobFailed(f"{self}: no answer about it: {error}") from error
            else:
                if state == COMPLETED:
                    return
                if state != RUNNING:
                    raise JobFailed(f"{self}: {reason}")
            await asyncio.sleep(POLL_SECONDS)


class RefusedJob(TpuHandle):
    """A job that its service did not take. Only the trial that it belongs to fails."""

    def __init__(self, name: str, reason: str):
        self._name, self._reason = name, reason

    def __str__(self) -> str:
        return f"job {self._name}"

    def state(self) -> tuple[LocalWorkUnitStatusEnum, str]:
        return FAILED, f"was refused: {self._reason}"

    def stop(self) -> None:
        """Does nothing: the job never started."""


class JobSet(TpuHandle):
    """A JobSet in the current cluster of kubectl."""

    def __init__(self, name: str):
        self._name = name

    def __str__(self) -> str:
        return f"JobSet {self._name}"

    def state(self) -> tuple[LocalWorkUnitStatusEnum, str]:
        """Reads the conditions of the JobSet."""
        found = self._read()
        if found is None:
            return CANCELLED, "it was deleted; the same command starts it again"
        conditions = found.get("status", {}).get("conditions", [])
        ended = {one["type"]: one.get("message", "") for one in conditions if one["status"] == "True"}
        if "Failed" in ended:
            return FAILED, f"{ended['Failed']}; to try again: kubectl delete jobset {self._name}"
        return (COMPLETED if "Completed" in ended else RUNNING), ""

    def exists(self) -> bool:
        """Returns whether the cluster has it."""
        return self._read() is not None

    def stop(self) -> None:
        """Deletes the JobSet. Its pods get SIGTERM and save a last checkpoint."""
        from kubernetes.client import ApiException

        try:
            kubernetes_api().delete_namespaced_custom_object(
                GROUP, VERSION, NAMESPACE, PLURAL, self._name, propagation_policy="Foreground"
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _read(self) -> dict[str, Any] | None:
        from kubernetes.client import ApiException

        try:
            found: Any = kubernetes_api().get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, self._name)
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        return found


def kubernetes_api() -> Any:
    """Returns the client of the current cluster."""
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    return client.CustomObjectsApi()


class CustomJob(TpuHandle):
    """A custom job of Vertex AI.

    Args:
      resource: its name, "projects/.../customJobs/...".
      region: such as "us-central1".
    """

    def __init__(self, resource: str, region: str):
        self._resource, self._region = resource, region

    def __str__(self) -> str:
        return f"custom job {self._resource}"

    def state(self) -> tuple[LocalWorkUnitStatusEnum, str]:
        """Reads the state of the custom job."""
        from google.cloud.aiplatform_v1 import JobState

        job = vertex_client(self._region).get_custom_job(name=self._resource)
        reason = f"{JobState(job.state).name}: {job.error.message}"
        if job.state == JobState.JOB_STATE_CANCELLED:
            return CANCELLED, reason
        if job.state in (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_EXPIRED):
            return FAILED, reason
        return (COMPLETED if job.state == JobState.JOB_STATE_SUCCEEDED else RUNNING), ""

    def stop(self) -> None:
        """Cancels the custom job. Its hosts get SIGTERM and save a last checkpoint."""
        vertex_client(self._region).cancel_custom_job(name=self._resource)


def vertex_client(region: str) -> Any:
    """Returns the client of Vertex AI's jobs."""
    from google.cloud.aiplatform_v1 import JobServiceClient

    endpoint = {"api_endpoint": f"{region}-aiplatform.googleapis.com"}
    return JobServiceClient(client_options=endpoint, transport="rest")
