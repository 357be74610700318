"""`pplx-jax plan --rehearse`: every host of real topologies starts both full recipes."""

import dataclasses
import json

import pytest
from helpers import rehearsals, tpu_compile

from pplx_jax.cli import main as cli
from pplx_jax.configuration import load
from pplx_jax.plan.chips import Topology
from pplx_jax.plan.on_topology import Task

pytestmark = [pytest.mark.slow, tpu_compile.needs_libtpu]

TOPOLOGIES = {
    "v5e": Topology("v5e:16x16"),
    "v5p": Topology("v5p:4x4x8"),
    "v6e": Topology("v6e:16x16", 2),
    "tpu7x": Topology("tpu7x:4x4x8"),
}
PRESETS = ("fsdp", "fsdp_tensor", "long_context", "multislice")
STAGES = ("diffusion", "pair", "contextual", "triplet")
# The preset is for batches with fewer sequences than devices; here each device would have the activations of hundreds.
TOO_MUCH = {("4b", "fsdp_tensor", "v5e", stage) for stage in ("pair", "contextual")}
V5E = ("gin/recipes/pplx_embed_4b.gin", "gin/meshes/fsdp.gin")
REFUSED = {
    "process 1 has no device in the mesh": (V5E[0], "gin/meshes/single.gin"),
    "a mesh of 2 slices on devices of 1; set Mesh.slice=1": (V5E[0], "gin/meshes/multislice.gin"),
    "a batch of 1000 cannot be shared by 256 devices (Mesh.fsdp)": (*V5E, "TripletStage.batch_size=1000"),
    "rows of 510 tokens cannot be shared by 4 devices (Mesh.sequence)": (
        V5E[0],
        "gin/meshes/long_context.gin",
        "TripletStage.row_length=510",
    ),
    "8 key heads cannot be shared by 16 devices (Mesh.tensor)": (*V5E, "Mesh.tensor=16"),
    "mesh fsdp=128 x tensor=4 needs 512 devices": (*V5E, "Mesh.fsdp=128", "Mesh.tensor=4"),
    "process 32 has no device in the mesh": (*V5E, "Mesh.fsdp=128"),
    "a batch of 1024 cannot be packed in 3 equal groups": (*V5E, "triplet/Training.packing_groups=3"),
    "warmup=9000 does not fit in steps=5000": (*V5E, "triplet/Optimizer.warmup_steps=9000"),
}


def tasks_of(words, topology, stages=STAGES, **mesh):
    files = [word for word in words if word.endswith(".gin")]
    run = load(files, [word for word in words if word not in files], unset="unset").arguments["run"]
    mesh = dataclasses.replace(run["mesh"], **mesh)
    return [
        Task(training, run["model"], mesh, run["lengths"], topology)
        for training in run["stages"]
        if training.stage.name in stages
    ]


@pytest.fixture(scope="module")
def rehearsed():
    """(size, preset, version, stage) -> the report; and what refuses -> the line of the refusal."""
    keys, tasks = [], []
    for size in ("0p6b", "4b"):
        for preset in PRESETS:
            for version, topology in TOPOLOGIES.items():
                if preset == "multislice" and topology.num_slices == 1:
                    continue
                words = (f"gin/recipes/pplx_embed_{size}.gin", f"gin/meshes/{preset}.gin")
                tasks += tasks_of(words, topology, slice=topology.num_slices)
                keys += [(size, preset, version, stage) for stage in STAGES]
        long = (f"gin/recipes/pplx_embed_{size}.gin", "gin/stages/long_documents.gin", "gin/meshes/long_context.gin")
        tasks += tasks_of(long, TOPOLOGIES["v5p"], ["contextual"])
        keys.append((size, "long_documents", "v5p", "contextual"))
    for why, words in REFUSED.items():
        tasks += tasks_of(words, TOPOLOGIES["v5e"], ["triplet"])
        keys.append(why)
    return dict(zip(keys, rehearsals.in_worker("outcomes", tasks), strict=True))


def test_every_stage_starts_on_every_host(rehearsed):
    started = {key: report for key, report in rehearsed.items() if isinstance(key, tuple)}
    assert len(started) == 2 * (4 * (3 * 4 + 1) + 1)
    assert [(key, report) for key, report in started.items() if isinstance(report, str)] == []
    assert {key for key, report in started.items() if not report["fits"]} == TOO_MUCH


def test_the_hosts_hold_all_rows_and_write_the_whole_state(rehearsed):
    for key, report in rehearsed.items():
        if isinstance(report, str):
            continue
        chips = report["chips"]
        assert sum(len(host["devices"]) for host in report["hosts"]) == chips
        assert sorted(place for host in report["hosts"] for place in host["mesh_places"]) == list(range(chips))
        rows = {row for host in report["hosts"] for first, last in host["rows"] for row in range(first, last + 1)}
        assert rows == set(range(report["rows"])), key
        # float32 parameters and two moments; the rest is scalars.
        parameters = {"4b": 4_022_468_096, "0p6b": 596_049_920}[key[0]]
        assert report["checkpoint_bytes"] == pytest.approx(12 * parameters, rel=1e-6)
        written = [host["bytes_written"] for host in report["hosts"]]
        assert max(written) < 1.05 * sum(written) / len(written), key
        assert report["copied_parameters"] == []


def test_a_host_holds_the_places_of_a_real_slice(rehearsed):
    first = {version: rehearsed["4b", "fsdp", version, "pair"]["hosts"][0] for version in TOPOLOGIES}
    assert first["v5e"]["mesh_places"] == [0, 1, 16, 17]
    assert first["v5p"]["mesh_places"] == [0, 8, 32, 40]
    assert first["v5e"]["rows"] == [[0, 143], [1152, 1295]]  # 72 sequences a chip
    assert len(first["tpu7x"]["devices"]) == 8
    slices = [host["slice"] for host in rehearsed["4b", "multislice", "v6e", "pair"]["hosts"]]
    assert slices == 64 * [0] + 64 * [1]


@pytest.mark.parametrize(
    "version, preset, best", [("v5e", "fsdp", 128), ("v5e", "long_context", 32), ("v6e", "multislice", 256)]
)
def test_the_number_of_packing_groups_that_shares_the_work(rehearsed, version, preset, best):
    report = rehearsed["0p6b", preset, version, "pair"]
    assert (report["packing_groups"], report["packed_by_busiest_host"]) == (1, 1.0)
    assert report["best_packing_groups"] == best
    assert report["packed_by_busiest_host_at_best"] == 1 / len(report["hosts"]) * (2 if preset == "long_context" else 1)


@pytest.mark.parametrize("why", REFUSED)
def test_a_start_that_a_host_would_refuse_is_refused(rehearsed, why):
    line = rehearsed[why]
    assert isinstance(line, str) and line.startswith("triplet: ") and why in line and "\n" not in line


def test_orbax_writes_those_bytes():
    tasks = tasks_of(V5E, TOPOLOGIES["v5p"], ["pair"])
    tasks += tasks_of((V5E[0], "gin/meshes/fsdp_tensor.gin"), TOPOLOGIES["v5p"], ["pair"], data=2)  # two copies
    for ours, orbax in rehearsals.in_worker("written", tasks):
        assert ours == orbax and len(ours) == 32


def test_the_verb_prints_what_a_host_does(capsys):
    words = ["plan", "--rehearse", f"--gin_file={V5E[0]}", "--topology=v5e:16x16", "--stage=diffusion", "--host=5"]
    assert cli.main(words) == cli.DONE
    shown = capsys.readouterr().out
    assert "256 chips, 64 hosts, mesh fsdp=256" in shown and "640-647, 704-711" in shown
    assert cli.main([*words, "--json", "--mesh=multislice"]) == cli.BAD_INPUT
    assert "set Mesh.slice=1" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --stage, one of diffusion"),
        (["--rehearse", "--picture=plan.html"], "--picture belongs to a plan without --rehearse"),
        (["--stage=pair", "--host=1"], "--host belongs to a plan with --rehearse"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    words = ["plan", f"--gin_file={V5E[0]}", "--topology=v5e:16x16", *flags]
    assert cli.main(words) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
