"""The training step: features, augmentation, forward, loss, gradient, update, guarded against non-finite values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from i3d_jax.audio.augment import AugmentConfig, spec_augment
from i3d_jax.audio.frontend import FrontendConfig, GlobalStats, log_mel, normalize
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Remat
from i3d_jax.model.flops import block_costs
from i3d_jax.model.layers import split_keys
from i3d_jax.training.losses import LossConfig, LossTotals, loss_totals
from i3d_jax.training.optimizer import Trainable, trained
from i3d_jax.training.temperature import Annealing
from i3d_jax.types import Array, Batch


class TrainState(NamedTuple):
    """Everything a training carries from step to step.

    Attributes:
      step: int32 scalar, batches consumed; random keys and the position in the data are functions of it.
      params: of the model, float32.
      opt_state: of the optimiser.
      bad_steps: int32 scalar, consecutive steps skipped for a non-finite loss or gradient.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_steps: jax.Array


class TrainBatch(Protocol):
    """What a step reads: a named tuple of arrays whose leading axis is that of the rows."""

    @property
    def valid(self) -> Array:
        """[B] bool, False for filler rows."""
        ...

    def describe(self) -> str:
        """Its static shape, for people."""
        ...


class StepMetrics(NamedTuple):
    """Totals of one batch, a named tuple with ``loss``, the gradient norm before clipping, and how many steps in a row
    were skipped.
    """

    totals: Any
    grad_norm: jax.Array
    bad_steps: jax.Array


class Member(NamedTuple):
    """What may differ between trainings that share a compiled step: its arguments.

    Attributes:
      seed: uint32, of dropout and Gumbel noise.
      utility_weight: float32, lambda of Eq. 5.
      temperature: float32, tau of Eq. 8, at the first step.
    """

    seed: Array
    utility_weight: Array
    temperature: Array


TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, StepMetrics]]

Loss = Callable[[Any, Any, Any, jax.Array, Any], Any]
"""(trained parameters, all parameters, batch, keys [B], member) -> totals over these rows, with ``loss``."""


@dataclass(frozen=True)
class StepConfig:
    """What the step needs to know besides model and optimiser."""

    frontend: FrontendConfig
    augment: AugmentConfig
    loss: LossConfig
    accumulate: int = 1
    remat: Remat = "none"
    annealing: Annealing | None = None
    trainable: Trainable = "all"


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    model: ASRModel,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
    stats: GlobalStats | None = None,
    gather: Callable[[Any], Any] | None = None,
) -> TrainStep:
    """A pure function (state, batch, member) -> (state, metrics), to be jitted by the caller.

    A step with a non-finite loss or gradient leaves parameters and optimiser state as they were and is counted.

    Args:
      model: what is trained.
      config: front end, augmentation, losses, parts of a batch, what is computed again, how tau changes,
        which parameters are trained.
      optimizer: its state, of the trained parameters alone, is part of the training state.
      stats: of global normalisation.
      gather: makes parameters that are split over devices whole, where they are used.
    """

    def totals_of(own: Any, params: Any, batch: Batch, keys: jax.Array, member: Member) -> LossTotals:
        features, mask = log_mel(config.frontend, batch.waveform, batch.num_samples)
        features = normalize(config.frontend, features, mask, stats)
        features = spec_augment(config.augment, batch.augment_seed, features, mask)
        gate_keys, dropout_keys = split_keys(keys, 2)
        output = model.apply(
            params | own,
            features,
            mask,
            model.encoder.training_decision(member.temperature),
            gate_keys=gate_keys,
            dropout_keys=dropout_keys,
            taps=config.loss.interctc_layers,
            labels=jnp.asarray(batch.labels),
            gather=gather,
            remat=config.remat,
        )
        return loss_totals(config.loss, output, batch, member.utility_weight, block_costs(model.config, output.mask))

    step = guarded_step(totals_of, lambda batch: batch.valid, optimizer, config.accumulate, config.trainable)

    def train_step(state: TrainState, batch: Batch, member: Member) -> tuple[TrainState, StepMetrics]:
        if config.annealing:
            member = member._replace(temperature=member.temperature * config.annealing(state.step))
        return step(state, batch, member)

    return train_step


def guarded_step(
    totals_of: Loss,
    counted: Callable[[Any], Array],
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    trainable: Trainable = "all",
) -> TrainStep:
    """The step of any loss: its gradient, averaged over the whole batch, and the update, unless it is not finite.

    Args:
      totals_of: sums over rows; ``loss`` among them is what is minimised, divided by what ``counted`` sums up to. The
        trained parameters take the place of those among all.
      counted: batch -> numbers of what the loss is averaged over, such as the valid rows.
      optimizer: its state, of the trained parameters alone, is part of the training state.
      accumulate: parts in which a batch is computed.
      trainable: which parameters are trained.

    Returns:
      (state, batch, member) -> (state, metrics); ``member`` has a ``seed``, of which the keys of the rows are made.
    """

    def loss_fn(
        own: Any, params: Any, batch: Any, keys: jax.Array, count: jax.Array, member: Any
    ) -> tuple[jax.Array, Any]:
        """The share of these rows in the loss."""
        totals = totals_of(own, params, batch, keys, member)
        return totals.loss / count, totals

    def gradients(params: Any, batch: Any, keys: jax.Array, member: Any) -> tuple[Any, Any]:
        count = jnp.maximum(jnp.sum(jnp.asarray(counted(batch), jnp.float32)), 1.0)
        grad = jax.grad(loss_fn, has_aux=True)
        own = trained(params, trainable)
        if accumulate == 1:
            grads, totals = grad(own, params, batch, keys, count, member)
            return totals, grads

        def part_of(part: Any) -> tuple[Any, Any]:
            grads, totals = grad(own, params, *part, count, member)
            return totals, grads

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, part_of(part)), None

        # Row r goes to part r % parts: every device has as many rows in each part.
        parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_of, first))
        return jax.lax.scan(add, zeros, parts)[0]

    def train_step(state: TrainState, batch: Any, member: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(member.seed), state.step)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch.valid.shape[0]))
        totals, grads = gradients(state.params, batch, keys, member)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(totals.loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        before = trained(state.params, trainable)
        own, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(before, updates), opt_state),
            (before, state.opt_state),
        )
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        state = TrainState(state.step + 1, state.params | own, opt_state, bad_steps)
        return state, StepMetrics(totals, grad_norm, bad_steps)

    return train_step
