"""Training and evaluation steps trace, those of LibriSpeech-100 lower for TPU, CUDA and CPU; nothing is compiled."""

import re
from pathlib import Path

import jax
import pytest
from jax import export

from i3d_jax.experiment import load_config
from i3d_jax.programs import BatchShape, abstract

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
LAYERS = {"librispeech100": 36, "librispeech960": 36, "tedlium2": 36, "an4": 12, "demo": 6}
LOWERED = re.compile(r"librispeech100_\D+")  # one of each kind: the other sizes and corpora differ in shapes only


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_steps_trace_and_lower(path):
    config = load_config(path)
    layers = config.model.encoder.num_layers
    depth = re.search(r"(?:transformer|interctc)(\d+)$", path.stem)
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


@pytest.mark.parametrize("name", ["transformer", "i3d_local", "i3d_global"])
def test_the_paper_size_is_the_papers(name):
    config = load_config(Path(__file__).parents[1] / "configs" / f"librispeech100_{name}.py")
    encoder = config.model.encoder
    assert (encoder.num_layers, encoder.d_model, encoder.num_heads, encoder.ffn_dim) == (36, 256, 4, 1024)
    assert config.model.gates.predictor == {"transformer": "none", "i3d_local": "local", "i3d_global": "global"}[name]
