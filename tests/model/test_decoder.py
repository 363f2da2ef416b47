"""The decoder against NumPy, gradients included; the cached pass against the whole one; padding, causality, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import Decoder, DecoderConfig, after_start, before_end
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import Open
from i3d_jax.model.layers import sinusoidal_positions
from tests.model.test_layers import randomised, reference_norm

LAYERS, WIDTH, HEADS, VOCABULARY, FRAMES = 2, 8, 2, 6, 5
CONFIG = DecoderConfig(num_layers=LAYERS, num_heads=HEADS, ffn_dim=12)
DECODER = Decoder(CONFIG, WIDTH, VOCABULARY)
PARAMS = randomised(jax.jit(DECODER.init)(jax.random.key(0)))
STATES = jax.random.normal(jax.random.key(1), (2, FRAMES, WIDTH))
MASK = jnp.arange(FRAMES)[None] < jnp.array([FRAMES, 3])[:, None]
TOKENS = jnp.array([[5, 1, 2, 3], [5, 4, 4, 2]])

apply = jax.jit(DECODER.apply)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attention(q, k, v, past):
    mixed, size = np.zeros_like(q), WIDTH // HEADS
    for part in (slice(h * size, (h + 1) * size) for h in range(HEADS)):
        for t in range(len(q)):
            stop = t + 1 if past else len(k)
            scores = k[:stop, part] @ q[t, part] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[t, part] = weights / weights.sum() @ v[:stop, part]
    return mixed


def reference(params, tokens, states):
    """Logits of one utterance without padding, in float64."""
    x = params["embedding"][tokens] * np.sqrt(WIDTH) + sinusoidal_positions(len(tokens), WIDTH)
    for n in range(LAYERS):
        p = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        x = x + dense(
            attention(*np.split(dense(reference_norm(x, p["own_norm"]), p["qkv"]), 3, -1), True), p["own_output"]
        )
        query = dense(reference_norm(x, p["cross_norm"]), p["query"])
        cross = attention(query, *np.split(dense(states, p["kv"]), 2, -1), False)
        x = x + dense(cross, p["cross_output"])
        hidden = np.maximum(dense(reference_norm(x, p["ffn"]["norm"]), p["ffn"]["hidden"]), 0)
        x = x + dense(hidden, p["ffn"]["output"])
    return dense(reference_norm(x, params["output"]["norm"]), params["output"]["projection"])


def doubles(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_teacher_forcing_against_loops():
    logits = apply(PARAMS, TOKENS, STATES, MASK)
    for row, frames in enumerate((FRAMES, 3)):
        expected = reference(doubles(PARAMS), np.asarray(TOKENS[row]), doubles(STATES[row, :frames]))
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_gradients_against_finite_differences_of_the_reference():
    weights = np.random.default_rng(2).standard_normal((4, VOCABULARY))
    gradient = jax.grad(lambda p, s: jnp.sum(apply(p, TOKENS[:1], s[:1], MASK[:1])[0] * weights), argnums=(0, 1))
    gradients = doubles(gradient(PARAMS, STATES))
    params, states = doubles((PARAMS, STATES))

    def along(direction, size):
        moved = jax.tree.map(lambda x, d: x + size * d, (params, states), direction)
        return float(np.sum(reference(moved[0], np.asarray(TOKENS[0]), moved[1][0]) * weights))

    leaves, tree = jax.tree.flatten((params, states))
    generator = np.random.default_rng(3)
    for index, leaf in enumerate(leaves):  # each parameter by itself
        direction = [np.zeros_like(other) for other in leaves]
        direction[index] = generator.standard_normal(leaf.shape)
        if index == len(leaves) - 1:
            direction[index][1:] = 0
        direction = jax.tree.unflatten(tree, direction)
        found = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True))
        expected = (along(direction, 1e-6) - along(direction, -1e-6)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def stepwise(decoder, params, tokens, states, mask, length):
    """Logits of hypotheses [B, K, U], a token at a time."""
    cache = decoder.start(params, states, mask, tokens.shape[1], length)

    def step(cache, of):
        logits, cache = decoder.step(params, cache, *of)
        return cache, logits

    per_step = jnp.moveaxis(tokens, 2, 0), jnp.arange(tokens.shape[2])
    return jnp.moveaxis(jax.lax.scan(step, cache, per_step)[1], 0, 2)


@pytest.mark.parametrize("precision, bound", [("float32", 2e-5), ("bfloat16", 0.1)])
def test_the_cached_pass_equals_the_whole_one(precision, bound):
    decoder = Decoder(CONFIG, WIDTH, VOCABULARY, precision)
    hypotheses = jnp.stack([TOKENS, TOKENS[:, ::-1].at[:, 0].set(5), TOKENS.at[:, 2].set(1)], axis=1)
    stepped = jax.jit(stepwise, static_argnums=(0, 5))(decoder, PARAMS, hypotheses, STATES, MASK, 7)
    for k in range(3):
        whole = decoder.apply(PARAMS, hypotheses[:, k], STATES, MASK)
        np.testing.assert_allclose(stepped[:, k], whole, rtol=bound, atol=bound)


@given(st.tuples(st.integers(1, FRAMES), st.integers(1, FRAMES)), st.integers(1, 4), st.integers(0, 2**31))
def test_padding_neighbours_and_the_future_do_not_matter(frames, length, seed):
    mask = jnp.arange(FRAMES + 2)[None] < jnp.array(frames)[:, None]
    states = jnp.pad(STATES, ((0, 0), (0, 2), (0, 0)))
    noise = 1e3 * jax.random.normal(jax.random.key(seed), states.shape)
    tokens = jnp.pad(TOKENS, ((0, 0), (0, 1)))
    other = jnp.where(jnp.arange(5)[None] < length, tokens, seed % VOCABULARY)
    whole = apply(PARAMS, tokens, states, mask)[:, :length]
    padded = apply(PARAMS, other, jnp.where(mask[..., None], states, jnp.where(noise > 0, noise, jnp.nan)), mask)
    np.testing.assert_array_equal(padded[:, :length], whole)
    swapped = apply(PARAMS, tokens[::-1], states[::-1], mask[::-1])[::-1, :length]
    np.testing.assert_allclose(swapped, whole, rtol=1e-5, atol=1e-5)
    alone = apply(PARAMS, tokens[:1, :4], STATES[:1], mask[:1, :FRAMES])[0, : min(length, 4)]
    np.testing.assert_allclose(alone, whole[0, :4], rtol=1e-5, atol=1e-5)


def test_gradients_do_not_reach_padding_and_are_the_same_with_remat_and_gathering():
    def loss(params, states, **how):
        keys = jax.random.split(jax.random.key(4), 2)
        return jnp.sum(jnp.square(DECODER.apply(params, TOKENS, states, MASK, dropout_keys=keys, **how)))

    gathered = []

    def gather(tree):
        gathered.append(jax.tree.structure(tree))
        return tree

    def gradient(**how):
        return jax.jit(jax.grad(lambda p, s: loss(p, s, **how), argnums=(0, 1)))(PARAMS, STATES)

    expected = gradient()
    assert not np.any(np.asarray(expected[1])[~np.asarray(MASK)])
    for how in ({"remat": "dense"}, {"remat": "full"}, {"gather": gather}):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), gradient(**how), expected)
    whole = {name: PARAMS[name] for name in ("embedding", "output")}
    assert set(gathered) == {jax.tree.structure(whole), jax.tree.structure(PARAMS["layers"])}


def test_dropout_is_a_function_of_the_row():
    keys = jax.random.split(jax.random.key(4), 2)
    both, one = (apply(PARAMS, TOKENS[r], STATES[r], MASK[r], dropout_keys=keys[r]) for r in (slice(0, 2), slice(1, 2)))
    np.testing.assert_allclose(both[1:], one, rtol=1e-5, atol=1e-5)
    assert np.abs(both - apply(PARAMS, TOKENS, STATES, MASK)).max() > 0.1


@given(st.lists(st.integers(1, 4), max_size=4))
def test_transcripts_are_shifted_by_one(labels):
    padded = jnp.array([labels + [0] * (4 - len(labels))], jnp.int32)
    given_ids = after_start(padded, VOCABULARY)[0]
    targets, mask = before_end(padded, jnp.array([len(labels)]), VOCABULARY)
    assert given_ids[: len(labels) + 1].tolist() == [5, *labels]
    assert targets[0][mask[0]].tolist() == [*labels, 5]


@pytest.mark.parametrize("layers", [0, 2])
def test_the_model_has_a_decoder_only_when_asked(layers):
    encoder = EncoderConfig(num_layers=1, d_model=WIDTH, num_heads=HEADS, ffn_dim=8)
    model, plain = (
        ASRModel(ModelConfig(encoder=encoder, decoder=DecoderConfig(n, HEADS, 12)), 8, VOCABULARY) for n in (layers, 0)
    )
    params, without = (jax.jit(m.init)(jax.random.key(0)) for m in (model, plain))
    decoder = params.pop("decoder", None)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, without))
    assert (decoder is None) == (layers == 0)
    features, labels = jax.random.normal(jax.random.key(1), (2, 40, 8)), jnp.array([[1, 2, 3], [4, 0, 0]])
    mask = jnp.arange(40)[None] < jnp.array([40, 30])[:, None]
    whole = without | ({"decoder": decoder} if decoder else {})
    run = jax.jit(model.apply, static_argnums=3)
    output = run(whole, features, mask, Open(), labels=labels)
    assert run(whole, features, mask, Open()).decoder_logits is None
    if not layers:
        assert output.decoder_logits is None
        return
    # The decoder reads the states that the CTC head projects.
    kernel = jnp.concatenate([jnp.eye(WIDTH), jnp.zeros((WIDTH, VOCABULARY))], axis=1)[:, :VOCABULARY]
    head = {"norm": whole["head"]["norm"], "projection": {"kernel": kernel, "bias": jnp.zeros(VOCABULARY)}}
    seen = run(whole | {"head": head}, features, mask, Open(), labels=labels).logits
    x, frames = model.embed(whole, features, mask)
    states = model.normalise(whole, model.encoder.apply(whole, x, frames, Open()).x)
    np.testing.assert_allclose(states[..., :VOCABULARY], seen, rtol=1e-4, atol=1e-4)
    expected = model.decoder.apply(decoder, after_start(labels, VOCABULARY), states, frames)
    np.testing.assert_allclose(output.decoder_logits, expected, rtol=1e-4, atol=1e-4)
