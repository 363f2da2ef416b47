"""Every experiment's training and evaluation step traces at the shapes it will run with; nothing is compiled."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from i3d_jax.audio.frontend import GlobalStats
from i3d_jax.experiment import load_config
from i3d_jax.inference.execution import Pipeline
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.gates import inference_decision
from i3d_jax.training.optimizer import make_optimizer
from i3d_jax.training.step import StepConfig, init_state, make_train_step
from i3d_jax.types import Batch

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
PAPER_LAYERS = {"librispeech100": 36, "an4": 12, "demo": 6}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_steps_trace(path):
    config = load_config(path)
    encoder = config.model.encoder
    assert encoder.num_layers == PAPER_LAYERS[path.stem.split("_")[0]]
    rows, vocabulary = config.batching.batch_multiple, config.tokenizer.vocab_size + 1
    samples, labels = int(config.data.max_seconds * config.data.sample_rate), 40
    model = ASRModel(config.model, config.frontend.num_mels, vocabulary)
    stats = None
    if config.frontend.normalization == "global":
        stats = GlobalStats(jnp.zeros(config.frontend.num_mels), jnp.ones(config.frontend.num_mels))
    optimizer = make_optimizer(config.optimizer, 1000)
    step = make_train_step(
        model, StepConfig(config.frontend, config.augment, config.loss, config.seed), optimizer, stats
    )

    def shape(dimensions, dtype):
        return jax.ShapeDtypeStruct(dimensions, dtype)

    batch = Batch(
        shape((rows, samples), jnp.float32),
        shape((rows,), jnp.int32),
        shape((rows, labels), jnp.int32),
        shape((rows,), jnp.int32),
        shape((rows,), jnp.bool_),
        shape((rows,), jnp.uint32),
    )
    state = jax.eval_shape(lambda: init_state(model.init(jax.random.key(0)), optimizer))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics.totals.loss.shape == ()

    pipeline = Pipeline(config.frontend, model, stats)
    decide = inference_decision(config.model.gates)
    for program in (pipeline.masked, pipeline.conditional):
        recognition = jax.eval_shape(program, state.params, batch.waveform, batch.num_samples, decide)
        assert recognition.gates.shape == (rows, encoder.num_layers, 2) and recognition.gates.dtype == bool


@pytest.mark.parametrize("name", ["transformer", "i3d_local", "i3d_global"])
def test_the_paper_size_is_the_papers(name):
    config = load_config(Path(__file__).parents[1] / "configs" / f"librispeech100_{name}.py")
    encoder = config.model.encoder
    assert (encoder.num_layers, encoder.d_model, encoder.num_heads, encoder.ffn_dim) == (36, 256, 4, 1024)
    assert config.model.gates.predictor == {"transformer": "none", "i3d_local": "local", "i3d_global": "global"}[name]
