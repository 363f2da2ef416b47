"""Training and evaluation steps trace, those of LibriSpeech-100 lower for TPU, CUDA and CPU; nothing is compiled."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from i3d_jax.experiment import load_config
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.model.language_model import LanguageModel
from i3d_jax.programs import BatchShape, abstract
from i3d_jax.training.language_model_step import Seeded, make_language_model_step
from i3d_jax.training.optimizer import make_optimizer
from i3d_jax.training.step import init_state
from i3d_jax.types import SentenceBatch

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
CONFIGS = [path for path in FILES if not path.stem.startswith("lm_")]
LAYERS = {"librispeech100": 36, "librispeech960": 36, "tedlium2": 36, "an4": 12, "demo": 6}
LOWERED = re.compile(r"librispeech100_(?!aed_)\D+")  # one of each kind: others differ in shapes, or join two kinds


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_steps_trace_and_lower(path):
    config = load_config(path)
    layers = config.model.encoder.num_layers
    depth = re.search(r"(?:transformer|interctc|aed)(\d+)$", path.stem)
    assert layers == (int(depth[1]) if depth else LAYERS[path.stem.split("_")[0]])
    shape = BatchShape(config.batching.batch_multiple, config.data.max_seconds, labels=40)
    for program in ("train", "masked", "conditional"):
        function, arguments = abstract(config, program, shape)
        if LOWERED.fullmatch(path.stem):
            exported = export.export(function, platforms=("tpu", "cuda", "cpu"))(*arguments)
            outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        else:
            outputs = jax.eval_shape(function, *arguments)
        if program == "train":
            state, metrics = outputs
            assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
                lambda x: (x.shape, x.dtype), arguments[0]
            )
            assert metrics.totals.loss.shape == ()
        else:
            assert outputs.gates.shape == (shape.rows, layers, 2) and outputs.gates.dtype == bool


@pytest.mark.parametrize("path", [path for path in FILES if path not in CONFIGS], ids=lambda path: path.stem)
def test_steps_of_language_models_trace_and_lower(path):
    config = load_config(path, LanguageModelExperiment)
    model = LanguageModel(config.model, 5000)
    optimizer = make_optimizer(config.optimizer, 100)
    shape, shaped = (config.batching.batch_multiple, 20), jax.ShapeDtypeStruct
    batch = SentenceBatch(shaped(shape, np.int32), shaped(shape[:1], np.int32), shaped(shape[:1], np.bool_))
    state = jax.eval_shape(lambda key: init_state(model.init(key), optimizer), jax.random.key(0))
    step = jax.jit(make_language_model_step(model, optimizer))
    exported = export.export(step, platforms=("tpu", "cuda", "cpu"))(state, batch, Seeded(shaped((), np.uint32)))
    after, metrics = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics.totals.loss.shape == ()


@pytest.mark.parametrize("name", ["transformer", "i3d_local", "i3d_global"])
def test_the_paper_size_is_the_papers(name):
    config = load_config(Path(__file__).parents[1] / "configs" / f"librispeech100_{name}.py")
    encoder = config.model.encoder
    assert (encoder.num_layers, encoder.d_model, encoder.num_heads, encoder.ffn_dim) == (36, 256, 4, 1024)
    assert config.model.decoder.num_layers == 0
    assert config.model.gates.predictor == {"transformer": "none", "i3d_local": "local", "i3d_global": "global"}[name]


@pytest.mark.parametrize("name, layers", [("", 36), ("27", 27), ("_i3d_local", 36), ("_i3d_global", 36)])
def test_the_rows_of_table_1_have_the_recipes_decoder(name, layers):
    config = load_config(Path(__file__).parents[1] / "configs" / f"librispeech100_aed{name}.py")
    encoder, decoder, loss = config.model.encoder, config.model.decoder, config.loss
    assert (encoder.num_layers, encoder.d_model, encoder.ffn_dim) == (layers, 256, 1024)
    assert (decoder.num_layers, decoder.num_heads, decoder.ffn_dim, decoder.embedding_std) == (6, 4, 2048, 1.0)
    assert decoder.dropout == decoder.attention_dropout == decoder.positional_dropout == 0.1
    assert (loss.ctc_weight, loss.label_smoothing, loss.interctc_layers) == (0.3, 0.1, ())
