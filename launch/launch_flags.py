"""The flags of `xm_launch`, and the requests and XManager objects that they describe."""

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

try:  # if XManager is installed, its flags (--xm_...) are parsed together with ours
    from xmanager import xm as _xm  # noqa: F401
    from xmanager import xm_flags as _xm_flags  # noqa: F401
except ImportError:
    pass

STARTUP_SECONDS = 1800
EXECUTORS = ("local", "kubernetes", "vertex")

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "A recipe (repeatable); default: that of the sweep.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A binding of every trial (repeatable).")
_SWEEP = flags.DEFINE_string("sweep", None, "A file such as those in gin/sweeps/; without it there is one trial.")
_STAGE = flags.DEFINE_string("stage", None, "Train only this stage, on existing token files.")
_EMBED = flags.DEFINE_string(
    "embed", None, "In place of a recipe: the flags of `pplx-jax embed` in one string; each slice embeds a share."
)
_BASE = flags.DEFINE_string("base", None, "A run from which the trials take the data and earlier stages.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Absolute path; the trials of a sweep are in WORKDIR/000, 001, ...")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print trials, commands and requests; launch nothing.")
_STOP = flags.DEFINE_boolean("stop", False, "Stop the jobs in the cloud that the same command has launched.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", None, "Trials at a time; default: 1 here, all in the cloud.", lower_bound=1
)
_TITLE = flags.DEFINE_string("title", None, "Title of the experiment; default: the name of the sweep or the recipe.")
_EXECUTOR = flags.DEFINE_enum("executor", "local", EXECUTORS, "Where jobs run.")
_TPU = flags.DEFINE_enum("tpu", None, ("v5e", "v5p", "v6e"), "Kind of TPU in the cloud.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Topology of a slice: 16x16, or 4x4x8 for v5p.")
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices", 1, "Number of slices of each job; with --embed, of jobs.", lower_bound=1
)
_REPOSITORY = flags.DEFINE_string(
    "repository", None, "Where to push the image in Artifact Registry: LOCATION-docker.pkg.dev/PROJECT/REPOSITORY."
)
_IMAGE = flags.DEFINE_string("image", None, "An existing image to use instead of building one.")
_PROJECT = flags.DEFINE_string("project", None, "Google Cloud value for Vertex AI.")
_REGION = flags.DEFINE_string("region", "us-central1", "Google Cloud value for Vertex AI.")
_SERVICE_ACCOUNT = flags.DEFINE_string(
    "service_account", None, "Account with access to the bucket: a name in Kubernetes, an e-mail address on Vertex AI."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 20, "Number of restarts of a Kubernetes job before it has failed.", lower_bound=0
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The values of the flags; see --help."""

    gin_files: Sequence[str] = ()
    gin_params: Sequence[str] = ()
    sweep: str | None = None
    stage: str | None = None
    embed: str | None = None
    embed_slices: int = 1
    base: str | None = None
    workdir: str = ""
    dry_run: bool = False
    stop: bool = False
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
        """Checks that the flags fit together.

        Raises:
          BadInput: they do not; the message names the flag.
        """
        if not pathlib.PurePosixPath(self.workdir).is_absolute():
            raise BadInput(f"--workdir={self.workdir or '(none)'}; give an absolute path: jobs start elsewhere")
        if self.base and not pathlib.PurePosixPath(self.base).is_absolute():
            raise BadInput(f"--base={self.base}; give an absolute path: jobs start elsewhere")
        if self.embed is not None and (self.gin_files or self.gin_params or self.sweep or self.stage or self.base):
            raise BadInput("--embed takes no recipe; leave out --gin_file, --gin_param, --sweep, --stage and --base")
        if self.executor == "local":
            if self.slices:
                raise BadInput("--tpu needs --executor=kubernetes or vertex; jobs on this machine use its own devices")
            if self.stop:
                raise BadInput("--stop needs --executor=kubernetes or vertex; jobs on this machine end with xm_launch")
            return
        hardware = self._hardware
        if self.base and bucket_of(self.base) != bucket_of(self.workdir):
            raise BadInput(f"--base={self.base} is not in the bucket of --workdir, the only bucket that jobs can read")
        bucket_of(self.workdir)
        if not self.image and not self.repository:
            raise BadInput(f"--executor={self.executor} needs --repository, to push the image to, or an --image")
        if self.executor == "vertex":
            check_slices(hardware)
            if not self.project:
                raise BadInput("--executor=vertex needs --project")

    def request(
        self, name: str, image: str, args: Sequence[str], environment: Mapping[str, str]
    ) -> dict[str, Any] | None:
        """Returns the request for a job in the cloud; None if jobs run on this machine."""
        if self.executor == "local":
            return None
        if self.executor == "vertex":
            return custom_job(name, image, args, environment, self._hardware, service_account=self.service_account)
        return jobset(name, image, args, environment, self._hardware, **self._kubernetes)

    @property
    def words(self) -> tuple[str, ...]:
        """Flags of every job on several hosts. They wait long for each other: some may still be pulling the image."""
        hardware = self.slices
        if self.executor == "local" or hardware is None or hardware.hosts * hardware.num_slices == 1:
            return ()
        return ("--coordinator=auto", f"--startup_seconds={STARTUP_SECONDS}")

    @property
    def _hardware(self) -> TpuSlices:
        if self.slices is None:
            raise BadInput(f"--executor={self.executor} needs hardware, such as --tpu=v5e --topology=16x16")
        return self.slices

    @property
    def _kubernetes(self) -> dict[str, Any]:
        return {
            "bucket": bucket_of(self.workdir),
            "service_account": self.service_account or "default",
            "max_restarts": self.max_restarts,
        }

    def make_executor(self, name: str) -> Any:
        """Returns an XManager executor for one job; `name` is its name in the cloud."""
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
        """Packages the working tree; returns the executable and its first arguments."""
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
    """Returns the options of this process.

    Raises:
      BadInput: the hardware does not exist.
    """
    tpu, topology, slices = _TPU.value, _TOPOLOGY.value, None
    if tpu and topology:
        slices = TpuSlices(tpu, topology, _NUM_SLICES.value if _EMBED.value is None else 1)
    elif tpu or topology:
        raise BadInput("--tpu and --topology need each other, such as --tpu=v5e --topology=16x16")
    return Options(
        gin_files=_GIN_FILE.value,
        gin_params=_GIN_PARAM.value,
        sweep=_SWEEP.value,
        stage=_STAGE.value,
        embed=_EMBED.value,
        embed_slices=_NUM_SLICES.value,
        base=_BASE.value,
        workdir=_WORKDIR.value or "",
        dry_run=_DRY_RUN.value,
        stop=_STOP.value,
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
