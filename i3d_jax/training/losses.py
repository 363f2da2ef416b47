"""CTC, intermediate CTC, attention and utility loss.

::

    L     = L_ASR + lambda * L_utility                                                (paper, Eqs. 5 and 6)
    L_ASR = c * ((1 - w) * L_CTC + w * mean of the intermediate CTC losses) + (1 - c) * L_attention

with w = 0 without intermediate losses (InterCTC, arXiv 2102.03216, Eq. 9 with several layers) and c = 1 without an
attention decoder (joint training, arXiv 1609.06773, Eq. 11). The CTC loss is the negative log-likelihood of the
transcript, summed over time; the attention loss is the divergence of the decoder's answers from the smoothed
transcript, summed over its tokens. Both are averaged over utterances, as in ESPnet's recipes: the scale at which the
paper's lambda of 1 to 13 makes sense.
L_utility is the mean of the gates, or their share in the FLOPs of all blocks (paper, footnote 1), or the squared
distance of either from a target.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from i3d_jax.model.decoder import before_end
from i3d_jax.model.gates import executed_layers, utility
from i3d_jax.types import Array, Batch, ModelOutput


@dataclass(frozen=True)
class LossConfig:
    """L = L_ASR + utility_weight * L_utility (paper, Eq. 5)."""

    utility_weight: float = 0.0
    """lambda of Eq. 5; the CTC loss is summed over time and averaged over utterances."""
    utility: Literal["linear", "cost"] = "linear"
    """What L_utility is the mean of: gates (Eq. 6), or gates weighted by the FLOPs of their blocks at the length of the
    utterance (paper, footnote 1)."""
    utility_target: float | None = None
    """Share of blocks, or of FLOPs, to aim at, from 0 to 1: L_utility is then ``(utility - target)^2``, utterance by
    utterance. None lowers the utility as far as lambda makes it."""
    interctc_layers: tuple[int, ...] = ()
    """Layers (1 to N - 1, ascending) whose outputs get a CTC loss too, through the final norm and the CTC head."""
    interctc_weight: float = 0.66
    """Share of the intermediate losses, together, in L_ASR (ESPnet's recipe); without ``interctc_layers`` it is 0."""
    ctc_weight: float = 1.0
    """Share of the CTC losses, together, in L_ASR; the rest is the attention decoder's. 1 without a decoder."""
    label_smoothing: float = 0.1
    """Probability that the decoder's targets give to all other tokens together (ESPnet's recipe)."""


class LossTotals(NamedTuple):
    """Sums over the valid utterances of a batch, each a scalar; divide by ``utterances`` after merging.

    ``ctc`` is that of the last layer, ``interctc`` the mean of the intermediate ones (0 without), ``attention`` the
    decoder's (0 without). ``tokens`` counts those that the decoder had to answer, ends included, and
    ``correct_tokens`` those it held for the most probable. ``utility`` is the share of gates or of FLOPs
    itself, also where its distance from a target is what ``loss`` holds.
    """

    loss: jax.Array
    ctc: jax.Array
    interctc: jax.Array
    utility: jax.Array
    executed_layers: jax.Array
    utterances: jax.Array
    attention: jax.Array
    correct_tokens: jax.Array
    tokens: jax.Array


def ctc_feasible(num_frames: jax.Array, labels: jax.Array, num_labels: jax.Array) -> jax.Array:
    """Whether labels [B, U] fit the frames [B]: each repeat needs a blank between. [B] bool."""
    position = jnp.arange(labels.shape[1] - 1)[None] + 1
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & (position < num_labels[:, None]), axis=1)
    return num_frames >= num_labels + repeats


def ctc_loss(logits: jax.Array, mask: jax.Array, labels: jax.Array, num_labels: jax.Array) -> jax.Array:
    """CTC negative log-likelihood of each utterance, in nats: [B] float32.

    Rows whose labels do not fit their frames get 0 and no gradient (optax gives them about 1e5 and pushes the weights);
    rounding below zero is clamped. Blank is id 0.
    """
    padding = jnp.arange(labels.shape[1])[None] >= num_labels[:, None]
    with jax.default_matmul_precision("float32"):  # optax gathers label scores by a one-hot product
        loss = optax.ctc_loss(
            logits.astype(jnp.float32), 1.0 - mask.astype(jnp.float32), labels, padding.astype(jnp.float32), blank_id=0
        )
    feasible = ctc_feasible(jnp.sum(mask, axis=1), labels, num_labels)
    return jnp.where(feasible, jnp.maximum(loss, 0.0), 0.0)


def utility_loss(config: LossConfig, gates: jax.Array, costs: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Share of gates [B, N, M], or of the costs [B, M] of their blocks, and L_utility made of it: [B] each.

    Raises:
      ValueError: the utility is that of costs, and there are none.
    """
    if config.utility == "cost" and costs is None:
        raise ValueError("loss.utility=cost needs the costs of the blocks")
    used = utility(gates, costs if config.utility == "cost" else None)
    return used, used if config.utility_target is None else jnp.square(used - config.utility_target)


def attention_loss(
    logits: jax.Array, labels: jax.Array, num_labels: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Divergence of the decoder's answers from the smoothed transcript, in nats, summed over tokens.

    A target holds 1 - ``smoothing`` for its token and the rest in equal parts for all others (ESPnet's
    ``LabelSmoothingLoss``); the loss is KL(target || answer), which is 0 for an answer that equals the target.

    Args:
      logits: [B, U + 1, V] for the transcript behind its start.
      labels: [B, U] transcripts, which the id V - 1 ends.
      num_labels: [B].
      smoothing: at least 0 and below 1.

    Returns:
      loss [B] float32, and how many tokens of each row were most probable: [B] float32.
    """
    vocab_size = logits.shape[-1]
    targets, mask = before_end(labels, num_labels, vocab_size)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    each = smoothing / (vocab_size - 1)
    loss = -(1 - smoothing) * own - each * (jnp.sum(log_p, axis=-1) - own)
    loss += (1 - smoothing) * math.log(1 - smoothing) + (smoothing * math.log(each) if smoothing else 0.0)
    correct = jnp.argmax(logits, axis=-1) == targets
    return jnp.sum(jnp.where(mask, loss, 0.0), axis=1), jnp.sum(mask & correct, axis=1).astype(jnp.float32)


def loss_totals(
    config: LossConfig,
    output: ModelOutput,
    batch: Batch,
    utility_weight: Array | float | None = None,
    costs: jax.Array | None = None,
) -> LossTotals:
    """The loss and its parts, summed over the valid utterances of a batch or of a part of one.

    Args:
      config: which losses.
      output: of the model.
      batch: what it was given.
      utility_weight: replaces the configured lambda.
      costs: [B, M] of a block of each branch (``model.flops.block_costs``), for ``utility="cost"``.

    Raises:
      ValueError: the utility is that of costs, and there are none.
    """
    valid = jnp.asarray(batch.valid, jnp.float32)
    labels, num_labels = jnp.asarray(batch.labels), jnp.asarray(batch.num_labels)
    ctc = ctc_loss(output.logits, output.mask, labels, num_labels)
    taps = [ctc_loss(logits, output.mask, labels, num_labels) for logits in output.intermediate_logits]
    interctc = sum(taps, start=jnp.zeros_like(ctc)) / max(len(taps), 1)
    weight = config.interctc_weight if taps else 0.0
    used, term = utility_loss(config, output.gates, costs)
    loss = (1.0 - weight) * ctc + weight * interctc
    attention = correct = tokens = jnp.zeros_like(ctc)
    if output.decoder_logits is not None:
        attention, correct = attention_loss(output.decoder_logits, labels, num_labels, config.label_smoothing)
        tokens = num_labels.astype(jnp.float32) + 1.0
        loss = config.ctc_weight * loss + (1.0 - config.ctc_weight) * attention
    loss += (config.utility_weight if utility_weight is None else utility_weight) * term
    count = jnp.sum(valid)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(batch.valid, x, 0.0))

    layers = executed_layers(output.gates)
    return LossTotals(
        loss=total(loss),
        ctc=total(ctc),
        interctc=total(interctc),
        utility=total(used),
        executed_layers=total(layers),
        utterances=count,
        attention=total(attention),
        correct_tokens=total(correct),
        tokens=total(tokens),
    )
