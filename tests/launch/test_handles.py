"""What XManager knows of the jobs in the cloud: their arguments, their state, and how to stop them."""

import pytest
from helpers.fake_clouds import IMAGE, PARAMS, RECIPE, VERTEX, launched
from xmanager import xm_local
from xmanager.xm_local import experiment as xm_experiment

from launch import launch_flags, tpu_handles, xm_launch
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator")  # XManager's database

GKE = {"executor": "kubernetes", "stage": "pair", "slices": TpuSlices("v5e", "4x4")}
SWEEP = "gin/sweeps/merge_weight.gin"


@pytest.fixture
def units(monkeypatch):
    """The units of all experiments, and what XManager was told of their arguments."""
    made, shown = [], []
    launch = xm_experiment.LocalWorkUnit._launch_job_group

    async def noted(self, job_group, args_view, identity):
        made.append(self)
        shown.append(args_view)
        return await launch(self, job_group, args_view, identity)

    monkeypatch.setattr(xm_experiment.LocalWorkUnit, "_launch_job_group", noted)
    return made, shown


def options(**given):
    given = {"gin_files": (RECIPE,), "gin_params": PARAMS, "workdir": "/gcs/bucket/run", "image": IMAGE} | given
    return launch_flags.Options(**given)


def test_xmanager_shows_the_arguments_of_every_trial(cluster, units):
    cluster()
    failed, trials = launched(**{**GKE, "stage": None}, sweep=SWEEP)
    assert failed == 0 and len(trials) > 1
    _, shown = units
    assert len(shown) == sum(len(trial.jobs) for trial in trials)
    for trial in trials:
        [first, *_] = [each for each in shown if each["workdir"] == trial.workdir]
        assert trial.record["parameters"].items() <= first.items() and trial.record["parameters"]
        assert first["gin_file"] == [RECIPE] and set(PARAMS) < set(first["gin_param"]) and first["stage"] == "diffusion"


@pytest.mark.parametrize("where", ["kubernetes", "vertex"])
def test_a_unit_knows_the_state_of_its_job(cluster, google, units, where):
    cluster() if where == "kubernetes" else google()
    assert launched(**(GKE if where == "kubernetes" else VERTEX))[0] == 0
    [unit] = units[0]
    status = unit.get_status()
    assert status.is_completed and not status.is_active
    [handle] = unit._non_local_execution_handles
    assert isinstance(handle, tpu_handles.JobSet if where == "kubernetes" else tpu_handles.CustomJob)


@pytest.mark.parametrize("where", ["kubernetes", "vertex"])
def test_a_unit_stops_its_job(cluster, google, units, capsys, where):
    made = cluster(lasting=("pair",)) if where == "kubernetes" else google(ends=None)

    def stopped_by_xmanager():
        [unit] = units[0]
        assert unit.get_status().is_active
        unit.stop()

    made.at_look = stopped_by_xmanager
    assert launched(**(GKE if where == "kubernetes" else VERTEX))[0] == 1
    methods = [(method, url.partition("?")[0].rpartition("/")[2]) for method, url, _ in made.requests]
    error = capsys.readouterr().err
    if where == "kubernetes":
        [(_, deleted)] = [each for each in methods if each[0] == "DELETE"]
        assert deleted.endswith("-pair") and "it was deleted; the same command starts it again" in error
    else:
        assert ("POST", "7:cancel") in methods and "JOB_STATE_CANCELLED" in error


@pytest.mark.parametrize("where", ["kubernetes", "vertex"])
def test_the_same_command_with_stop_stops_what_runs(cluster, google, capsys, where):
    if where == "kubernetes":
        made, given = cluster(lasting=("pair",)), options(**GKE)
        tpu_handles.kubernetes_api()
        trials = xm_launch.plan(given)
        name = trials[0].cloud_name(trials[0].jobs[0])
        made.looks[f"https://cluster.test/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets/{name}"] = 0
    else:
        running = {"name": "projects/1/locations/us-central1/customJobs/7"}
        made, given = google(ends=None, running=[running]), options(**VERTEX)
        trials = xm_launch.plan(given)
    xm_launch.stop(trials, given)
    assert "stopping " in capsys.readouterr().out
    assert [url for method, url, _ in made.requests if method == "DELETE" or url.partition("?")[0].endswith(":cancel")]


def test_a_job_that_is_not_there_is_not_stopped(cluster, capsys):
    made, given = cluster(), options(**GKE)
    xm_launch.stop(xm_launch.plan(given), given)
    assert "pair: not there" in capsys.readouterr().out
    assert [method for method, _, _ in made.requests] == ["GET"]


def test_jobs_on_this_machine_have_no_stop():
    with pytest.raises(BadInput, match="--stop needs --executor=kubernetes or vertex"):
        options(workdir="/run", stop=True, image=None).check()


def test_experiments_can_be_listed_after_a_launch(cluster):
    cluster()
    launched(**GKE)
    assert xm_local.list_experiments()
