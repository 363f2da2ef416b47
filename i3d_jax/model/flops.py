"""Analytic cost of a forward pass.

Counted are the matrix products and convolutions, one multiply-add being two FLOPs, on the frames that an utterance
itself has (padding costs nothing here). Left out: element-wise work (activations, softmax, layer norm, residual sums,
biases; about one percent of a paper-sized branch in XLA's count), the means that gate predictors read, and the log-mel
front end (5 MFLOP per second of audio with a 512-point FFT and 80 mels).

With T frames after the subsampling, width D and FFN width H:

    mha  2 T D 3D (q, k, v)  +  2 T T D (scores)  +  2 T T D (weighted sum)  +  2 T D D (output)
    ffn  2 T D H  +  2 T H D

An attention decoder is counted apart (`decoder_flops`): the paper gates and compares encoders, and what a search spends
on the decoder depends on its beam.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.model.asr import ModelConfig
from i3d_jax.model.gates import Budget
from i3d_jax.model.subsampling import num_subsampled_frames


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward pass by part, per utterance.

    Attributes:
      subsampling: [B], both convolutions and the linear map to D.
      branches: branch name -> [B], summed over the layers that executed the branch.
      gate_predictor: [B], every predictor MLP that runs (zero for a model without gates).
      ctc_head: [B].
      self_conditioning: [B], predictions of intermediate layers and what they add; zero without.
    """

    subsampling: np.ndarray
    branches: Mapping[str, np.ndarray]
    gate_predictor: np.ndarray
    ctc_head: np.ndarray
    self_conditioning: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """[B], the sum of all parts."""
        return sum(self.parts().values(), start=np.zeros(()))

    def parts(self) -> dict[str, np.ndarray]:
        """Part name -> [B], in the order of the forward pass."""
        return {
            "subsampling": self.subsampling,
            "gate_predictor": self.gate_predictor,
            **self.branches,
            "self_conditioning": self.self_conditioning,
            "ctc_head": self.ctc_head,
        }


def branch_costs(model_config: ModelConfig) -> dict[str, tuple[int, int]]:
    """FLOPs of one call of each gated branch, in the order of the gates' M axis: (for each frame, for each pair)."""
    d, hidden = model_config.encoder.d_model, model_config.encoder.ffn_dim
    return {"mha": (8 * d * d, 4 * d), "ffn": (4 * d * hidden, 0)}


def branch_flops(model_config: ModelConfig, frames: np.ndarray | int) -> dict[str, np.ndarray]:
    """FLOPs of one call of each gated branch on ``frames`` encoder frames, in the order of the gates' M axis."""
    t = np.asarray(frames, np.float64)
    return {name: t * each + t * t * pair for name, (each, pair) in branch_costs(model_config).items()}


def block_costs(model_config: ModelConfig, mask: jax.Array) -> jax.Array:
    """FLOPs of one block of each branch for the valid frames of mask [B, T], per frame: [B, M] float32.

    Per frame, so that they stay small numbers within a program; their ratios are what counts. 0 without frames.
    """
    frames = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    each, pair = np.array(list(branch_costs(model_config).values()), np.float32).T
    return jnp.where(frames > 0, each[None] + pair[None] * frames, 0.0)


def budget_decision(model_config: ModelConfig, share: float, beta: float = -1.0) -> Budget:
    """The most probable blocks within a share of the FLOPs of all gated blocks of the encoder."""
    costs = np.array(list(branch_costs(model_config).values()), np.int64)
    costs //= np.gcd.reduce(costs, axis=None)  # small integers, whose sums fit into 32 bits
    fixed, per_frame = costs.T.astype(np.int32)
    return Budget(share, fixed, per_frame, beta)


def encoder_share(model_config: ModelConfig, num_frames: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """FLOPs of the open gates [B, N, M] as a share of those of all blocks: [B].

    ``num_frames`` [B] counts feature frames. An utterance too short for an encoder frame has a share of 0.
    """
    costs = np.stack(list(branch_flops(model_config, num_subsampled_frames(num_frames)).values()), axis=-1)
    total = costs.sum(axis=-1) * gates.shape[1]
    return (gates.sum(axis=1) * costs).sum(axis=-1) / np.maximum(total, 1)


def count_flops_by_part(
    model_config: ModelConfig,
    *,
    num_mels: int,
    vocab_size: int,
    num_frames: int | np.ndarray,
    executed: np.ndarray | None,
) -> FlopCount:
    """FLOPs of one forward pass, by part.

    Args:
      model_config: the model.
      num_mels: mel channels F.
      vocab_size: outputs V of the CTC head, reserved ids included.
      num_frames: feature frames before the subsampling, a number or [B].
      executed: [B, N, M] boolean, the branches that are computed; None means all of them, which is also what the
        masked execution spends whatever the gates say.

    Returns:
      Counts in float64 (exact integers far beyond any model), shape [B]; B is 1 for a single number of frames.

    Raises:
      ValueError: ``executed`` does not have the shape [B, N, M] of this model.
    """
    encoder, gates = model_config.encoder, model_config.gates
    d, layers = encoder.d_model, encoder.num_layers
    channels = model_config.subsampling.channels or d
    frames = np.atleast_1d(np.asarray(num_frames, np.int64))

    frames1, frames2 = np.maximum((frames - 1) // 2, 0), num_subsampled_frames(frames)
    mels1, mels2 = max((num_mels - 1) // 2, 0), num_subsampled_frames(num_mels)
    macs = frames1 * mels1 * 9 * channels + frames2 * mels2 * 9 * channels**2 + frames2 * channels * mels2 * d

    costs = branch_flops(model_config, frames2)
    if executed is None:
        calls = np.full((1, len(costs)), layers)
    else:
        executed = np.asarray(executed)
        if executed.ndim != 3 or executed.shape[1:] != (layers, len(costs)):
            raise ValueError(
                f"executed has shape {executed.shape}; expected [B, N, M] = [B, {layers}, {len(costs)}] "
                f"(branches {', '.join(costs)})"
            )
        if frames.size != 1 and len(executed) != frames.size:
            raise ValueError(f"executed has {len(executed)} rows but num_frames {frames.size}; give one row each")
        calls = executed.astype(np.int64).sum(axis=1)
    branches = {name: calls[:, m] * cost for m, (name, cost) in enumerate(costs.items())}

    outputs = 2 * len(costs)
    predictor_macs = {
        "none": 0,
        "local": layers * gates.hidden_dim * (d + outputs),
        "global": gates.hidden_dim * (d + layers * outputs),
    }[gates.predictor]
    rows = np.ones(max(len(frames), len(calls)))
    head = 2.0 * frames2 * d * vocab_size * rows
    return FlopCount(
        subsampling=2.0 * macs * rows,
        branches=branches,
        gate_predictor=2.0 * predictor_macs * rows,
        ctc_head=head,
        self_conditioning=2 * len(model_config.self_conditioned_layers) * head,
    )


def decoder_flops(
    model_config: ModelConfig, *, vocab_size: int, num_frames: int | np.ndarray, tokens: int | np.ndarray
) -> np.ndarray:
    """FLOPs of the attention decoder's pass over whole transcripts, as in training; 0 without a decoder.

    Args:
      model_config: the model.
      vocab_size: outputs V.
      num_frames: feature frames before the subsampling, a number or [B].
      tokens: that the decoder reads, the leading one included, a number or [B].

    Returns:
      [B] float64.
    """
    decoder, d = model_config.decoder, model_config.encoder.d_model
    t = np.atleast_1d(num_subsampled_frames(np.asarray(num_frames, np.int64))).astype(np.float64)
    u = np.atleast_1d(np.asarray(tokens, np.float64))
    if not decoder.num_layers:
        return np.zeros(np.broadcast_shapes(t.shape, u.shape))
    own = u * 4 * d * d + 2 * u * u * d
    cross = u * 2 * d * d + t * 2 * d * d + 2 * u * t * d
    layer = own + cross + u * 2 * d * decoder.ffn_dim
    return np.asarray(2.0 * (decoder.num_layers * layer + u * d * vocab_size))


def count_flops(
    model_config: ModelConfig,
    *,
    num_mels: int,
    vocab_size: int,
    num_frames: int | np.ndarray,
    executed: np.ndarray | None,
) -> np.ndarray:
    """[B] FLOPs of one forward pass of each utterance; arguments and errors as ``count_flops_by_part``."""
    return count_flops_by_part(
        model_config, num_mels=num_mels, vocab_size=vocab_size, num_frames=num_frames, executed=executed
    ).total
