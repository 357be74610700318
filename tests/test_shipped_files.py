"""The shipped files: gin files load, a wheel contains them, models have the published sizes."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from pplx_jax.cli import main as cli
from pplx_jax.configuration import load
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.parallel.rules import RULES

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = sorted((ROOT / "gin" / "recipes").glob("*.gin"))
ARMS = sorted((ROOT / "gin" / "experiments").glob("*/*.gin"))
STAGE_NAMES = ("diffusion", "pair", "contextual", "triplet")
# What a user has to say of a recipe; here it need not exist.
PUBLISHED = ("pplx_embed_0p6b", "pplx_embed_4b")
REQUIRED = {name: ("INITIAL='a_model'", "CORPUS='a_corpus'") for name in PUBLISHED}
REQUIRED |= {name: ("DATA_FOLDER='a_folder'",) for name in ("multilingual_dev", "multilingual_dev_cpu")}


def test_there_are_recipes_to_check():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_resolved_text_is_the_same_recipe(recipe, tmp_path):
    config = load([str(recipe)], REQUIRED.get(recipe.stem, ()))
    (tmp_path / "resolved.gin").write_text(config.resolved())
    assert load([str(tmp_path / "resolved.gin")]).fingerprint == config.fingerprint


@pytest.mark.parametrize("arm", ARMS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_arm_of_an_experiment_loads_in_both_sizes_and_says_what_differs(arm, tmp_path):
    config = load([str(arm)])
    (tmp_path / "resolved.gin").write_text(config.resolved())
    assert load([str(tmp_path / "resolved.gin")]).fingerprint == config.fingerprint
    full = load([str(arm), "gin/experiments/full.gin"], ["run.seed=1"])
    assert (config.arguments["run"]["model"].layers, full.arguments["run"]["model"].layers) == (4, 30)
    assert full.arguments["run"]["seed"] == 1
    assert arm.read_text().startswith("# ")
    # The other arms of the set differ, and a prediction names each but the baseline.
    others = [path for path in ARMS if path.parent == arm.parent]
    assert len({load([str(path)]).fingerprint for path in others}) == len(others)
    predictions = (arm.parent / "predictions.md").read_text()
    assert arm.stem in predictions or arm == others[0] or arm.parent.name == "merge_weight"


@pytest.mark.parametrize("experiment", sorted({arm.parent.name for arm in ARMS}))
def test_the_first_arm_of_an_experiment_is_the_baseline_of_its_predictions(experiment):
    first = next(arm for arm in ARMS if arm.parent.name == experiment)
    text = (first.parent / "predictions.md").read_text()
    assert re.search(rf"difference is to\s+{first.stem}\b", " ".join(text.split()))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_writes_nothing(recipe, tmp_path, capsys):
    workdir = tmp_path / "run"
    params = [f"--gin_param={param}" for param in REQUIRED.get(recipe.stem, ())]
    assert cli.main(["run", f"--gin_file={recipe}", f"--workdir={workdir}", "--dry_run", *params]) == cli.DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in ("pair/checkpoints", "data", "results.json", "report.html"):
        assert ["writes", str(workdir / name)] in lines
    merges = ["writes", str(workdir / "triplet/checkpoints")] in lines
    for name in ("merged", "export", "index"):
        assert (["writes", str(workdir / name)] in lines) == merges
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["multilingual_dev", "multilingual_dev_cpu"])
def test_documentation_is_added_to_a_multilingual_recipe(name, tmp_path, capsys):
    params = (*REQUIRED[name], "DOCS_FOLDER='docs'")
    files = [f"gin/recipes/{name}.gin", "gin/data/debian_docs.gin"]
    corpus = load(files, params).arguments["run"]["corpus"]
    assert (corpus.path, corpus.docs.path) == ("a_folder", "docs")
    assert load(files[:1], REQUIRED[name]).arguments["run"]["corpus"].docs is None
    flags = [f"--workdir={tmp_path / 'run'}", "--dry_run", *(f"--gin_param={param}" for param in params)]
    assert cli.main(["run", *(f"--gin_file={file}" for file in files), *flags]) == cli.DONE
    assert "pair" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_dry_run_stops_nowhere_else(tmp_path, capsys):
    flags = ["--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={tmp_path}", "--until=nope", "--dry_run"]
    assert cli.main(["run", *flags]) == cli.BAD_INPUT
    assert "--until nope: the recipe has data, diffusion, pair" in capsys.readouterr().err


@pytest.mark.parametrize(("until", "stages"), [("data", []), ("pair", ["diffusion", "pair"])])
def test_a_dry_run_stops_where_the_run_does(until, stages, tmp_path, capsys):
    flags = ["--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={tmp_path}", f"--until={until}", "--json"]
    assert cli.main(["run", *flags, "--dry_run"]) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in plan["stages"]] == stages
    assert {pathlib.Path(path).relative_to(tmp_path).parts[0] for path in plan["writes"]} == {
        *stages,
        "data",
        *(("results.json", "report.html") if stages else ()),
    }


@pytest.mark.parametrize(
    "name, missing", [(name, place) for name, params in REQUIRED.items() for place in range(len(params))]
)
def test_what_a_recipe_requires_is_named(name, missing):
    params = [param for place, param in enumerate(REQUIRED[name]) if place != missing]
    macro = REQUIRED[name][missing].partition("=")[0]
    file = "stages/pplx_embed" if name in PUBLISHED else "recipes/multilingual_dev"
    with pytest.raises(BadInput, match=rf"gin/{file}.gin:\d+: %{macro} is required"):
        load([f"gin/recipes/{name}.gin"], params)


@pytest.mark.parametrize(
    "name, diffusion_rate, pair_rate, prefixes",
    [
        ("pplx_embed_0p6b", 5e-4, 2e-4, (128, 256, 512, 1024)),
        ("pplx_embed_4b", 3.16e-4, 5e-5, (128, 256, 512, 1024, 2048, 2560)),
    ],
)
def test_a_full_recipe_has_the_published_values(name, diffusion_rate, pair_rate, prefixes):
    run = load([f"gin/recipes/{name}.gin"], REQUIRED[name]).arguments["run"]
    diffusion, pair, contextual, triplet = run["stages"]
    assert (diffusion.steps, diffusion.stage.batch_size, diffusion.stage.row_length) == (60_000, 1024, 4096)
    assert (diffusion.stage.min_time, diffusion.stage.random_length_share) == (1e-3, 0.01)
    assert diffusion.optimizer.schedule == "warmup_stable_decay"
    assert diffusion.optimizer.peak_learning_rate == diffusion_rate
    assert (pair.steps, pair.stage.batch_size, pair.stage.temperature, pair.stage.margin) == (50_000, 16_384, 0.02, 0.1)
    assert pair.optimizer.peak_learning_rate == pair_rate
    assert (contextual.stage.sequence_weight, contextual.stage.beta_start, contextual.stage.beta_end) == (0.2, 0.2, 0.5)
    assert (contextual.stage.chunks, run["lengths"].chunks, run["lengths"].chunk) == (16, 16, 256)
    assert contextual.stage.row_length >= 16 * (256 + 1) + run["lengths"].query
    assert triplet.stage.temperature == 0.03
    assert contextual.stage.prefixes == triplet.stage.prefixes == prefixes and prefixes[-1] == run["model"].width
    assert run["model"].causal is False
    for training in run["stages"]:
        training.optimizer.build(training.steps)  # the schedule fits in the steps
        assert training.stage.batch_size % 512 == 0  # chips of the largest slices that docs/appendix-plan.md has


DECLARED = ["INITIAL='a_model'", "DATA_ROOT='data'", "EVALUATION='sets'"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_declared_sources_take_the_place_of_a_folder_and_add_up_to_the_published_shares(name):
    run = load([f"gin/recipes/{name}.gin", "gin/data/pplx_embed.gin"], DECLARED).arguments["run"]
    sources = {part.name: part for source in run["corpus"].sources for part in source.parts().values()}
    diffusion, pair, _, triplet = run["stages"]
    tables = {stage: {one: 10**9 for one, part in sources.items() if FOLDERS[part.kind] == stage}
              for stage in STAGE_NAMES}  # fmt: skip
    weights = {f"{source.name}.{language}": weight for source in run["corpus"].sources
               for language, weight in source.languages.items()}  # fmt: skip
    shares = diffusion.data.shares(tables["diffusion"], weights)
    assert len(shares) == 30 and shares["fineweb_edu"] == pytest.approx(0.5)
    read = dict.fromkeys(tables["pair"], 0.0)
    steps = (*pair.data.steps, pair.steps - sum(pair.data.steps))
    for mixture, count in zip(pair.data.mixtures, steps, strict=True):
        for source, share in mixture.shares(tables["pair"], {}).items():
            read[source] += share * count / pair.steps
    assert read == pytest.approx({"english": 0.656, "cross_lingual": 0.067, "code": 0.01, "multilingual": 0.267})
    assert triplet.data.shares(tables["triplet"], {})["triplets_english"] == pytest.approx(0.92)
    assert {mixture.batches for mixture in pair.data.mixtures} == {"one_source"}


def test_every_file_of_stages_belongs_to_a_recipe():
    included = {name for recipe in RECIPES for name in re.findall(r"include '(.+)'", recipe.read_text())}
    apart = {"gin/stages/long_documents.gin"}  # read after a recipe
    assert {f"gin/stages/{path.name}" for path in (ROOT / "gin" / "stages").glob("*.gin")} - apart <= included


def test_long_documents_fill_a_row_of_the_models_limit():
    files = ["gin/recipes/pplx_embed_4b.gin", "gin/stages/long_documents.gin"]
    run = load(files, REQUIRED["pplx_embed_4b"]).arguments["run"]
    stage, lengths = next(each.stage for each in run["stages"] if each.stage.name == "contextual"), run["lengths"]
    text = lengths.chunks * (lengths.chunk + 1) - 1
    assert stage.row_length == run["model"].max_length >= text + lengths.query
    assert stage.chunks == lengths.chunks and stage.slots > stage.chunks


PRESETS = ("single", "fsdp", "fsdp_tensor", "long_context", "multislice")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_mesh_preset_goes_with_every_recipe(preset):
    for recipe in RECIPES:
        files = [str(recipe), f"gin/meshes/{preset}.gin"]
        mesh = load(files, REQUIRED.get(recipe.stem, ())).arguments["run"]["mesh"]
        assert mesh.rules == RULES and mesh.sizes(512)["slice"] == (2 if preset == "multislice" else 1)


def test_every_mesh_file_is_covered():
    assert {path.stem for path in (ROOT / "gin" / "meshes").glob("*.gin")} == {*PRESETS, "rules"}


PARAMETERS = {"qwen3_0p6b": 596_049_920, "qwen3_4b": 4_022_468_096, "smollm2": 134_515_008}


@pytest.mark.parametrize("name, parameters", PARAMETERS.items())
def test_a_model_has_as_many_parameters_as_published(name, parameters):
    recipe = ("run.model = @Qwen3Config()", "run.corpus = @PythonCorpus()", "run.lengths = @Lengths()")
    lengths = [f"Lengths.{field} = 1" for field in ("text", "query", "document", "chunk", "chunks")]
    config = load([f"gin/models/{name}.gin"], [*recipe, *lengths, "run.stages = []"])
    assert config.arguments["run"]["model"].parameters == parameters


def test_every_model_file_is_covered():
    assert {path.stem for path in (ROOT / "gin" / "models").glob("*.gin")} == {*PARAMETERS, "nano"}


@pytest.mark.slow
def test_a_wheel_contains_the_gin_files_and_runs_them_from_any_folder(tmp_path):
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    source.mkdir()
    empty.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pplx_jax", "gin"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": "", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command, **more) -> str:
        done = subprocess.run(command, env=environment | more, cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip_wheel, "--wheel-dir", tmp_path, source)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # which is how a wheel of Python files is installed
        shipped = {name for name in archive.namelist() if name.startswith("pplx_jax/gin/")}
    assert shipped == {f"pplx_jax/{path.relative_to(ROOT)}" for path in (ROOT / "gin").rglob("*.*") if path.is_file()}

    program = "import sys, pplx_jax; from pplx_jax.cli.main import main; print(pplx_jax.__file__); sys.exit(main())"
    flags = ("--gin_file=gin/recipes/quickstart_scratch.gin", "--mesh=fsdp", "--workdir=w", "--dry_run")
    printed = run(sys.executable, "-c", program, "run", *flags, PYTHONPATH=str(site))
    assert printed.startswith(str(site / "pplx_jax" / "__init__.py"))
    assert "Mesh.fsdp = -1  # gin/meshes/fsdp.gin:6" in printed
    assert not list(empty.iterdir())
