"""The contract of the executions: one definition of the model, several ways to run it, the same result.

Every execution is run on the same waveforms with the same decision; branch calls are counted where the branch runs,
not read from the gates.
"""

from collections import Counter
from functools import cached_property, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.experimental import io_callback

from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.inference import execution as execution_module
from i3d_jax.inference.eager import EagerProgram
from i3d_jax.inference.execution import EXECUTIONS, Pipeline
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig, conditional, masked
from i3d_jax.model.gates import Fixed, GateConfig, Open, Threshold, inference_decision
from i3d_jax.model.layers import FeedForward, SelfAttention
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.warm_start import warm_start

LAYERS, GATES, VOCABULARY, SAMPLES = 3, 2, 11, 8000
LENGTHS = (8000, 5200, 3000)
PREDICTORS = ("none", "local", "global")
CASES = (*PREDICTORS, "self-conditioned")


class Case:
    """A pipeline with parameters whose gates vary with the input, and waveforms of three lengths."""

    def __init__(self, case):
        predictor, taps = ("global", (1, 2)) if case == "self-conditioned" else (case, ())
        encoder = EncoderConfig(num_layers=LAYERS, d_model=16, num_heads=2, ffn_dim=32)
        gates = GateConfig(predictor=predictor)
        config = ModelConfig(SubsamplingConfig(channels=4), encoder, gates, self_conditioned_layers=taps)
        self.model = ASRModel(config, 80, VOCABULARY)
        self.pipeline = Pipeline(FrontendConfig(normalization="none"), self.model)
        self.params = self.model.init(jax.random.key(0))
        self.params["subsampling"]["out"]["kernel"] *= 10  # frames beside which positions are small, as after training
        if predictor != "none":
            logits = self.params["predictor"]["logits"]
            key = jax.random.key({"local": 9, "global": 5}[predictor])  # whose gates differ between the utterances
            logits["kernel"] = jax.random.normal(key, logits["kernel"].shape)
            logits["bias"] = jnp.zeros_like(logits["bias"])
        generator = np.random.default_rng(0)
        self.num_samples = np.array(LENGTHS, np.int32)
        self.waveform = np.zeros((3, SAMPLES), np.float32)
        for row, length in enumerate(LENGTHS):
            level = (0.3, 0.03, 0.003)[row]  # without normalisation, so that the predictors see it
            tone = np.sin(np.arange(length) * (0.05 + 0.1 * row)) * np.linspace(0, 1, length)
            self.waveform[row, :length] = level * tone + 0.1 * level * generator.standard_normal(length)

    def run(self, execution, decide, rows=(0, 1, 2), waveform=None):
        """Recognition of the rows: as one batch, or one after the other for ``eager``."""
        waveform = self.waveform if waveform is None else waveform
        program = self.pipeline.program(execution, self.params)
        groups = [[row] for row in rows] if execution == "eager" else [list(rows)]
        parts = [jax.device_get(program(waveform[g], self.num_samples[g], self._of(decide, g))) for g in groups]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    @cached_property
    def project(self):
        """The compiled head."""
        return jax.jit(self.model.project)

    @staticmethod
    def _of(decide, rows):
        return Fixed(decide.mask[rows]) if isinstance(decide, Fixed) and decide.mask.ndim == 3 else decide

    @partial(jax.jit, static_argnums=(0, 2))
    def logits(self, decide, execute):
        """Model output of the compiled executions."""
        features, mask = self.pipeline.features(jnp.asarray(self.waveform), jnp.asarray(self.num_samples))
        return self.model.apply(self.params, features, mask, decide, execute=execute)


@pytest.fixture(scope="module")
def cases():
    return {case: Case(case) for case in CASES}


def assert_same(a, b, beta=0.5):
    """Equal tokens; probabilities within 1e-5; equal decisions where the probability is not on the edge."""
    np.testing.assert_allclose(a.gate_probabilities, b.gate_probabilities, atol=1e-5)
    clear = np.abs(a.gate_probabilities - beta) > 1e-4
    np.testing.assert_array_equal(a.gates[clear], b.gates[clear])
    for row in range(len(a.num_tokens)):
        np.testing.assert_array_equal(a.tokens[row][: a.num_tokens[row]], b.tokens[row][: b.num_tokens[row]])
    np.testing.assert_array_equal(a.num_frames, b.num_frames)


patterns = st.one_of(
    st.just(np.ones((3, LAYERS, GATES), bool)),
    st.just(np.zeros((3, LAYERS, GATES), bool)),
    hnp.arrays(bool, (3, LAYERS, GATES)),
    hnp.arrays(bool, (1, LAYERS, GATES)).map(lambda p: np.repeat(p, 3, axis=0)),
)


@settings(max_examples=25, deadline=None)
@given(patterns, st.sampled_from(CASES))
def test_forced_patterns_give_the_same_result_in_every_execution(cases, pattern, predictor):
    case = cases[predictor]
    results = {execution: case.run(execution, Fixed(pattern)) for execution in EXECUTIONS}
    for execution in EXECUTIONS:
        assert_same(results["masked"], results[execution])
        np.testing.assert_array_equal(results[execution].gates, pattern)


def encode_eagerly(case, decide, row):
    """CTC logits of the host loop for one utterance."""
    program = EagerProgram(case.model, case.pipeline.eager_pieces, case.params)
    seen = []
    finish = program._pieces.finish

    def keep(params, x, mask):
        seen.append(np.asarray(case.project(params, x)))
        return finish(params, x, mask)

    program._pieces = program._pieces._replace(finish=keep)
    program(case.waveform[[row]], case.num_samples[[row]], decide)
    return seen[0]


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(bool, (3, LAYERS, GATES)), st.sampled_from(CASES))
def test_forced_patterns_give_logits_within_1e5(cases, pattern, predictor):
    case = cases[predictor]
    reference = case.logits(Fixed(pattern), masked)
    valid = np.asarray(reference.mask)
    scale = np.abs(np.asarray(reference.logits)).max()
    other = case.logits(Fixed(pattern), conditional)
    assert np.abs(np.asarray(other.logits - reference.logits))[valid].max() <= 1e-5 * scale
    for row in range(3):
        eager = encode_eagerly(case, Fixed(pattern[row : row + 1]), row)
        assert np.abs(eager[0] - reference.logits[row])[valid[row]].max() <= 1e-5 * scale


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("predictor", CASES)
def test_predicted_gates_agree(cases, predictor, beta):
    case = cases[predictor]
    decide = inference_decision(case.model.config.gates, beta)
    results = {execution: case.run(execution, decide) for execution in EXECUTIONS}
    for execution in EXECUTIONS:
        assert_same(results["masked"], results[execution], beta)
    if predictor != "none" and beta in (0.0, 1.0):
        assert results["masked"].gates.all() == (beta == 0.0)


@pytest.mark.parametrize("predictor", ["local", "global"])
def test_the_cases_have_input_dependent_gates(cases, predictor):
    gates = cases[predictor].run("masked", Threshold(0.5)).gates
    assert len({row.tobytes() for row in gates}) > 1 and 0 < gates.mean() < 1


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("predictor", CASES)
def test_batch_and_padding_do_not_matter(cases, predictor, execution):
    case = cases[predictor]
    decide = inference_decision(case.model.config.gates)
    together = case.run(execution, decide)
    poisoned = case.waveform.copy()
    for row, length in enumerate(LENGTHS):
        poisoned[row, length:] = np.nan
    assert_same(together, case.run(execution, decide, waveform=poisoned))
    for row in range(3):
        alone = case.run(execution, decide, rows=(row,))
        assert_same(alone, jax.tree.map(lambda leaf, row=row: leaf[[row]], together))
        longer = np.concatenate([case.waveform, np.full((3, 4000), np.nan, np.float32)], axis=1)
        padded = case.run(execution, decide, rows=(row,), waveform=longer)
        np.testing.assert_array_equal(padded.tokens[0][: padded.num_tokens[0]], alone.tokens[0][: alone.num_tokens[0]])
        np.testing.assert_allclose(padded.gate_probabilities, alone.gate_probabilities, atol=1e-5)


def counting(counter):
    """Patch the branches so that every run of one, compiled or not, is counted on the host."""

    def patch(cls, name):
        original = cls.__call__

        def call(self, x, context, dropout_keys=None):
            def count(_):
                counter[name] += 1
                return np.int32(0)

            zero = io_callback(count, jax.ShapeDtypeStruct((), jnp.int32), x.sum().astype(jnp.int32) * 0)
            return original(self, x, context, dropout_keys) + zero.astype(x.dtype)

        return mock.patch.object(cls, "__call__", call)

    return patch(SelfAttention, "mha"), patch(FeedForward, "ffn")


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("predictor", CASES)
def test_unwanted_branches_are_never_run_and_counts_are_reported(predictor, execution):
    counter = Counter()
    patches = counting(counter)
    with patches[0], patches[1]:
        case = Case(predictor)
        decisions = [inference_decision(case.model.config.gates), Fixed(np.zeros((LAYERS, GATES), bool)), Open()]
        decisions.append(Fixed(np.array([[True, False], [False, False], [False, True]])))
        for decide in decisions:
            for row in range(3):
                counter.clear()
                gates = case.run(execution, decide, rows=(row,)).gates[0]
                jax.effects_barrier()
                wanted = np.full((LAYERS, GATES), True) if execution == "masked" else gates
                assert [counter["mha"], counter["ffn"]] == wanted.sum(axis=0).tolist()
        if execution == "conditional":
            pattern = np.zeros((3, LAYERS, GATES), bool)
            pattern[1, 0, 1] = pattern[2, 0, 1] = pattern[0, 2, 0] = True
            counter.clear()
            case.run(execution, Fixed(pattern))
            jax.effects_barrier()
            assert counter == {"ffn": 1, "mha": 1}


@pytest.mark.parametrize("frames_at_once, size", [(1, 1), (12, 2), (1000, 3)])  # an utterance has 11 frames
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_compacted_batches_run_each_branch_for_the_rows_that_want_it(predictor, frames_at_once, size, monkeypatch):
    monkeypatch.setattr(execution_module, "_FRAMES_AT_ONCE", {"cpu": frames_at_once})
    counter = Counter()
    patches = counting(counter)
    with patches[0], patches[1]:
        case = Case(predictor)
        pattern = np.random.default_rng(1).random((3, LAYERS, GATES)) < 0.5
        for decide in (inference_decision(case.model.config.gates), Fixed(pattern)):
            counter.clear()
            gates = case.run("compacted", decide).gates
            jax.effects_barrier()
            parts = -(-gates.sum(axis=0) // size)
            assert [counter["mha"], counter["ffn"]] == parts.sum(axis=0).tolist()


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_devices_skip_what_their_own_rows_do_not_want(predictor):
    counter = Counter()
    patches = counting(counter)
    with patches[0], patches[1]:
        case = Case(predictor)
        decide = inference_decision(case.model.config.gates)
        whole = case.run("conditional", decide)
        case.pipeline = Pipeline(case.pipeline.frontend, case.model, devices=jax.devices()[:3])
        for execution in ("masked", "conditional"):
            assert_same(case.run(execution, decide), whole)
        counter.clear()
        gates = case.run("conditional", decide).gates
        jax.effects_barrier()
        assert [counter["mha"], counter["ffn"]] == gates.sum(axis=(0, 1)).tolist()
        pattern = np.zeros((3, LAYERS, GATES), bool)
        pattern[1, 0, 1] = pattern[2, 0, 1] = pattern[0, 2, 0] = True
        counter.clear()
        np.testing.assert_array_equal(case.run("conditional", Fixed(pattern)).gates, pattern)
        jax.effects_barrier()
        assert counter == {"ffn": 2, "mha": 1}
    lowered = case.pipeline.conditional.lower(case.params, case.waveform, case.num_samples, decide)
    assert not any(word in lowered.compile().as_text() for word in ("all-gather", "all-reduce", "all-to-all"))


def test_eager_takes_one_utterance(cases):
    case = cases["none"]
    with pytest.raises(ValueError, match="one utterance"):
        case.pipeline.program("eager", case.params)(case.waveform, case.num_samples, Open())
    with pytest.raises(ValueError, match="choose one of"):
        case.pipeline.program("fast", case.params)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("predictor", ["local", "global"])
def test_a_warm_started_model_starts_as_the_dense_one(cases, predictor, execution):
    dense, gated = cases["none"], Case(predictor)
    gated.params = warm_start(gated.model.init(jax.random.key(7)), dense.params)
    result = gated.run(execution, inference_decision(gated.model.config.gates))
    assert result.gates.all()
    reference = dense.run(execution, Open())
    np.testing.assert_array_equal(result.tokens, reference.tokens)
