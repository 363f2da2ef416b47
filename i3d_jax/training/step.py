"""The training step: features, augmentation, forward, loss, gradient, update, guarded against non-finite values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from i3d_jax.audio.augment import AugmentConfig, spec_augment
from i3d_jax.audio.frontend import FrontendConfig, GlobalStats, log_mel, normalize
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.gates import training_decision
from i3d_jax.training.losses import LossConfig, LossTotals, total_loss
from i3d_jax.types import Batch


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


class StepMetrics(NamedTuple):
    """Loss totals of one batch, the gradient norm before clipping, and whether the step was skipped."""

    totals: LossTotals
    grad_norm: jax.Array
    bad_steps: jax.Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@dataclass(frozen=True)
class StepConfig:
    """What the step needs to know besides model and optimiser."""

    frontend: FrontendConfig
    augment: AugmentConfig
    loss: LossConfig
    seed: int


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    model: ASRModel, config: StepConfig, optimizer: optax.GradientTransformation, stats: GlobalStats | None = None
) -> TrainStep:
    """A pure function (state, batch) -> (state, metrics), to be jitted by the caller.

    A step with a non-finite loss or gradient leaves parameters and optimiser state as they were and is counted.
    """
    decide = training_decision(model.config.gates)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gate_key, dropout_key = jax.random.split(key)
        features, mask = log_mel(config.frontend, batch.waveform, batch.num_samples)
        features = normalize(config.frontend, features, mask, stats)
        features = spec_augment(config.augment, batch.augment_seed, features, mask)

        def loss_fn(params: Any) -> tuple[jax.Array, LossTotals]:
            output = model.apply(
                params,
                features,
                mask,
                decide,
                gate_key=gate_key,
                dropout_key=dropout_key,
                taps=config.loss.interctc_layers,
            )
            return total_loss(config.loss, output, batch)

        (loss, totals), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        state = TrainState(state.step + 1, params, opt_state, bad_steps)
        return state, StepMetrics(totals, grad_norm, bad_steps)

    return train_step
