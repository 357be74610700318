"""Absorbing-state corruption: the law of t, the masked share, the length cut, what is never touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.objectives import corruption

MASK = 7
ROWS, LENGTH = 256, 128
FIRST, SECOND = 48, 64  # two texts a row, the rest padding
PADDING = LENGTH - FIRST - SECOND


def packed_rows(seed=0, vocabulary=50):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, vocabulary, (ROWS, LENGTH)).astype(np.int32)  # MASK occurs in the text too
    row = np.concatenate([np.full(FIRST, 1), np.full(SECOND, 2), np.zeros(PADDING)]).astype(np.int32)
    places = np.concatenate([np.arange(FIRST), np.arange(SECOND), np.zeros(PADDING)]).astype(np.int32)
    return tokens, np.tile(row, (ROWS, 1)), np.tile(places, (ROWS, 1))


@functools.cache
def compiled(share, min_time=1e-3, max_time=1.0):
    return jax.jit(
        functools.partial(
            corruption.corrupt, mask_id=MASK, min_time=min_time, max_time=max_time, random_length_share=share
        )
    )


def corrupt(batch, *, seed=0, share=0.0, **times):
    out = compiled(share, **times)(*batch, jax.random.key(seed))
    return corruption.Corruption(
        inputs=np.asarray(out.inputs),
        segment_ids=np.asarray(out.segment_ids),
        corrupted=np.asarray(out.corrupted),
        valid=np.asarray(out.valid),
        mask_probability=np.asarray(out.mask_probability),
    )


def times_of_texts(out):
    """One t a text, [2 x ROWS], after checking that a text has one."""
    first, second = out.mask_probability[:, :FIRST], out.mask_probability[:, FIRST : FIRST + SECOND]
    for part in (first, second):
        np.testing.assert_array_equal(part, np.repeat(part[:, :1], part.shape[1], axis=1))
    return np.concatenate([first[:, 0], second[:, 0]])


def uniform_distance(samples, low, high):
    """Kolmogorov-Smirnov distance of samples from U(low, high)."""
    ordered = np.sort((np.asarray(samples, np.float64) - low) / (high - low))
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())


def test_arrays_are_separate_and_agree():
    tokens, segment_ids, positions = batch = packed_rows()
    out = corrupt(batch)
    assert out.corrupted.dtype == np.bool_ and out.valid.dtype == np.bool_
    assert out.mask_probability.dtype == np.float32
    for array in (out.inputs, out.segment_ids, out.corrupted, out.valid, out.mask_probability):
        assert array.shape == tokens.shape
    np.testing.assert_array_equal(out.segment_ids, segment_ids)  # no cut asked for
    np.testing.assert_array_equal(out.valid, segment_ids > 0)
    np.testing.assert_array_equal(out.inputs, np.where(out.corrupted, MASK, tokens))
    assert 0 < out.corrupted.sum() < out.valid.sum()


def test_padding_is_never_corrupted():
    tokens, segment_ids, positions = batch = packed_rows()
    out = corrupt(batch, min_time=0.999, max_time=1.0)
    assert out.corrupted[segment_ids > 0].mean() > 0.99  # nearly everything else is
    assert not out.corrupted[segment_ids == 0].any()
    np.testing.assert_array_equal(out.inputs[segment_ids == 0], tokens[segment_ids == 0])
    assert np.isfinite(1 / out.mask_probability).all()


def test_one_uniform_time_for_each_text():
    out = corrupt(packed_rows())
    times = times_of_texts(out)
    assert times.min() >= 1e-3 and times.max() <= 1.0
    # 512 samples: the distance passes 1.95 / sqrt(512) = 0.086 once in a thousand draws.
    assert uniform_distance(times, 1e-3, 1.0) < 0.086
    # Texts of a sequence do not share t.
    assert (out.mask_probability[:, 0] != out.mask_probability[:, FIRST]).mean() > 0.99
    # Control: the same times are not uniform on (0, 2), nor squared.
    assert uniform_distance(times, 0.0, 2.0) > 0.086
    assert uniform_distance(times**2, 0.0, 1.0) > 0.086


def test_time_keeps_to_its_bounds():
    times = times_of_texts(corrupt(packed_rows(), min_time=0.25, max_time=0.5))
    assert times.min() >= 0.25 and times.max() <= 0.5
    assert uniform_distance(times, 0.25, 0.5) < 0.086


def share_statistic(out, times):
    """Mean over texts of (k - n t)^2 / (n t (1 - t)): 1 if each of n tokens is masked with chance t."""
    counts = np.concatenate([out.corrupted[:, :FIRST].sum(1), out.corrupted[:, FIRST : FIRST + SECOND].sum(1)]).astype(
        np.float64
    )
    sizes = np.repeat([FIRST, SECOND], ROWS)
    inner = (times > 0.02) & (times < 0.98)  # where the variance is not tiny
    deviation = (counts - sizes * times) ** 2 / (sizes * times * (1 - times))
    return deviation[inner].mean()


def test_masked_share_is_t():
    out = corrupt(packed_rows())
    times = times_of_texts(out).astype(np.float64)
    # Mean of ~490 squared standard scores: 1 with standard error about sqrt(2 / 490) = 0.064.
    assert abs(share_statistic(out, times) - 1) < 0.3
    assert share_statistic(out, 1 - times) > 10  # control: alpha_t instead of t
    assert share_statistic(out, np.full_like(times, 0.5)) > 10  # control: a fixed rate


def test_masks_are_independent_along_the_text():
    out = corrupt(packed_rows(), min_time=0.4999, max_time=0.5001)
    first = out.corrupted[:, :FIRST].astype(np.float64) - 0.5
    pairs = ROWS * (FIRST - 1)
    # Neighbours, and the same place of the next row: correlation 0 within 4 standard errors.
    assert abs((first[:, 1:] * first[:, :-1]).mean() * 4) < 4 / np.sqrt(pairs)
    assert abs((first[1:] * first[:-1]).mean() * 4) < 4 / np.sqrt(pairs)
    assert abs((first * out.corrupted[:, FIRST : 2 * FIRST]).mean() * 4) < 4 / np.sqrt(pairs)


def test_mask_token_in_the_text_is_not_taken_for_a_corrupted_one():
    tokens, segment_ids, positions = packed_rows()
    tokens = np.full_like(tokens, MASK)
    out = corrupt((tokens, segment_ids, positions))
    np.testing.assert_array_equal(out.inputs, tokens)  # ids alone say nothing
    times = times_of_texts(out).astype(np.float64)
    assert abs(share_statistic(out, times) - 1) < 0.3  # the mask array still tells
    # Control: a mask inferred from the ids would call every token corrupted.
    assert (out.inputs == MASK)[segment_ids > 0].all()
    assert not out.corrupted[segment_ids > 0].all()
    # The draw does not depend on the ids at all.
    other = corrupt(packed_rows())
    np.testing.assert_array_equal(other.corrupted, out.corrupted)


def test_a_tiny_time_masks_nothing():
    out = corrupt(packed_rows(), min_time=1e-9, max_time=2e-9)
    assert not out.corrupted.any()


def test_same_key_same_result_other_key_other_result():
    batch = packed_rows()
    one, again, other = corrupt(batch, seed=3), corrupt(batch, seed=3), corrupt(batch, seed=4)
    np.testing.assert_array_equal(one.corrupted, again.corrupted)
    np.testing.assert_array_equal(one.mask_probability, again.mask_probability)
    assert (one.corrupted != other.corrupted).any()
    assert (one.mask_probability != other.mask_probability).any()


def lengths_kept(out):
    """Tokens left of every text [2 x ROWS], after checking that what is left is a prefix."""
    kept = []
    for start, size, name in ((0, FIRST, 1), (FIRST, SECOND, 2)):
        part = out.segment_ids[:, start : start + size]
        length = (part == name).sum(1)
        np.testing.assert_array_equal(part, np.where(np.arange(size) < length[:, None], name, 0))
        kept.append(length)
    return np.concatenate(kept)


def test_cut_turns_the_tail_into_padding():
    tokens, segment_ids, positions = batch = packed_rows()
    out = corrupt(batch, share=1.0)
    lengths = lengths_kept(out)
    sizes = np.repeat([FIRST, SECOND], ROWS)
    assert lengths.min() >= 1
    # Uniform over the lengths: 512 samples; a grid of 48 or 64 lengths moves the distance by 1/48 at most.
    assert uniform_distance((lengths - 0.5) / sizes, 0.0, 1.0) < 0.086 + 1 / 48
    np.testing.assert_array_equal(out.valid, out.segment_ids > 0)
    assert not out.corrupted[~out.valid].any()
    assert not out.valid[segment_ids == 0].any()
    np.testing.assert_array_equal(out.inputs[out.corrupted], MASK)
    untouched = out.valid & ~out.corrupted
    np.testing.assert_array_equal(out.inputs[untouched], tokens[untouched])
    assert np.isfinite(1 / out.mask_probability).all()


def test_one_text_in_a_hundred_is_cut():
    # 40 draws x 512 texts: 1% are 205, less the 1 or 2% of them whose random length is all; +- 4 x 14.3.
    function = compiled(0.01)
    batch = packed_rows()
    cut = 0
    for seed in range(40):
        segment_ids = np.asarray(function(*batch, jax.random.key(seed)).segment_ids)
        last = np.concatenate([segment_ids[:, FIRST - 1] == 0, segment_ids[:, FIRST + SECOND - 1] == 0])
        cut += last.sum()
    assert 140 < cut < 262
    # Control: nothing is cut when nothing is asked for.
    assert (lengths_kept(corrupt(batch)) == np.repeat([FIRST, SECOND], ROWS)).all()


def test_length_and_mask_draws_are_independent():
    out = corrupt(packed_rows(), share=1.0)
    lengths, times = lengths_kept(out), times_of_texts_kept(out)
    correlation = np.corrcoef(lengths / np.repeat([FIRST, SECOND], ROWS), times)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(2 * ROWS)


def times_of_texts_kept(out):
    return np.concatenate([out.mask_probability[:, 0], out.mask_probability[:, FIRST]])


def test_rows_full_of_short_texts():
    # As many texts as tokens: every text has one token and its own t.
    segment_ids = np.tile(np.arange(1, LENGTH + 1, dtype=np.int32), (ROWS, 1))
    tokens = np.zeros_like(segment_ids)
    out = corrupt((tokens, segment_ids, np.zeros_like(tokens)))
    assert uniform_distance(out.mask_probability.ravel(), 1e-3, 1.0) < 1.95 / np.sqrt(out.mask_probability.size)
    assert len(np.unique(out.mask_probability[0])) > 0.9 * LENGTH
    share = out.corrupted[(out.mask_probability > 0.4) & (out.mask_probability < 0.6)].mean()
    assert abs(share - 0.5) < 0.04


def test_defaults_are_the_papers():
    batch = [jnp.asarray(part) for part in packed_rows()]
    explicit = compiled(0.01)(*batch, jax.random.key(9))
    default = jax.jit(functools.partial(corruption.corrupt, mask_id=MASK))(*batch, jax.random.key(9))
    np.testing.assert_array_equal(default.mask_probability, explicit.mask_probability)
    np.testing.assert_array_equal(default.inputs, explicit.inputs)
    np.testing.assert_array_equal(default.segment_ids, explicit.segment_ids)
