"""The page on pods: bash runs all of its commands, with every program replaced by one that notes how it was called."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import launch_flags, xm_launch
from launch.tpu_slices import TpuSlices
from pplx_jax.cli import main as cli
from pplx_jax.cli.verbs import VERBS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
OURS = ("pplx-jax", "python")
# The groups of commands of other programs that the page uses, with the flags each has.
SHAPES = {
    "gcloud ai custom-jobs list": "--region",
    "gcloud artifacts repositories create": "--location --repository-format",
    "gcloud auth application-default login": "",
    "gcloud auth configure-docker": "--quiet",
    "gcloud compute tpus queued-resources create": "--node-id --zone --accelerator-type --runtime-version",
    "gcloud compute tpus queued-resources delete": "--zone --force",
    "gcloud compute tpus queued-resources describe": "--zone",
    "gcloud compute tpus tpu-vm scp": "--zone --worker",
    "gcloud compute tpus tpu-vm ssh": "--zone --worker --command",
    "gcloud config set": "",
    "gcloud container clusters create": "--zone --num-nodes --machine-type --workload-pool --addons",
    "gcloud container clusters get-credentials": "--zone",
    "gcloud container node-pools create": "--cluster --zone --machine-type --tpu-topology --num-nodes",
    "gcloud iam service-accounts create": "",
    "gcloud projects describe": "--format",
    "gcloud services enable": "",
    "gcloud storage buckets add-iam-policy-binding": "--role --member",
    "gcloud storage buckets create": "--location --uniform-bucket-level-access --enable-hierarchical-namespace",
    "kubectl apply": "--server-side --filename",
    "kubectl create serviceaccount": "",
    "kubectl delete jobsets": "--all",
    "kubectl get": "--output",
    "kubectl logs": "--follow --selector",
    "docker build": "--file --tag",
    "docker push": "",
    "docker run": "--rm --privileged --net --volume",
    "bash": "",
    "gcsfuse": "--implicit-dirs -o",
    "make": "",
    "mkdir": "-p",
    "tail": "-f",
    "tensorboard": "--logdir",
}
STUB = """#!{python}
import json, os, sys
print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=open({note!r}, "a"))
print("123456")
"""
MISSPELT = ("gcloud storage bucket create gs://a", "kubectl get pods --outptu=wide", "docker built .")


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Every call of the page, in order: [program, word, ...], as bash has expanded it."""
    folder = tmp_path_factory.mktemp("page")
    note = folder / "calls.jsonl"
    programs = {shape.split()[0] for shape in SHAPES} - {"bash"}
    for program in {*programs, *OURS, "sudo"}:
        stub = folder / "bin" / program
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB.format(python=sys.executable, note=str(note)))
        stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    script = "set -euo pipefail\n" + "\n".join(BLOCKS)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in note.read_text().splitlines()]


def of(calls, *start):
    found = [call for call in calls if tuple(call[: len(start)]) == start]
    assert found, start
    return found


def flag(call, name):
    return next(word.partition("=")[2] for word in call if word.startswith(f"--{name}="))


def test_every_line_of_the_page_is_a_call(calls):
    text = re.sub(r"\\\n\s*", " ", "\n".join(BLOCKS))
    lines = [line for line in text.splitlines() if line and not re.match(r"\s|export [A-Z]|[A-Z]+=(?!\$\()", line)]
    assert len(calls) == len(lines) > 40  # NUMBER=$(gcloud ...) is a call too


def test_our_commands_are_understood(calls, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    inside = [inner_command(call) for call in of(calls, "gcloud", "compute", "tpus", "tpu-vm", "ssh")]
    commands = [call[1:] for call in of(calls, "pplx-jax")] + [words for words in inside if words]
    assert {words[0] for words in commands} == {"run", "train", "embed", "plan", "report"}
    for words in commands:
        if words[0] == "report":  # there is nothing to report of
            words = [*words[:1], *words[2:], str(ROOT / "docs")]
        assert cli.main([*words, "--dry_run"]) == cli.DONE, capsys.readouterr().err


def inner_command(call):
    """What a host of a slice is told: the words after `pplx-jax`, where it is told to run the image."""
    words = shlex.split(flag(call, "command"))
    if words[:3] != ["sudo", "docker", "run"]:
        return None
    check_shape(words[1:])
    image = next(place for place, word in enumerate(words) if place > 2 and not word.startswith("--"))
    assert re.fullmatch(r"[a-z0-9-]+-docker\.pkg\.dev/[\w-]+/[\w-]+/[\w-]+:[\w-]+", words[image])
    return words[image + 1 :]


def test_launches_are_understood_and_planned(calls, monkeypatch):
    monkeypatch.chdir(ROOT)
    launched = []
    for call in of(calls, "python", "launch/xm_launch.py"):
        with flagsaver.flagsaver():
            assert flags.FLAGS(["xm_launch", *call[2:]]) == ["xm_launch"]
            options = dataclasses.replace(launch_flags.options(), base=None)  # no run is there
        trials = xm_launch.plan(options)
        launched.append((options.executor, len(trials), trials[0].jobs[-1].name))
        for job in (job for trial in trials for job in trial.jobs):
            assert cli.main([*job.args, "--dry_run"]) == cli.DONE
        if options.slices:
            bucket = options.request("name", "image", trials[0].jobs[0].args, {})
            assert bucket and options.slices.chips == 256
    assert {("kubernetes", 1, "diffusion"), ("kubernetes", 1, "finish"), ("vertex", 1, "diffusion")} <= {*launched}
    assert {("local", 9, "finish"), ("kubernetes", 8, "finish")} <= {*launched}


def shown_launches():
    """The launches that headers of sweeps, README and the launcher's own help show."""
    files = [*sorted((ROOT / "gin" / "sweeps").glob("*.gin")), ROOT / "README.md", pathlib.Path(xm_launch.__file__)]
    shown = re.compile(r"^#?\s+python (launch/xm_launch\.py .+)$", re.MULTILINE)
    texts = {file.name: re.sub(r"\\\n#?\s*", "", file.read_text(encoding="utf-8")) for file in files}
    return [(name, line) for name, text in texts.items() for line in shown.findall(text)]


@pytest.mark.parametrize("line", [line for _, line in shown_launches()], ids=[file for file, _ in shown_launches()])
def test_launches_shown_elsewhere_are_understood_too(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with flagsaver.flagsaver():
        assert len(flags.FLAGS(["xm_launch", *shlex.split(line.replace("$PWD", str(ROOT)))[1:]])) == 1
        options = launch_flags.options()
    options.check()
    if "4b" in str(options.gin_files):  # it stands without its base model and corpus there
        options = dataclasses.replace(options, gin_params=("INITIAL='base'", "CORPUS='texts'"))
    trials = xm_launch.plan(dataclasses.replace(options, base=None))
    assert trials and (not options.sweep or len(trials) > 1)


def test_every_sweep_shows_how_it_is_launched():
    assert {file for file, _ in shown_launches()} >= {path.name for path in (ROOT / "gin" / "sweeps").glob("*.gin")}


def check_shape(call):
    """Refuses a word that the table above does not have."""
    if call[0] == "sudo":
        call = call[1:]
    line = " ".join(call) + " "
    shape = max((shape for shape in SHAPES if line.startswith(shape + " ")), key=len, default=None)
    assert shape, line
    known, stop = SHAPES[shape].split(), "run" in shape
    for word in call[len(shape.split()) :]:
        assert word and "\n" not in word and "$" not in word, line
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{shape}: {word}"
        elif stop:
            break  # the rest belongs to what is run


def test_other_programs_are_called_as_they_can_be(calls):
    for call in calls:
        if call[0] not in OURS:
            check_shape(call)


@pytest.mark.parametrize("bad", MISSPELT)
def test_the_shapes_refuse_what_is_misspelt(bad):
    with pytest.raises(AssertionError):
        check_shape(bad.split())


def test_the_hardware_is_that_of_the_jobs(calls):
    slices = TpuSlices("v5e", "16x16")
    for call in of(calls, "gcloud", "container", "node-pools", "create"):
        assert flag(call, "machine-type") == slices.machine_type and flag(call, "tpu-topology") == slices.topology
        assert int(flag(call, "num-nodes")) == slices.hosts
    [queued] = of(calls, "gcloud", "compute", "tpus", "queued-resources", "create")
    assert flag(queued, "accelerator-type") == f"v5litepod-{slices.chips}"
    assert f"{slices.hosts} hosts of {slices.chips_per_host} chips" in PAGE


def test_names_that_belong_together(calls):
    [account] = of(calls, "kubectl", "create", "serviceaccount")
    bindings = [flag(call, "member") for call in of(calls, "gcloud", "storage", "buckets", "add-iam-policy-binding")]
    assert bindings[0].endswith(f"/subject/ns/default/sa/{account[3]}") and "projects/123456/" in bindings[0]
    launches = of(calls, "python", "launch/xm_launch.py")
    on_gke = [call for call in launches if "--executor=kubernetes" in call]
    on_vertex = [call for call in launches if "--executor=vertex" in call]
    assert {flag(call, "service_account") for call in on_gke} == {account[3]}
    assert {"serviceAccount:" + flag(call, "service_account") for call in on_vertex} == {bindings[1]}
    [bucket] = of(calls, "gcloud", "storage", "buckets", "create")
    name = bucket[4].removeprefix("gs://")
    assert all(flag(call, "workdir").startswith(f"/gcs/{name}/") for call in [*on_gke, *on_vertex])
    built, pushed = of(calls, "docker", "build")[0], of(calls, "docker", "push")[0]
    assert flag(built, "tag") == pushed[2] and (ROOT / flag(built, "file")).exists()
    copied = of(calls, "gcloud", "compute", "tpus", "tpu-vm", "scp")[0][5]
    assert (ROOT / copied).exists()
    assert subprocess.run(["bash", "-n", str(ROOT / copied)]).returncode == 0


def test_the_page_names_what_exists():
    names = set(re.findall(r"`((?:pplx_jax|gin|launch|tests)/[\w./]*)`", PAGE))
    assert names and [name for name in sorted(names) if not (ROOT / name).exists()] == []
    verbs = set(re.findall(r"pplx-jax ([a-z][a-z-]*)", PAGE))
    assert verbs <= {verb.name for verb in VERBS}
    for name in re.findall(r"`--(\w+)", PAGE):
        known = {f.names[0] for verb in VERBS for f in verb.flags} | {f"--{name}" for name in flags.FLAGS}
        assert f"--{name}" in known, name
