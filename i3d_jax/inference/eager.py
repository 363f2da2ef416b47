"""The eager execution: a host loop at batch 1 that calls the blocks with open gates, and no other."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.inference.recognition import Decoded, Recognition, Start
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import LayerFns, Params, check_boolean, encode_layer
from i3d_jax.model.gates import Decision
from i3d_jax.model.layers import Context
from i3d_jax.types import Array


class EagerPieces(NamedTuple):
    """The compiled pieces of the eager loop."""

    start: Callable[..., Start]
    blocks: dict[str, Callable[..., jax.Array]]
    predict: Callable[..., jax.Array]
    decide: Callable[..., jax.Array]
    probability: Callable[..., jax.Array]
    condition: Callable[..., jax.Array]
    finish: Callable[..., Decoded]


class EagerProgram:
    """The host loop: gates are read back (once for the global predictor, once a layer for local ones), and only open
    blocks are dispatched. Parameters that are still stacked are unstacked once, here.

    ``blocks`` holds one compiled function for each branch, ``(params, x, context) -> x + branch(x)``; what is not
    called there is not computed.
    """

    def __init__(self, model: ASRModel, pieces: EagerPieces, params: Params):
        """Unstack the parameters and bind the compiled pieces."""
        self.model = model
        encoder = model.encoder
        unstacked = dict(encoder.unstack(params))
        self._layers = unstacked.pop("layers")
        self._local = encoder.gates.predictor == "local"
        self._predictors = unstacked.pop("predictor") if self._local else ()
        self._params = unstacked
        self._pieces = pieces
        self.blocks = dict(self._pieces.blocks)
        # Stands in for the logits of layers whose gates are known beforehand.
        self._unused = jnp.zeros((1, len(encoder.gate_names), 2))

    def _block(self, name: str, params: Params) -> Callable[[jax.Array, Context], jax.Array]:
        return lambda x, context: self.blocks[name](params[name], x, context)

    def _layer(self, n: int) -> LayerFns:
        branches = tuple(self._block(name, self._layers[n]) for name in self.model.encoder.gate_names)
        if not self._local:
            return LayerFns(None, branches)
        return LayerFns(partial(self._pieces.predict, self._predictors[n]), branches)

    def encode(
        self, x: jax.Array, mask: jax.Array, decide: Decision, known: np.ndarray | None
    ) -> tuple[jax.Array, np.ndarray, list[np.ndarray]]:
        """The layers alone.

        Args:
          x: [1, T, D] encoder input.
          mask: [1, T].
          decide: used where ``known`` is None.
          known: gates [N, 1, M] that were decided before the first layer, on the host.

        Returns:
          x [1, T, D], gates [1, N, M], logits [1, M, 2] of every layer (none where gates were known).
        """
        context = Context(mask)
        gates, logits = [], []
        for n in range(len(self._layers)):
            if known is None:
                decide_layer = lambda z, n=n: np.asarray(self._pieces.decide(decide, z, n))  # noqa: E731
            else:
                decide_layer = lambda _, n=n: known[n]  # noqa: E731
            x, gate, logit = encode_layer(self._layer(n), x, self._unused, context, decide_layer, execute_eager)
            if n + 1 in self.model.config.self_conditioned_layers:
                x = self._pieces.condition(self._params, x)
            gates.append(gate)
            if known is None:
                logits.append(np.asarray(logit))
        return x, np.stack(gates, axis=1), logits

    def __call__(self, waveform: Array, num_samples: Array, decide: Decision) -> Recognition:
        """Recognise one utterance, waveform [1, S].

        Raises:
          ValueError: a batch of more than one utterance.
        """
        if waveform.shape[0] != 1:
            raise ValueError(f"eager execution takes one utterance at a time, got a batch of {waveform.shape[0]}")
        start = self._pieces.start(self._params, waveform, num_samples, decide)
        known = None if self._local else np.asarray(start.gates)
        x, gates, logits = self.encode(start.x, start.mask, decide, known)
        decoded = self._pieces.finish(self._params, x, start.mask)
        probabilities = self._pieces.probability(np.stack(logits)) if self._local else start.probabilities
        recognition = decoded.with_gates(gates, np.swapaxes(np.asarray(probabilities), 0, 1), start.num_frames)
        # What a decoder begins with stays on the device.
        return jax.tree.map(np.asarray, recognition._replace(scores=None))._replace(scores=decoded.scores)


def execute_eager(
    branch: Callable[[jax.Array, Context], jax.Array], x: jax.Array, gate: Array, context: Context
) -> jax.Array:
    """Call the block, residual included, or do not call it; gate [1] is on the host.

    Raises:
      TypeError: the gate is not boolean.
    """
    check_boolean(gate, "eager")
    return branch(x, context) if gate[0] else x
