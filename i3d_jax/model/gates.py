"""Gate maths: how the logits of a gate predictor become gates.

A gate is a two-way distribution; entry 0 of its logits is *skip*, entry 1 is *execute*. A **decision** maps the logits
of one layer to its gates::

    gates [B, M] = decide(logits [B, M, 2], keys [B], layer)

and is a named tuple of arrays, so that it can be passed through ``jax.jit``: another threshold is not another program.
Boolean gates are decisions; float gates are the training relaxation, multiplied onto the branch.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.types import Array


class Decision(Protocol):
    """Logits [B, M, 2] of one layer, keys [B] for random decisions and the layer's index, to gates [B, M]."""

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int, /) -> jax.Array:
        """Decide."""
        ...


class Planned(Decision, Protocol):
    """A decision that sees all gates of an utterance at once, as only a global predictor allows."""

    def settle(self, logits: jax.Array, mask: jax.Array) -> Decision:
        """Logits [N, B, M, 2] and the mask [B, T] of valid frames to the decision of each gate."""
        ...


@dataclass(frozen=True)
class LayerDropConfig:
    """Random gates in the training of a model without a predictor: LayerDrop (arXiv 1909.11556), stochastic depth."""

    rate: float = 0.0
    """Probability to drop; 0 switches it off. Outputs are not rescaled, and inference executes everything."""
    unit: Literal["layer", "block"] = "layer"
    """Dropped together: the blocks of a layer, or each block by itself."""
    by_depth: Literal["constant", "linear"] = "constant"
    """The same for every layer, or rising to ``rate`` at the last one (stochastic depth, arXiv 1603.09382)."""


@dataclass(frozen=True)
class GateConfig:
    """Gate predictors and their training relaxation."""

    predictor: Literal["none", "local", "global"] = "none"
    """``none`` (vanilla Transformer), ``local`` (paper, Eq. 9) or ``global`` (Eq. 12)."""
    hidden_dim: int = 32
    """Width of the predictor's hidden layer."""
    normalize_input: bool = True
    """Normalise the time-average to zero mean and unit variance over channels before the predictor."""
    temperature: float = 1.0
    """Gumbel-Softmax temperature tau (Eq. 8), at the first step of a training."""
    final_temperature: float | None = None
    """tau at the last step of a training; None keeps it."""
    annealing: Literal["exponential", "linear"] = "exponential"
    """How tau goes from ``temperature`` to ``final_temperature``, over all steps."""
    straight_through: bool = False
    """Hard gates forward, soft gradient backward, instead of the paper's soft gates."""
    initial_logit: float = 2.0
    """Initial logit of execute minus skip: positive keeps a warm-started model intact."""
    threshold: float = 0.5
    """beta of Eqs. 10 and 11 in dev evaluation during training, and the default afterwards."""
    layer_drop: LayerDropConfig = field(default_factory=LayerDropConfig)


def fold_in(keys: jax.Array, data: Array | int) -> jax.Array:
    """``jax.random.fold_in`` of each of the keys [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def execute_probability(logits: jax.Array) -> jax.Array:
    """p(execute) of two-way logits [..., 2], in float32: [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])


def gumbel_softmax(logits: jax.Array, keys: jax.Array, temperature: Array | float) -> jax.Array:
    """Execute entry of a soft Gumbel-Softmax sample (paper, Eqs. 7 and 8): [B, M, 2] -> [B, M] in (0, 1).

    ``softmax((log p + g) / tau)`` does not change when ``log p`` is shifted, so the logits stand for it. Each row has
    its own key [B]: the noise of an utterance does not depend on how batches are split.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    return execute_probability((logits.astype(jnp.float32) + noise) / temperature)


def hard_with_soft_gradient(soft: jax.Array) -> jax.Array:
    """1.0 where ``soft`` > 0.5 else 0.0, with the gradient of ``soft`` (straight-through estimator)."""
    hard = (soft > 0.5).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


class Open(NamedTuple):
    """Every gate open: the vanilla Transformer."""

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] bool."""
        return jnp.ones(logits.shape[:-1], bool)


class Threshold(NamedTuple):
    """Open where p(execute) > beta (paper, Eqs. 10 and 11)."""

    beta: Array | float

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] bool."""
        return execute_probability(logits) > self.beta


class SoftMean(NamedTuple):
    """The probabilities themselves as float gates: the noise-free relaxation, logged during training."""

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] float32."""
        return execute_probability(logits)


class GumbelSoftmax(NamedTuple):
    """Soft samples (paper, Eq. 8), an independent one for each utterance and gate."""

    temperature: Array | float

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] float32 in (0, 1).

        Raises:
          ValueError: no keys were given.
        """
        if keys is None:
            raise ValueError("Gumbel-Softmax samples need gate_keys")
        return gumbel_softmax(logits, fold_in(keys, layer), self.temperature)


class StraightThrough(NamedTuple):
    """Hard samples with the gradient of the soft ones; floats, so that a gate of 0 still passes its gradient."""

    temperature: Array | float

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] float32 in {0, 1}."""
        return hard_with_soft_gradient(GumbelSoftmax(self.temperature)(logits, keys, layer))


class LayerDrop(NamedTuple):
    """Closed at random, whatever the logits, independently for each utterance.

    Attributes:
      rates: probability to drop: [N, 1] drops the gates of a layer together, [N, M] each by itself.
    """

    rates: Array

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] bool.

        Raises:
          ValueError: no keys were given.
        """
        if keys is None:
            raise ValueError("LayerDrop needs gate_keys")
        rates = jax.lax.dynamic_index_in_dim(jnp.asarray(self.rates), layer, keepdims=False)
        draws = jax.vmap(lambda key: jax.random.uniform(key, rates.shape))(fold_in(keys, layer))
        return jnp.broadcast_to(draws >= rates[None], logits.shape[:-1])


class Fixed(NamedTuple):
    """A given pattern: [N, M] for every utterance, or [B, N, M]."""

    mask: Array

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """[B, M, 2] -> [B, M] bool."""
        mask = jnp.asarray(self.mask, bool)
        row = jax.lax.dynamic_index_in_dim(mask, layer, axis=mask.ndim - 2, keepdims=False)
        return jnp.broadcast_to(row, logits.shape[:-1])


class Budget(NamedTuple):
    """The most probable blocks that fit into a share of the cost of all blocks; a hard bound for each utterance.

    Blocks are taken in the order of p(execute), the lower layer first where two are equal; one that no longer fits is
    left out, and a cheaper one after it may still fit. The cost of a block of branch m for one of T frames is
    ``fixed[m] + per_frame[m] * T``, in integers, so that the bound is exact.

    Attributes:
      share: of the cost of all N x M blocks, from 0 to 1.
      fixed: [M] int32.
      per_frame: [M] int32.
      beta: blocks with p(execute) not above it stay closed whatever the budget; below 0 for none.
    """

    share: Array | float
    fixed: Array
    per_frame: Array
    beta: Array | float = -1.0

    def __call__(self, logits: jax.Array, keys: jax.Array | None, layer: Array | int) -> jax.Array:
        """Cannot decide about one layer.

        Raises:
          ValueError: always; the predictor is not global.
        """
        raise ValueError("a compute budget for each utterance needs all gates at once: a global gate predictor")

    def settle(self, logits: jax.Array, mask: jax.Array) -> "Fixed":
        """Logits [N, B, M, 2] and mask [B, T] to the pattern [B, N, M]."""
        probability = jnp.swapaxes(execute_probability(logits), 0, 1)
        frames = jnp.sum(mask, axis=1, dtype=jnp.int32)
        cost = jnp.asarray(self.fixed, jnp.int32)[None] + jnp.asarray(self.per_frame, jnp.int32)[None] * frames[:, None]
        cost = jnp.broadcast_to(cost[:, None], probability.shape).reshape(len(cost), -1)
        flat = probability.reshape(cost.shape)
        limit = jnp.floor(self.share * jnp.sum(cost, axis=1)).astype(jnp.int32)

        def take(spent: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            price, likely = block
            fits = likely & (spent + price <= limit)
            return spent + jnp.where(fits, price, 0), fits

        order = jnp.argsort(-flat, axis=1, stable=True)
        blocks = tuple(jnp.take_along_axis(a, order, axis=1).T for a in (cost, flat > self.beta))
        _, taken = jax.lax.scan(take, jnp.zeros_like(limit), blocks)
        rows = jnp.arange(len(cost))[:, None]
        return Fixed(jnp.zeros(cost.shape, bool).at[rows, order].set(taken.T).reshape(probability.shape))


def settled(decide: Decision, logits: jax.Array, mask: jax.Array) -> Decision:
    """The decision once the logits [N, B, M, 2] of all layers are known, for frames [B, T]."""
    settle = getattr(decide, "settle", None)
    return decide if settle is None else settle(logits, mask)


def drop_rates(config: LayerDropConfig, num_layers: int, num_gates: int) -> np.ndarray:
    """Probability to drop of each layer [N, 1], or of each block [N, M], for N layers of M gates: float32.

    Linear in depth, layer l of 1 to N has ``rate * l / N`` (arXiv 1603.09382, Eq. 4).
    """
    depth = np.arange(1, num_layers + 1) / num_layers if config.by_depth == "linear" else np.ones(num_layers)
    width = 1 if config.unit == "layer" else num_gates
    return np.tile(config.rate * depth[:, None], width).astype(np.float32)


def training_decision(
    config: GateConfig, num_layers: int, num_gates: int, temperature: Array | float | None = None
) -> Decision:
    """The decision a model of N layers with M gates each is trained with; ``temperature`` replaces the configured tau.

    LayerDrop, if any, is that of models without a predictor (``validation`` refuses both).
    """
    if config.predictor == "none":
        drop = config.layer_drop
        return LayerDrop(drop_rates(drop, num_layers, num_gates)) if drop.rate > 0 else Open()
    tau = config.temperature if temperature is None else temperature
    return StraightThrough(tau) if config.straight_through else GumbelSoftmax(tau)


def inference_decision(config: GateConfig, threshold: Array | float | None = None) -> Decision:
    """The decision a model with this configuration is used with; ``threshold`` replaces the configured beta."""
    if config.predictor == "none":
        return Open()
    return Threshold(config.threshold if threshold is None else threshold)


def utility(gates: jax.Array, costs: jax.Array | None = None) -> jax.Array:
    """Utility loss of each utterance (paper, Eq. 6): the mean of its gates, [B, N, M] -> [B] float32.

    With the costs [B, M] of a block of each branch it is the share that the gates have in the cost of all blocks
    (paper, footnote 1). Of a row without costs it is 0.
    """
    gates = gates.astype(jnp.float32)
    if costs is None:
        return jnp.mean(gates, axis=(1, 2))
    costs = costs.astype(jnp.float32)
    whole = jnp.sum(costs, axis=1)
    share = costs / jnp.where(whole > 0, whole, 1.0)[:, None]
    return jnp.sum(jnp.mean(gates, axis=1) * share, axis=1)


def executed_layers(gates: Array) -> jax.Array:
    """Executed layers as the paper counts them, open gates / M: [B, N, M] -> [B] float32."""
    return jnp.sum(jnp.asarray(gates, jnp.float32), axis=(1, 2)) / gates.shape[-1]
