"""The paper's encoder in the benchmarks: a model of its size, patterns of open gates, and every execution of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.inference.eager import EagerProgram
from i3d_jax.inference.execution import Pipeline
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig, Params, conditional, masked
from i3d_jax.model.gates import Fixed, GateConfig
from i3d_jax.model.layers import layer_norm

LAYERS, BRANCHES, WIDTH, HEADS, FFN = 36, 2, 256, 4, 1024
MELS, VOCABULARY = 80, 500
FRAMES = {5: 124, 15: 374, 30: 749}
"""Seconds of audio -> encoder frames."""

Program = Callable[[np.ndarray], jax.Array]
"""A pattern [B, N, M] of open gates to encoder states [B, T, D]."""


def paper_model(
    layers: int = LAYERS,
    predictor: Any = "none",
    *,
    width: int = WIDTH,
    heads: int = HEADS,
    ffn: int = FFN,
    vocabulary: int = VOCABULARY,
    dropout: float = 0.1,
) -> ASRModel:
    """A recogniser of the paper's size unless told otherwise; ``dropout`` is every rate."""
    encoder = EncoderConfig(layers, width, heads, ffn, dropout, dropout, positional_dropout=dropout)
    return ASRModel(ModelConfig(encoder=encoder, gates=GateConfig(predictor=predictor)), MELS, vocabulary)


def spread(blocks: int, layers: int = LAYERS) -> np.ndarray:
    """[1, N, M], ``blocks`` of them open, evenly spread in each branch; an even number is whole layers."""
    pattern = np.zeros((1, layers, BRANCHES), bool)
    for branch in range(BRANCHES):
        own = (blocks + branch) // BRANCHES
        pattern[0, np.floor((np.arange(own) + 0.5) * layers / max(own, 1)).astype(int), branch] = True
    return pattern


def mixed(blocks: int, rows: int) -> np.ndarray:
    """[rows, N, M], ``blocks`` open in every row, others in each."""
    rng = np.random.default_rng(blocks)
    own = [(blocks + branch) // BRANCHES for branch in range(BRANCHES)]
    return np.stack([np.stack([rng.permutation(LAYERS) < count for count in own], -1) for _ in range(rows)])


def programs(model: ASRModel, params: Params, x: jax.Array, whole: bool = False) -> dict[str, Program]:
    """Execution -> function of gates that encodes ``x``, compiled at the first call; ``eager`` for one row only.

    Args:
      model: the recogniser.
      params: its parameters.
      x: the blocks' input [B, T, D], or features [B, T, F].
      whole: from features to the final norm, or the blocks alone.
    """
    encoder = model.encoder
    mask = jnp.ones(x.shape[:2], bool)

    def start(params: Params, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.embed(params, x, mask) if whole else (x, mask)

    def end(params: Params, x: jax.Array) -> jax.Array:
        norm = layer_norm("norm", model.config.precision)
        return norm.apply({"params": params["head"]["norm"]}, x) if whole else x  # type: ignore[return-value]

    def one_program(execute: Any, params: Params) -> Program:
        def run(params: Params, x: jax.Array, mask: jax.Array, gates: jax.Array) -> jax.Array:
            x, mask = start(params, x, mask)
            return end(params, encoder.apply(params, x, mask, Fixed(gates), execute=execute).x)

        return partial(jax.jit(run), params, x, mask)

    pipeline, unstacked = Pipeline(FrontendConfig(), model), encoder.unstack(params)
    found = {"masked": one_program(masked, params), "conditional": one_program(conditional, unstacked)}
    if len(x) > 1:
        return found | {"compacted": one_program(pipeline.compact, params)}
    loop = EagerProgram(pipeline.model, pipeline.eager_pieces, unstacked)
    first, last, outside = jax.jit(start), jax.jit(end), {part: params[part] for part in ("subsampling", "head")}

    def eager(gates: np.ndarray) -> jax.Array:
        y, valid = first(outside, x, mask) if whole else (x, mask)
        y = loop.encode(y, valid, Fixed(gates), np.swapaxes(gates, 0, 1))[0]
        return last(outside, y) if whole else y

    return found | {"eager": eager}
