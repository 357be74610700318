"""Training that is killed at random moments, also during saves, ends like an uninterrupted run."""

import json

import pytest
from helpers import kills, tiny
from helpers.clock import CLOCK

pytestmark = pytest.mark.slow

STEPS, KILLS = 24, 5


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.tiny_tables(folder, tiny.tiny_vocabulary(folder))
    return folder


def test_killed_at_random_it_ends_bit_for_bit_as_uninterrupted(setting, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills.job.finish([kills.train(setting, whole, "pair", STEPS, 0.0, cache={})])
    done = kills.train_with_kills(setting, killed, "pair", steps=STEPS, kills=KILLS, seed=1, cache={})
    assert any(kill.saving for kill in done) and not all(kill.saving for kill in done)
    kills.assert_same_run(whole, killed, examples=tiny.EXAMPLES, clock=CLOCK)
    # Steps were lost and taken again, or there was nothing to resume.
    assert len(kills.ledger(killed)) > STEPS == len(kills.ledger(whole))
    goodput = json.loads((killed / "stage" / "goodput.json").read_text())
    assert 1 < goodput["starts"] <= len(done) + 1 and 0 < goodput["goodput"] < 1
    with pytest.raises(AssertionError):  # control: another run's ledger
        lines = kills.ledger(whole)
        kills.in_the_end([*lines, {**lines[3], "ids": lines[4]["ids"]}])
