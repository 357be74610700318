"""The command line: what it prints where, and the exit code of every way to end."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import types
from typing import ClassVar

import absl.logging
import numpy as np
import pytest

import pplx_jax
from pplx_jax.cli import main as cli
from pplx_jax.cli.verb import PathOrName, PathOrUrl, Verb, flag
from pplx_jax.cli.verbs import VERBS
from pplx_jax.configuration import Table
from pplx_jax.core.errors import BadInput, Failed, Preempted

CALLS = []


@dataclasses.dataclass(frozen=True)
class FakeStage:
    batch_size: int = 8
    row_length: int = 512
    name: ClassVar[str] = "pair"

    @property
    def batch(self):
        return types.SimpleNamespace(batch_size=self.batch_size, length=self.row_length)


@dataclasses.dataclass(frozen=True)
class FakeTraining:
    stage: FakeStage
    steps: int


def run(workdir, stages, *, seed=0, config_text, fingerprint):
    CALLS.append(("run", workdir, stages, seed, config_text, fingerprint))
    print("a library that prints")
    return {"seconds": np.float32(1.5), "scores": {"pair": {"ndcg@10": 0.5}}, "folder": workdir}


def train_stage(workdir, stage, stages):
    CALLS.append(("train_stage", workdir, stage, stages))
    if stage == "gone":
        open("gone")


def chat():
    absl.logging.info("an own message")
    logging.getLogger("someone_else").warning("a warning of theirs")
    logging.getLogger("someone_else").setLevel(logging.INFO)
    logging.getLogger("someone_else").handle(
        logging.LogRecord("someone_else", logging.INFO, "/elsewhere.py", 1, "chatter of theirs", None, None)
    )


def look(source, name="nobody", *, k=10, output=None, **more):
    CALLS.append(("look", source, name, k, output, more))
    return {"hits": [{"id": "d1", "score": 0.9, "text": "one"}, {"id": "d2", "score": 0.8, "text": "two"}]}


def fail(how):
    pathlib.Path("a_file").touch()
    pathlib.Path("a_folder").mkdir()
    match how:
        case "absent":
            open("some/file")
        case "below a file":
            open("a_file/x")
        case "folder":
            open("a_folder", "w")
        case "taken":
            os.mkdir("a_file")
    raise {
        "bad": BadInput("this is wrong\nhere; fix it like this"),
        "bug": RuntimeError("a bug"),
        "known": Failed("no memory\n  a device holds too much"),
        "stop": KeyboardInterrupt(),
        "full": OSError(errno.ENOSPC, "No space left on device", "/some/checkpoint"),
        "nameless": OSError(errno.ENOSPC, "No space left on device"),
        "lost": FileNotFoundError("of no path"),
        "extra": ModuleNotFoundError("No module named 'faiss'", name="faiss"),
        "module": ModuleNotFoundError("No module named 'a_typing_error'", name="a_typing_error"),
    }[how]


def report(workdir=None, *, stages=(), input=None, output=""):
    CALLS.append(("report", workdir, stages, input, output))


TABLE = Table(
    tuple(f"{__name__}:{function.__name__}" for function in (run, train_stage, look, fail, chat, report)),
    (f"{__name__}:FakeTraining", f"{__name__}:FakeStage"),
)
HERE = __name__
FAKES = (
    Verb("run", "a recipe", f"{HERE}:run", recipe="run"),
    Verb("train", "a stage", f"{HERE}:train_stage", flags=(flag("--stage", required=True),), recipe="run"),
    Verb(
        "look",
        "a verb with flags",
        f"{HERE}:look",
        flags=(
            flag("source", type=pathlib.Path),
            flag("--name", type=PathOrName),
            flag("--k", type=int),
            flag("--output", output=True, type=pathlib.Path),
            flag("--loud", action="store_true"),
        ),
    ),
    Verb(
        "re-port",
        "a verb that needs a recipe or a file",
        f"{HERE}:report",
        flags=(flag("--input", type=pathlib.Path), flag("--output", type=PathOrUrl)),
        recipe="run",
        recipe_unless="input",
    ),
    Verb("chat", "a verb that logs", f"{HERE}:chat"),
    Verb("fail", "a verb that fails", f"{HERE}:fail", flags=(flag("how"),)),
    Verb("work", "a verb that resumes", f"{HERE}:fail", flags=(flag("how"),), resumes=True),
)
RECIPE = """\
run.stages = [@pair/FakeTraining()]
FakeTraining.stage = @FakeStage()
pair/FakeTraining.steps = 600
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.gin").write_text(RECIPE)
    return ("--gin_file", "recipe.gin", "--workdir", "runs/one")


@pytest.fixture
def command(capsys):
    """Runs a command over the fake verbs; gives its exit code, standard output and standard error."""

    def command(*words):
        code = cli.main(list(words), verbs=FAKES, table=TABLE)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


class TestRunning:
    def test_a_recipe(self, command, recipe):
        code, out, _ = command("run", *recipe, "--gin_param", "run.seed=3")
        ((_, workdir, stages, seed, text, fingerprint),) = CALLS
        assert code == 0
        assert (workdir, seed) == (pathlib.Path("runs/one"), 3)
        assert stages == [FakeTraining(FakeStage(), 600)]
        assert "pair/FakeTraining.steps = 600  # recipe.gin:3\n" in text
        assert len(fingerprint) == 64
        assert out.splitlines() == [
            "a library that prints",
            "seconds              1.5",
            "scores.pair.ndcg@10  0.5",
            "folder               runs/one",
        ]

    def test_one_stage_of_it(self, command, recipe):
        assert command("train", "--stage", "pair", *recipe)[0] == 0
        assert CALLS == [("train_stage", pathlib.Path("runs/one"), "pair", [FakeTraining(FakeStage(), 600)])]

    def test_flags_over_bindings_over_defaults(self, command):
        assert command("look", "here")[0] == 0
        assert command("look", "here", "--gin_param", "look.k=5")[0] == 0
        assert command("look", "here", "--gin_param", "look.k=5", "--k", "2", "--loud")[0] == 0
        here = pathlib.Path("here")
        assert CALLS == [
            ("look", here, "nobody", 10, None, {}),
            ("look", here, "nobody", 5, None, {}),
            ("look", here, "nobody", 2, None, {"loud": True}),
        ]

    def test_relative_paths_start_from_the_workdir(self, command, tmp_path):
        (tmp_path / "work/model").mkdir(parents=True)
        command("look", "a", "--output", "/b", "--name", "model", "--workdir", "work")
        command("look", "a", "--name", "bm25", "--workdir", "work")
        work = pathlib.Path("work")
        assert CALLS[0][1:] == (work / "a", work / "model", 10, pathlib.Path("/b"), {})
        assert CALLS[1][1:] == (work / "a", "bm25", 10, None, {})

    @pytest.mark.usefixtures("bucket")
    def test_so_do_those_of_a_verb_with_a_recipe(self, command, recipe):
        assert command("re-port", *recipe, "--output", "tokens")[0] == 0
        assert command("re-port", *recipe, "--output", "gs://bucket/tokens")[0] == 0
        workdir = pathlib.Path("runs/one")
        stages = [FakeTraining(FakeStage(), 600)]
        assert CALLS == [
            ("report", workdir, stages, None, "runs/one/tokens"),
            ("report", workdir, stages, None, "gs://bucket/tokens"),
        ]

    def test_a_flag_can_stand_in_for_the_recipe(self, command):
        assert command("re-port", "--input", "file.jsonl", "--output", "here")[0] == 0
        assert command("re-port", "--input", "file.jsonl", "--workdir", "work")[0] == 0
        assert CALLS == [
            ("report", None, (), pathlib.Path("file.jsonl"), "here"),
            ("report", pathlib.Path("work"), (), pathlib.Path("work/file.jsonl"), ""),
        ]

    def test_both_spellings_of_verbs_and_flags(self, command, recipe):
        gin_file, file, workdir, folder = recipe
        for verb, name in (("re-port", "--gin_file"), ("re_port", "--gin-file")):
            assert command(verb, f"{name}={file}", workdir, folder, "--output=a-b_c", "--dry-run")[0] == 0
            assert command(verb, name, file, workdir, folder, "--output", "a-b_c")[0] == 0
        assert [call[4] for call in CALLS] == ["runs/one/a-b_c"] * 2
        command("look", "--", "--a-path")
        assert CALLS[-1][1] == pathlib.Path("--a-path")

    def test_rows_are_shown_as_a_table(self, command):
        assert command("look", "here")[1] == "id      score  text\nd1        0.9  one\nd2        0.8  two\n"


class TestJson:
    def test_exactly_one_object_on_standard_output(self, command, recipe):
        code, out, err = command("run", *recipe, "--json")
        assert code == 0
        assert json.loads(out) == {"seconds": 1.5, "scores": {"pair": {"ndcg@10": 0.5}}, "folder": "runs/one"}
        assert "a library that prints" in err

    @pytest.mark.parametrize(
        ("words", "code"),
        [(("fail", "bad"), 2), (("fail", "bug"), 1), (("fail", "stop"), 130), (("fail",), 2), (("dance",), 2)],
    )
    def test_also_where_it_fails(self, command, words, code):
        ended, out, _ = command(*words, "--json")
        assert ended == code
        assert list(json.loads(out)) == ["error"]


def test_logs_go_to_standard_error(command, monkeypatch):
    # What counts as ours is told by the folder of the file that logs.
    monkeypatch.setattr(pplx_jax, "__file__", __file__)
    code, out, err = command("chat", "--json")
    assert (code, out) == (0, "{}\n")
    assert err.count("an own message") == err.count("a warning of theirs") == 1
    assert "chatter" not in err


class TestDryRun:
    def test_says_everything_and_does_nothing(self, command, recipe, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        code, out, _ = command("run", *recipe, "--dry_run", "--json")
        plan = json.loads(out)
        assert (code, CALLS, sorted(tmp_path.rglob("*"))) == (0, [], before)
        assert plan["verb"] == "run"
        assert plan["arguments"] == {"workdir": "runs/one", "seed": "0"}
        assert plan["stages"] == [{"stage": "pair", "steps": 600, "batch_size": 8, "row_length": 512, "examples": 4800}]
        assert "runs/one/pair/config.gin" in plan["writes"]
        assert "pair/FakeTraining.steps = 600  # recipe.gin:3\n" in plan["config"]

    def test_for_people(self, command, recipe):
        _, out, _ = command("train", "--stage", "pair", *recipe, "--dry_run")
        lines = [line.split() for line in out.splitlines()]
        place = lines.index(["stage", "steps", "batch_size", "row_length", "examples"])
        assert lines[place + 1] == ["pair", "600", "8", "512", "4800"]
        assert re.search("^writes +runs/one/pair/metrics.jsonl$", out, re.MULTILINE)
        assert out.endswith(
            "pair/FakeTraining.steps = 600  # recipe.gin:3\n\nFakeStage.batch_size = 8  # default\n"
            "FakeStage.row_length = 512  # default\n"
        )

    def test_a_verb_without_a_recipe(self, command):
        _, out, _ = command("look", "here", "--output", "there", "--dry_run", "--json")
        plan = json.loads(out)
        assert plan["writes"] == ["there"]
        assert plan["arguments"] == {"source": "here", "output": "there"}
        assert CALLS == []

    def test_a_stage_that_is_not_there(self, command, recipe):
        code, _, err = command("train", "--stage", "pear", *recipe, "--dry_run")
        assert (code, err) == (
            2,
            "pplx-jax: error: --stage pear: the recipe has no such stage; it has pair\n",
        )


class TestBadInput:
    """Exit code 2, one line on standard error, nothing on standard output."""

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "the following arguments are required: VERB; see pplx-jax --help"),
            (("dance",), "argument VERB: invalid choice: 'dance'"),
            (("look",), "the following arguments are required: PATH; see pplx-jax look --help"),
            (("look", "here", "--k", "many"), "argument --k: invalid int value: 'many'"),
            (("look", "here", "--ou", "x"), "unrecognized arguments: --ou x"),
            (("train", "--stage", "pair"), "the following arguments are required: --workdir"),
            (("re-port",), "re-port needs a recipe, such as --gin_file=gin/recipes/quickstart.gin, or --input"),
            (
                ("re-port", "--gin_file", "no.gin"),
                "re-port needs --workdir, the folder of the recipe's outputs, or --input",
            ),
            (("run", "--workdir", "w"), "run needs a recipe, such as --gin_file=gin/recipes/quickstart.gin"),
            (("run", "--workdir", "w", "--gin_file", "no.gin"), "no gin file no.gin"),
            (
                ("fail", "bug", "--gin_param", "fail.hoow=5"),
                "--gin_param:1: fail has no parameter hoow; did you mean how?",
            ),
            (("look", "here", "--gin_param", "look.k='5"), "--gin_param:1: not a gin statement: `look.k='5`"),
            (("fail", "bad"), "this is wrong here; fix it like this"),
            (("fail", "full"), "the disk of /some/checkpoint is full; free some space and run this again"),
            (("fail", "nameless", "--workdir", "w"), "the disk of w is full; free some space and run this again"),
            (("fail", "absent"), "some/file: No such file or directory; check this path"),
            (("fail", "below a file"), "a_file/x: Not a directory; check this path"),
            (("fail", "folder"), "a_folder: Is a directory; check this path"),
            (("fail", "taken"), "a_file: File exists; check this path"),
            (("fail", "extra"), "fail needs the module faiss, which is not installed: pip install 'pplx-jax[search]'"),
        ],
    )
    def test_one_line(self, command, words, message):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert err.startswith(f"pplx-jax: error: {message}"), err
        assert err.count("\n") == 1 and err.endswith("\n")

    def test_a_parameter_that_nothing_binds(self, command, tmp_path):
        (tmp_path / "recipe.gin").write_text("run.seed = 1\n")
        code, _, err = command("run", "--gin_file", "recipe.gin", "--workdir", "w")
        assert code == 2
        assert err == ("pplx-jax: error: nothing sets run.stages; bind it in a gin file or with --gin_param\n")


class TestOtherEndings:
    @pytest.mark.parametrize(
        ("how", "last"),
        [
            ("bug", "RuntimeError: a bug"),
            ("lost", "FileNotFoundError"),
            ("module", "ModuleNotFoundError"),
        ],
    )
    def test_a_failure_shows_where(self, command, how, last):
        code, out, err = command("fail", how)
        assert (code, out) == (1, "")
        assert err.startswith("Traceback") and last in err.splitlines()[-1]

    def test_a_failure_that_explains_itself_shows_its_lines_alone(self, command):
        assert command("fail", "known") == (1, "", "pplx-jax: error: no memory\n  a device holds too much\n")

    def test_a_file_gone_missing_under_a_recipe_is_no_bad_input(self, command, recipe):
        code, _, err = command("train", "--stage", "gone", *recipe)
        assert code == 1 and "Traceback" in err

    @pytest.mark.parametrize(("verb", "next"), [("work", "resumes from here"), ("fail", "starts over")])
    def test_an_interruption_says_how_to_go_on(self, command, verb, next):
        code, _, err = command(verb, "stop")
        assert (code, err) == (130, f"pplx-jax: interrupted; the same command {next}\n")

    @pytest.mark.parametrize(
        ("name", "next"), [("run", "resumes from the last finished phase"), ("data cache", "starts over")]
    )
    def test_so_does_being_asked_to_stop(self, name, next):
        (verb,) = (verb for verb in VERBS if verb.name == name)
        with pytest.raises(Preempted, match=f"stopped by SIGTERM; the same command {next}"), cli._stopping(verb):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
class TestStart:
    @pytest.mark.parametrize("words", [("--help",), ("--version",), ("run", "--help")])
    def test_help_imports_nothing_heavy(self, words):
        script = (
            "import sys; from pplx_jax.cli.main import main; code = main(sys.argv[1:]); "
            "heavy = {'jax', 'gin', 'numpy', 'flax', 'tensorflow', 'torch'} & set(sys.modules); "
            "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
        )
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(("usage: pplx-jax", "pplx-jax "))

    def test_as_a_module(self):
        done = subprocess.run([sys.executable, "-m", "pplx_jax", "run"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("pplx-jax: error: the following arguments are required: --workdir")


def test_a_mesh_preset_is_read_after_the_recipe(tmp_path, capsys):
    command = [
        "train",
        "--gin_file=gin/recipes/pplx_embed_4b.gin",
        "--stage=pair",
        f"--workdir={tmp_path}",
        "--dry_run",
    ]
    command += ["--gin_param=INITIAL='a'", "--gin_param=CORPUS='b'", "--json"]
    assert cli.main([*command, "--mesh=fsdp_tensor", "--gin_param=Mesh.data=2"]) == cli.DONE
    config = json.loads(capsys.readouterr().out)["config"]
    assert "Mesh.tensor = 4" in config and "Mesh.data = 2" in config
    (tmp_path / "own.gin").write_text("Mesh.sequence = 8\n")
    assert cli.main([*command, f"--mesh={tmp_path / 'own.gin'}"]) == cli.DONE
    assert "Mesh.sequence = 8" in json.loads(capsys.readouterr().out)["config"]
    assert cli.main([*command, "--mesh=fsdq"]) == cli.BAD_INPUT
    assert "gin/meshes/fsdq.gin" in json.loads(capsys.readouterr().out)["error"]


def test_a_verb_that_only_looks_needs_nothing_of_its_user(capsys):
    command = ["plan", "--gin_file=gin/recipes/pplx_embed_4b.gin", "--stage=pair", "--topology=v5e:16x16"]
    assert cli.main([*command, "--dry_run", "--json"]) == cli.DONE
    assert "INITIAL = 'unset'" in json.loads(capsys.readouterr().out)["config"]
