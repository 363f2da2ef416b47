"""What the programs of the executions give, whole and on the way."""

from typing import Literal, NamedTuple

import jax

from i3d_jax.inference.prefix_beam import NBest
from i3d_jax.types import Array

Kept = Literal["tokens", "scores", "states"]
"""What programs give for a decoder: greedy tokens alone, or the CTC scores of all tokens too, or encoder states too."""


class CTCScores(NamedTuple):
    """Log probabilities [B, T, V] of the CTC head; mask [B, T], True = valid frame.

    ``states`` [B, T, D] are the normalised encoder states that they are of, for an attention decoder.
    """

    log_probs: Array
    mask: Array
    states: Array | None = None


class Recognition(NamedTuple):
    """Tokens [B, T] (0 beyond num_tokens [B]), gates [B, N, M] bool, gate probabilities [B, N, M], frames [B].

    ``num_frames`` counts feature frames, before subsampling; ``path`` and ``blank_margin`` [B, T] are those of
    `frame_path`. The rest is there where it was asked for: the ``scores`` that a decoder begins with; the log
    probabilities of the path [B, T], and the best token sequences, that it leaves (`inference.decoder`).
    """

    tokens: Array
    num_tokens: Array
    gates: Array
    gate_probabilities: Array
    num_frames: Array
    path: Array
    blank_margin: Array
    scores: CTCScores | None = None
    path_log_probs: Array | None = None
    n_best: NBest | None = None


class Start(NamedTuple):
    """What is known before the first layer; gates [N, B, M] are final unless the predictor is local.

    ``x`` [B, T, D] is the encoder input, ``mask`` [B, T], ``probabilities`` [N, B, M], ``num_frames`` [B].
    """

    x: jax.Array
    mask: jax.Array
    gates: jax.Array
    probabilities: jax.Array
    num_frames: jax.Array


class Decoded(NamedTuple):
    """What follows from encoder states, as in `Recognition`."""

    tokens: jax.Array
    num_tokens: jax.Array
    path: jax.Array
    blank_margin: jax.Array
    scores: CTCScores | None

    def with_gates(self, gates: Array, probabilities: Array, num_frames: Array) -> Recognition:
        """The whole: with gates and their probabilities [B, N, M], and the number of feature frames [B]."""
        return Recognition(gates=gates, gate_probabilities=probabilities, num_frames=num_frames, **self._asdict())
