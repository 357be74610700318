"""Which phases a run takes from another one, and that a link never replaces or repeats work."""

import json

import pytest
from helpers import tiny

from pplx_jax.recipes.shared_phases import link_phases, phases_before

STAGES = [tiny.training("diffusion"), tiny.training("pair"), tiny.training("triplet")]
BEFORE = phases_before(STAGES, initial=False, weighted=False)
SETTINGS = {
    "corpus": {"held_out": ["gamma"]},
    "vocabulary": {"size": 370},
    "tokenize": {"text": 64},
    "diffusion": {"steps": 4, "seed": 0},
    "pair": {"temperature": 0.02, "seed": 0},
    "mine": {"negatives": 2},
    "triplet": {"steps": 4, "seed": 0},
}
WRITES = {
    "corpus": "data/corpus",
    "vocabulary": "data/vocabulary.model",
    "tokenize": "data/tokens",
    "mine": "data/tokens/triplet",
    **{name: name for name in ("diffusion", "pair", "triplet")},
}


def finished(workdir, phases=tuple(SETTINGS), **changed):
    """A run that has done these phases."""
    for name in phases:
        output = workdir / WRITES[name]
        if name == "tokenize":
            output = output / "pair"
        output.mkdir(parents=True)
        (output / "made").write_text(name)
        marker = {"settings": {**SETTINGS[name], **changed.get(name, {})}, "writes": [WRITES[name]], "result": {}}
        (workdir / "phases").mkdir(exist_ok=True)
        (workdir / "phases" / f"{name}.json").write_text(json.dumps(marker))
    return workdir


def changed(phase, **settings):
    return {**SETTINGS, phase: {**SETTINGS[phase], **settings}}


def test_what_a_phase_depends_on():
    data = ("corpus", "vocabulary", "tokenize")
    assert list(BEFORE) == [*data, "diffusion", "pair", "mine", "triplet"]
    assert BEFORE["diffusion"] == data
    assert BEFORE["pair"] == (*data, "diffusion")
    assert BEFORE["mine"] == (*data, "diffusion", "pair")
    assert BEFORE["triplet"] == (*data, "diffusion", "pair", "mine")
    alone = phases_before([tiny.training("pair")], initial=True, weighted=True)
    assert alone["pair"] == ("corpus", "tokenize", "initial")


@pytest.mark.parametrize(
    "phase, linked",
    [
        (None, {*SETTINGS}),
        ("corpus", set()),
        ("vocabulary", {"corpus"}),
        ("diffusion", {"corpus", "vocabulary", "tokenize"}),
        ("pair", {"corpus", "vocabulary", "tokenize", "diffusion"}),
        ("mine", {*SETTINGS} - {"mine", "triplet"}),
        ("triplet", {*SETTINGS} - {"triplet"}),
    ],
)
def test_a_phase_is_taken_if_it_and_all_before_it_are_equal(tmp_path, phase, linked):
    other, workdir = finished(tmp_path / "other"), tmp_path / "run"
    settings = changed(phase, more=1) if phase else SETTINGS
    assert set(link_phases(workdir, [other], BEFORE, settings)) == linked
    for name in linked:
        marker = json.loads((workdir / "phases" / f"{name}.json").read_text())
        assert marker == json.loads((other / "phases" / f"{name}.json").read_text())
        place = workdir / WRITES[name] / ("pair" if name == "tokenize" else "")
        assert place.is_symlink() and (place / "made").read_text() == name
    assert not (workdir / "data" / "tokens").is_symlink()  # mined triplets are written into it
    assert (workdir / "data" / "tokens" / "triplet").exists() == ("mine" in linked)
    assert not link_phases(workdir, [other], BEFORE, settings)  # nothing is left


def test_own_work_stays(tmp_path):
    other, workdir = finished(tmp_path / "other"), finished(tmp_path / "run", ("corpus",))
    (workdir / "pair").mkdir()  # begun and not finished
    linked = link_phases(workdir, [other], BEFORE, SETTINGS)
    assert set(linked) == {*SETTINGS} - {"corpus", "pair"}
    assert not (workdir / "data" / "corpus").is_symlink() and not (workdir / "pair").is_symlink()


def test_each_phase_may_come_from_another_run_and_links_do_not_chain(tmp_path):
    first = finished(tmp_path / "first", ("corpus", "vocabulary", "tokenize"))
    second, third = tmp_path / "second", tmp_path / "third"
    link_phases(second, [first], BEFORE, SETTINGS)
    finished(second, ("diffusion",))
    linked = link_phases(third, [second, first], BEFORE, SETTINGS)
    assert linked == dict.fromkeys(("corpus", "vocabulary", "tokenize", "diffusion"), second)
    assert (third / "data" / "corpus").readlink().parts[-3:] == ("first", "data", "corpus")


def test_a_link_without_a_note_is_made_again(tmp_path):
    other, workdir = finished(tmp_path / "other"), tmp_path / "run"
    workdir.mkdir()
    (workdir / "pair").symlink_to("nowhere")  # of a start that was killed
    assert "pair" in link_phases(workdir, [other], BEFORE, SETTINGS)
    assert (workdir / "pair" / "made").read_text() == "pair"


def test_outputs_outside_the_other_run_are_not_linked(tmp_path):
    other = finished(tmp_path / "other")
    (tmp_path / "secret").mkdir()
    marker = other / "phases" / "corpus.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "writes": ["../secret"]}))
    assert "corpus" not in link_phases(tmp_path / "run" / "deep", [other], BEFORE, SETTINGS)
    assert not (tmp_path / "run" / "secret").exists()


def test_a_phase_that_is_not_finished_is_not_taken(tmp_path):
    other = finished(tmp_path / "other", ("corpus", "vocabulary", "tokenize"))
    (other / "diffusion").mkdir()
    assert set(link_phases(tmp_path / "run", [other], BEFORE, SETTINGS)) == {"corpus", "vocabulary", "tokenize"}
