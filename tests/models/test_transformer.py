"""The encoder against transformers' Qwen3 with the same weights, and its isolation of texts bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pplx_jax.core.errors import BadInput
from pplx_jax.models import transformer as qwen3

VOCABULARY, WIDTH, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 97, 48, 80, 3, 4, 2, 20  # 4 x 20 is not 48
ROWS, LENGTH = 2, 384
LENGTHS = ((300, 1, 2, 17), (129, 64, 7))  # texts of row 0 and row 1; the rest of a row is padding
TOLERANCE = 2e-5  # hidden states have unit size

ATTENTION = {
    "q": (WIDTH, HEADS * HEAD_DIM),
    "k": (WIDTH, KV_HEADS * HEAD_DIM),
    "v": (WIDTH, KV_HEADS * HEAD_DIM),
    "o": (HEADS * HEAD_DIM, WIDTH),
}
MLP_KERNELS = {"gate": (WIDTH, MLP), "up": (WIDTH, MLP), "down": (MLP, WIDTH)}


@functools.cache
def weights():
    """Of transformers' model, by its names: norms away from one, kernels of unit gain."""
    shapes = {"embed_tokens": (VOCABULARY, WIDTH), "norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (WIDTH,))
        block |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (HEAD_DIM,))
        block |= {f"self_attn.{name}_proj": (after, before) for name, (before, after) in ATTENTION.items()}
        block |= {f"mlp.{name}_proj": (after, before) for name, (before, after) in MLP_KERNELS.items()}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    generator = np.random.default_rng(0)

    def draw(name, shape):
        noise = generator.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            return 1 + np.float32(0.3) * noise
        return noise * np.float32(0.02 if name == "embed_tokens" else shape[1] ** -0.5)

    return {f"{name}.weight": draw(name, shape) for name, shape in shapes.items()}


@functools.cache
def torch_model(theta=1e6, epsilon=1e-6):
    import torch
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=32768,
        attn_implementation="eager",
        use_cache=False,
    )
    model = transformers.Qwen3Model(config).to(torch.float32).eval()
    assert {name for name, _ in model.named_parameters()} == weights().keys()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.tensor(weights()[name]))
    return model


def attention_mask(length, causal):
    import torch

    mask = torch.zeros(1, 1, length, length)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask.masked_fill_(later, torch.finfo(torch.float32).min)
    return {"full_attention": mask}


def torch_hidden(tokens, causal, model=None):
    """Hidden states [L, D] of one text alone, with their graph."""
    import torch

    ids = torch.tensor(np.asarray(tokens)[None], dtype=torch.long)
    out = (model or torch_model())(input_ids=ids, attention_mask=attention_mask(ids.shape[1], causal))
    return out.last_hidden_state[0]


def expected_shapes():
    shapes = {"embed.embedding": (VOCABULARY, WIDTH), "final_norm.scale": (WIDTH,)}
    for name in ("input_norm", "post_attention_norm"):
        shapes[f"layers.{name}.scale"] = (LAYERS, WIDTH)
    for name in ("q_norm", "k_norm"):
        shapes[f"layers.attention.{name}.scale"] = (LAYERS, HEAD_DIM)
    for name, shape in ATTENTION.items():
        shapes[f"layers.attention.{name}.kernel"] = (LAYERS, *shape)
    for name, shape in MLP_KERNELS.items():
        shapes[f"layers.mlp.{name}.kernel"] = (LAYERS, *shape)
    return shapes


def from_torch(read):
    """The flat dict of our paths from `read(torch name) -> array`, kernels transposed, layers stacked."""

    def stacked(name, transpose=False):
        parts = [read(f"layers.{layer}.{name}.weight") for layer in range(LAYERS)]
        return np.stack([part.T if transpose else part for part in parts])

    flat = {"embed.embedding": read("embed_tokens.weight"), "final_norm.scale": read("norm.weight")}
    flat["layers.input_norm.scale"] = stacked("input_layernorm")
    flat["layers.post_attention_norm.scale"] = stacked("post_attention_layernorm")
    for name in ("q_norm", "k_norm"):
        flat[f"layers.attention.{name}.scale"] = stacked(f"self_attn.{name}")
    for name in ATTENTION:
        flat[f"layers.attention.{name}.kernel"] = stacked(f"self_attn.{name}_proj", transpose=True)
    for name in MLP_KERNELS:
        flat[f"layers.mlp.{name}.kernel"] = stacked(f"mlp.{name}_proj", transpose=True)
    return flat


def config(causal):
    return qwen3.Qwen3Config(
        vocab_size=VOCABULARY,
        width=WIDTH,
        mlp_width=MLP,
        layers=LAYERS,
        query_heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        causal=causal,
        dtype="float32",
    )


def flatten(tree, prefix=()):
    out = {}
    for name, value in tree.items():
        path = (*prefix, name)
        out |= flatten(value, path) if isinstance(value, dict) else {".".join(path): value}
    return out


def nest(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


@functools.cache
def our_model(causal):
    """Graph definition, parameters as a nested dict, and a compiled forward pass."""
    # Shapes only: every parameter is replaced, so none needs drawing.
    graph, state = nnx.split(nnx.eval_shape(lambda: qwen3.Qwen3(config(causal), rngs=nnx.Rngs(0))))
    params = nest({path: jnp.asarray(value) for path, value in from_torch(weights().__getitem__).items()})

    def forward(params, tokens, segment_ids, positions):
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(tokens, segment_ids, positions)

    return state, params, forward, jax.jit(forward)


def run(batch, causal, params=None):
    _, own, _, compiled = our_model(causal)
    return np.asarray(compiled(params or own, *batch))


def packed(seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    segment_ids, positions = np.zeros((2, ROWS, LENGTH), np.int32)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for name, length in enumerate(lengths, 1):
            segment_ids[row, start : start + length] = name
            positions[row, start : start + length] = np.arange(length)
            start += length
    return tokens, segment_ids, positions


def texts(segment_ids):
    """(row, slice) of every text."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            yield row, slice(start, start + length)
            start += length


def test_parameter_paths_and_shapes():
    state, _, _, _ = our_model(False)
    actual = {path: tuple(value.shape) for path, value in flatten(nnx.to_pure_dict(state)).items()}
    assert actual == expected_shapes()


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_packed_texts_equal_transformers_alone(causal):
    batch = packed()
    hidden = run(batch, causal)
    assert hidden.shape == (ROWS, LENGTH, WIDTH) and hidden.dtype == np.float32
    for row, part in texts(batch[1]):
        expected = torch_hidden(batch[0][row, part], causal).detach().numpy()
        np.testing.assert_allclose(hidden[row, part], expected, rtol=0, atol=TOLERANCE)
    row, part = 0, slice(0, LENGTHS[0][0])
    controls = [  # the other mask, another rotation base and another epsilon show
        torch_hidden(batch[0][row, part], not causal),
        torch_hidden(batch[0][row, part], causal, torch_model(theta=1e4)),
        torch_hidden(batch[0][row, part], causal, torch_model(epsilon=1e-5)),
    ]
    for control in controls:
        assert np.abs(hidden[row, part] - control.detach().numpy()).max() > 20 * TOLERANCE


@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_neighbours_move_no_bit(causal):
    tokens, segment_ids, positions = packed()
    base = run((tokens, segment_ids, positions), causal)
    for row, part in texts(segment_ids):
        others = np.ones((ROWS, LENGTH), bool)  # padding and all the other texts
        others[row, part] = False
        disturbed = np.where(others, (tokens + 31) % VOCABULARY, tokens)
        hidden = run((disturbed, segment_ids, positions), causal)
        np.testing.assert_array_equal(hidden[row, part], base[row, part])
    # Padding alone, against every text at once.
    padding = np.where(segment_ids == 0, 5, tokens)
    real = segment_ids > 0
    np.testing.assert_array_equal(run((padding, segment_ids, positions), causal)[real], base[real])
    assert np.isfinite(base).all()
    # Controls: with the texts declared one text the neighbour shows, and so does a token of the own text.
    merged = np.where(real, 1, 0).astype(np.int32)
    disturbed = tokens.copy()
    disturbed[0, :5] = (disturbed[0, :5] + 31) % VOCABULARY
    last = slice(303, 320)  # the fourth text of row 0
    one = run((tokens, merged, positions), causal)
    other = run((disturbed, merged, positions), causal)
    assert np.abs(one[0, last] - other[0, last]).max() > 1e-3
    disturbed = tokens.copy()
    disturbed[0, 303] = (disturbed[0, 303] + 31) % VOCABULARY
    assert np.abs(run((disturbed, segment_ids, positions), causal)[0, last] - base[0, last]).max() > 1e-3


def test_causal_sees_no_later_token_and_bidirectional_does():
    tokens, segment_ids, positions = packed()
    later = tokens.copy()
    later[0, 200] = (later[0, 200] + 31) % VOCABULARY
    for causal in (True, False):
        base = run((tokens, segment_ids, positions), causal)
        moved = run((later, segment_ids, positions), causal)
        assert np.array_equal(base[0, :200], moved[0, :200]) == causal
        assert np.abs(base[0, 200:300] - moved[0, 200:300]).max() > 1e-3


def test_packed_equals_padded_equals_alone():
    tokens, segment_ids, positions = packed()
    base = run((tokens, segment_ids, positions), False)
    for row, part in texts(segment_ids):
        length = part.stop - part.start
        alone = np.zeros((3, ROWS, LENGTH), np.int32)
        alone[0, 0, :length], alone[1, 0, :length] = tokens[row, part], 1
        alone[2, 0, :length] = np.arange(length)
        hidden = run(tuple(alone), False)[0, :length]
        np.testing.assert_allclose(hidden, base[row, part], rtol=0, atol=TOLERANCE)
    # And with no padding at all, in an array of its own length.
    row, part = 1, slice(0, LENGTHS[1][0])
    length = part.stop
    places = np.arange(length, dtype=np.int32)[None]
    batch = (tokens[row : row + 1, part], np.ones_like(places), places)
    np.testing.assert_allclose(run(batch, False)[0], base[row, part], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_gradients_equal_torch_autograd():
    import torch

    # The gradient of a packed batch is the sum of the gradients of its texts alone.
    tokens, segment_ids, positions = packed()
    factors = np.random.default_rng(1).normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    factors *= (segment_ids > 0)[..., None]
    _, params, forward, _ = our_model(False)
    gradient = flatten(
        jax.jit(jax.grad(lambda p: (forward(p, tokens, segment_ids, positions) * factors).sum()))(params)
    )
    model = torch_model()
    model.zero_grad()
    for row, part in texts(segment_ids):
        (torch_hidden(tokens[row, part], False) * torch.tensor(factors[row, part])).sum().backward()
    named = dict(model.named_parameters())
    expected = from_torch(lambda name: named[name].grad.numpy().copy())
    model.zero_grad()
    assert gradient.keys() == expected.keys()
    for path, exact in expected.items():
        scale = np.abs(exact).max()
        assert scale > 0
        np.testing.assert_allclose(gradient[path], exact, rtol=0, atol=5e-5 * scale, err_msg=path)


def test_each_parameter_takes_part():
    # Control for the weight mapping: heads or layers in another order, or a norm left out, must show.
    batch = packed()
    _, params, _, _ = our_model(False)
    base = run(batch, False)
    real = batch[1] > 0
    for path, value in flatten(params).items():
        changed = flatten(params)
        changed[path] = jnp.roll(value, 1, axis=0 if path.startswith("layers") else -1)
        assert np.abs(run(batch, False, nest(changed))[real] - base[real]).max() > 1e-3, path


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config(False).causal = True


def gradient_and_program(**fields):
    """The gradients of a model with other fields, all with the same weights, and its jaxpr."""
    tokens, segment_ids, positions = packed()
    graph, state = nnx.split(qwen3.Qwen3(dataclasses.replace(config(False), **fields), rngs=nnx.Rngs(0)))

    def loss(state):
        return jnp.square(nnx.merge(graph, state)(tokens, segment_ids, positions)).sum()

    return jax.tree.leaves(jax.jit(jax.grad(loss))(state)), str(jax.make_jaxpr(jax.grad(loss))(state))


def assert_equal_gradients(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())


@pytest.mark.slow
def test_the_remat_policy_changes_no_gradient():
    nothing, few = gradient_and_program(remat_policy=())
    everything, many = gradient_and_program(remat_policy=qwen3.SAVEABLE)
    products = f"f32[{LAYERS},{ROWS},{LENGTH},{MLP}]"  # of every layer, what the MLP multiplies
    assert products in many and products not in few
    assert_equal_gradients(nothing, everything)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_blocks_without_a_loop_have_the_same_gradients(remat):
    loop, program = gradient_and_program(remat=remat)
    unrolled, other = gradient_and_program(remat=remat, unroll=LAYERS + 1)
    assert f"unroll={LAYERS}" not in program and f"unroll={LAYERS}" in other
    assert_equal_gradients(loop, unrolled)


def test_an_unknown_remat_policy_is_bad_input():
    with pytest.raises(BadInput, match="remat_policy='mixed' is not one of projections, attention, mlp"):
        dataclasses.replace(config(False), remat_policy=("mixed",))


def test_a_loop_computes_one_block_at_least():
    with pytest.raises(BadInput, match="Qwen3Config.unroll=0; set it to 1 or more"):
        dataclasses.replace(config(False), unroll=0)


@pytest.mark.parametrize("name", ["vocab_size", "width", "mlp_width", "layers", "query_heads", "kv_heads", "head_dim"])
def test_a_size_of_nothing_is_bad_input(name):
    with pytest.raises(BadInput, match=f"Qwen3Config.{name}=0; set it to 1 or more"):
        dataclasses.replace(config(False), **{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize("theta, head_dim", [(1e4, 64), (1e5, 64), (1e6, 128), (5e5, 128)])
def test_angles_far_into_a_text_are_those_of_transformers(theta, head_dim):
    import torch
    import transformers

    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    config = transformers.Qwen3Config(head_dim=head_dim, **rope)
    rotary = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)
    positions = np.array([[1, 2047, 32767]])
    with torch.inference_mode():
        theirs = rotary(torch.zeros(1), torch.tensor(positions))[0].numpy()[0, :, : head_dim // 2]
    ours = np.asarray(qwen3.rotary_angles(jnp.asarray(positions), head_dim, theta)[0])[0, :, 0]
    # The last bit of one frequency may differ.
    assert (np.abs(ours - theirs).max(axis=0) > 1e-6).sum() <= 1
    # Negative control: the same frequencies, rounded once.
    once = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    assert (np.abs(np.cos(positions[0][:, None] * once) - theirs).max(axis=0) > 1e-6).sum() > 5
