"""What a later start of a run may change: settings of phases that have not begun, and nothing else."""

import pathlib
import re
import shutil

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.recipes.phases import Phases

SETTINGS = {"corpus": {"Corpus.size": 1}, "pair": {"Training.steps": 4}, "merge": {"Merge.weight": 0.5}}


def run(workdir: pathlib.Path, changed=(), until="merge") -> list[str]:
    """Runs the phases of `SETTINGS` and one without settings, with the changed settings; returns those it ran."""
    settings, ran = SETTINGS | dict(changed), []
    phases = Phases(workdir, settings)
    phases.require_same()

    def work(name):
        ran.append(name)
        (workdir / f"{name}.out").mkdir(parents=True)
        return settings.get(name)

    for name in ("corpus", "pair", "evaluate_pair", "merge"):
        phases(name, lambda name=name: work(name), writes=(f"{name}.out",))
        if name == until:
            break
    return ran


def test_settings_of_phases_that_have_not_begun_may_change(tmp_path):
    assert run(tmp_path, {"merge": {"Merge.weight": 0.9}}, until="pair") == ["corpus", "pair"]
    assert run(tmp_path) == ["evaluate_pair", "merge"]
    assert run(tmp_path) == []


def test_a_change_of_a_finished_phase_is_refused_before_any_work(tmp_path):
    run(tmp_path, until="evaluate_pair")
    with pytest.raises(BadInput) as caught:
        run(tmp_path, {"pair": {"Training.steps": 5}})
    said = str(caught.value)
    assert f"{tmp_path}: the finished phase pair has other settings: Training.steps 4, this recipe has 5" in said
    assert "to run pair and what follows it again" in said and "corpus" not in said
    assert not (tmp_path / "phases" / "merge.json").exists()


def test_removing_what_the_message_names_runs_that_phase_and_the_later_ones_again(tmp_path):
    run(tmp_path)
    changed = {"pair": {"Training.steps": 5}}
    with pytest.raises(BadInput) as caught:
        run(tmp_path, changed)
    named = re.search(r"or remove (.*) to run", str(caught.value))[1].split()
    for path in map(pathlib.Path, named):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert run(tmp_path, changed) == ["pair", "evaluate_pair", "merge"]
    assert run(tmp_path, changed) == []


def test_phases_written_before_settings_were_kept_go_on(tmp_path):
    run(tmp_path, until="pair")
    for marker in (tmp_path / "phases").glob("*.json"):
        marker.write_text('{"seconds": 1.0, "result": {}}')
    assert run(tmp_path, {"pair": {"Training.steps": 5}}) == ["evaluate_pair", "merge"]


def test_another_process_in_the_workdir_is_refused(tmp_path):
    phases, done = Phases(tmp_path, {}), []
    with sole_owner(tmp_path), pytest.raises(BadInput, match="another process is at work in this folder; wait until"):
        phases("pair", lambda: done.append(1))
    assert not done and not any(tmp_path.iterdir())
    assert phases("pair", lambda: done.append(1) or 5) == 5
    with sole_owner(tmp_path):  # what is finished needs no lock
        assert phases("pair", lambda: done.append(1)) == 5
    assert done == [1]
