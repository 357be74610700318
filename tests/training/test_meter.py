"""Logged numbers of a span of steps: rates over its time, shares of its last batch."""

import pytest

from pplx_jax.models.model_flops import training_flops
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.training import meter

CONFIG = Qwen3Config(vocab_size=11, width=4, mlp_width=6, layers=3, query_heads=2, kv_heads=1, head_dim=8)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 5.0

    monkeypatch.setattr(meter.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(meter, "peak_flops", lambda: 1e6)
    return Clock


def counts(tokens: int, cut: int = 0) -> dict[str, float]:
    return {"tokens": tokens, "token_pairs": 10 * tokens, "cut_tokens": cut, "cells": 100}


def test_rates_are_over_the_span_and_shares_of_the_last_batch(clock):
    found = meter.Meter(CONFIG, devices=2)
    found.read(counts(1000), 1000, 9.0)
    clock.now = 50.0
    found.lost("compile", 45.0)
    found.read(counts(60), 60, 0.5)
    found.lost("checkpoint", 2.0)
    clock.now = 54.0
    numbers = found.numbers({"masked_share": 0.25, "loss": 1.0})
    assert numbers["tokens_per_second"] == 1060 / 4.0
    flops = training_flops(CONFIG, tokens=1060, token_pairs=10600, predicted=265)
    assert numbers["model_flops_utilization"] == pytest.approx(flops / 4.0 / 2e6)
    assert (numbers["fill"], numbers["cut_tokens"]) == (pytest.approx(0.6), 0)
    assert (numbers["data_wait_seconds"], numbers["checkpoint_seconds"]) == (9.5, 2.0)
    assert numbers["data_wait_share"] == 9.5 / 4.0
    # The next span begins here.
    found.read(counts(80, cut=3), 80, 0.5)
    clock.now = 56.0
    numbers = found.numbers({"loss": 1.0})
    assert numbers["tokens_per_second"] == 40.0 and numbers["cut_tokens"] == 3 and numbers["fill"] == pytest.approx(0.8)
    assert numbers["data_wait_share"] == 0.25
    assert found.tokens == 1140


def test_utilization_is_absent_where_the_peak_is_not_known(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda: None)
    found = meter.Meter(CONFIG, devices=1)
    found.read(counts(60), 60, 0.0)
    assert "model_flops_utilization" not in found.numbers({})
