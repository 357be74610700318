"""The flags of `xm_launch` and what they stand for: where jobs run, and what XManager is told of it."""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from launch.buckets import bucket_of
from launch.custom_job import check_slices, custom_job
from launch.jobset import jobset
from launch.package import pack
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput

try:  # its own flags (--xm_...) are parsed with ours, where it is installed
    from xmanager import xm as _xm  # noqa: F401
    from xmanager import xm_flags as _xm_flags  # noqa: F401
except ImportError:
    pass

STARTUP_SECONDS = 1800
EXECUTORS = ("local", "kubernetes", "vertex")

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "A recipe (repeatable); default: the sweep's own.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding of every trial (repeatable).")
_SWEEP = flags.DEFINE_string("sweep", None, "A file of gin/sweeps/; without it there is one trial.")
_STAGE = flags.DEFINE_string("stage", None, "Train this stage alone, on token files that are there.")
_BASE = flags.DEFINE_string("base", None, "A run whose data and earlier stages the trials take as they are.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Absolute; of a sweep, trials are in WORKDIR/000, 001, ...")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print trials, commands and requests; launch nothing.")
_PARALLEL = flags.DEFINE_integer("parallel", None, "Trials at a time; default: 1 here, else all.", lower_bound=1)
_TITLE = flags.DEFINE_string("title", None, "Of the experiment; default: the name of the sweep or the recipe.")
_EXECUTOR = flags.DEFINE_enum("executor", "local", EXECUTORS, "Where jobs run.")
_TPU = flags.DEFINE_enum("tpu", None, ("v5e", "v5p", "v6e"), "Kind of TPU, in the cloud.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Of a slice: 16x16, or of v5p 4x4x8.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of each job.", lower_bound=1)
_REPOSITORY = flags.DEFINE_string(
    "repository", None, "Of Artifact Registry, LOCATION-docker.pkg.dev/PROJECT/REPOSITORY: where the image goes."
)
_IMAGE = flags.DEFINE_string("image", None, "An image that is built already, instead of building one.")
_PROJECT = flags.DEFINE_string("project", None, "Of Google Cloud, for Vertex AI.")
_REGION = flags.DEFINE_string("region", "us-central1", "Of Google Cloud, for Vertex AI.")
_SERVICE_ACCOUNT = flags.DEFINE_string(
    "service_account", None, "With access to the bucket: of Kubernetes a name, for Vertex AI an address."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 20, "How often all hosts of a Kubernetes job start anew before it has failed.", lower_bound=0
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags, as they were given; see --help for each."""

    gin_files: Sequence[str] = ()
    gin_params: Sequence[str] = ()
    sweep: str | None = None
    stage: str | None = None
    base: str | None = None
    workdir: str = ""
    dry_run: bool = False
    parallel: int | None = None
    title: str | None = None
    executor: str = "local"
    slices: TpuSlices | None = None
    repository: str | None = None
    image: str | None = None
    project: str | None = None
    region: str = "us-central1"
    service_account: str | None = None
    max_restarts: int = 20

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
          BadInput: which flag is at fault.
        """
        if not pathlib.PurePosixPath(self.workdir).is_absolute():
            raise BadInput(f"--workdir={self.workdir or '(none)'}; give an absolute path: jobs start elsewhere")
        if self.base and not pathlib.PurePosixPath(self.base).is_absolute():
            raise BadInput(f"--base={self.base}; give an absolute path: jobs start elsewhere")
        if self.executor == "local":
            if self.slices:
                raise BadInput("--tpu goes with --executor=kubernetes or vertex; this machine is used as it is")
            return
        hardware = self._hardware
        if self.base and bucket_of(self.base) != bucket_of(self.workdir):
            raise BadInput(f"--base={self.base} is not in the bucket of --workdir, the only one that jobs see")
        bucket_of(self.workdir)
        if not self.image and not self.repository:
            raise BadInput(f"--executor={self.executor} wants --repository, where the image goes, or an --image")
        if self.executor == "vertex":
            check_slices(hardware)
            if not self.project:
                raise BadInput("--executor=vertex wants --project")

    def request(
        self, name: str, image: str, args: Sequence[str], environment: Mapping[str, str]
    ) -> dict[str, Any] | None:
        """What is asked of the cloud for a job; None where jobs run here."""
        if self.executor == "local":
            return None
        if self.executor == "vertex":
            return custom_job(name, image, args, environment, self._hardware, service_account=self.service_account)
        return jobset(name, image, args, environment, self._hardware, **self._kubernetes)

    @property
    def words(self) -> tuple[str, ...]:
        """Flags of every job: how several hosts find each other, some of which may still be pulling the image."""
        hardware = self.slices
        if self.executor == "local" or hardware is None or hardware.hosts * hardware.num_slices == 1:
            return ()
        return ("--coordinator=auto", f"--startup_seconds={STARTUP_SECONDS}")

    @property
    def _hardware(self) -> TpuSlices:
        if self.slices is None:
            raise BadInput(f"--executor={self.executor} wants hardware, such as --tpu=v5e --topology=16x16")
        return self.slices

    @property
    def _kubernetes(self) -> dict[str, Any]:
        return {
            "bucket": bucket_of(self.workdir),
            "service_account": self.service_account or "default",
            "max_restarts": self.max_restarts,
        }

    def make_executor(self, name: str) -> Any:
        """An executor of XManager for one job, which the cloud knows by this name."""
        if self.executor == "local":
            from xmanager import xm_local

            return xm_local.Local()
        from launch import tpu_executors

        if self.executor == "kubernetes":
            return tpu_executors.TpuKubernetes(name, self._hardware, **self._kubernetes)
        return tpu_executors.TpuVertex(
            name,
            self._hardware,
            project=str(self.project),
            region=self.region,
            service_account=self.service_account,
        )

    def executable(self, experiment: Any) -> tuple[Any, list[str]]:
        """Packages the working tree; returns the executable and the words that come before a job's own."""
        from xmanager import xm, xm_local
        from xmanager.xm_local import executables

        if self.executor == "local":
            package = pack(pathlib.Path(self.workdir) / "packages")
            binary = xm.binary(xm_local.LocalSpec(), path=sys.executable, env_vars={"PPLX_STOP_WITH_PARENT": "1"})
            [executable] = experiment.package([binary])
            return executable, [str(package.path / "launch" / "entry.py")]
        if self.image:
            return executables.GoogleContainerRegistryImage(name="pplx_jax", image_path=self.image), []
        spec = xm_local.KubernetesSpec if self.executor == "kubernetes" else xm_local.VertexSpec
        with tempfile.TemporaryDirectory() as folder:
            package = pack(pathlib.Path(folder))
            tag = f"{self.repository}/pplx-jax:{package.digest}"
            [executable] = experiment.package(
                [xm.dockerfile_container(spec(push_image_tag=tag), path=str(package.path))]
            )
        return executable, []


def options() -> Options:
    """Of this process.

    Raises:
      BadInput: hardware that does not exist.
    """
    tpu, topology, slices = _TPU.value, _TOPOLOGY.value, None
    if tpu and topology:
        slices = TpuSlices(tpu, topology, _NUM_SLICES.value)
    elif tpu or topology:
        raise BadInput("--tpu and --topology go together, such as --tpu=v5e --topology=16x16")
    return Options(
        gin_files=_GIN_FILE.value,
        gin_params=_GIN_PARAM.value,
        sweep=_SWEEP.value,
        stage=_STAGE.value,
        base=_BASE.value,
        workdir=_WORKDIR.value or "",
        dry_run=_DRY_RUN.value,
        parallel=_PARALLEL.value,
        title=_TITLE.value,
        executor=_EXECUTOR.value,
        slices=slices,
        repository=_REPOSITORY.value,
        image=_IMAGE.value,
        project=_PROJECT.value,
        region=_REGION.value,
        service_account=_SERVICE_ACCOUNT.value,
        max_restarts=_MAX_RESTARTS.value,
    )
