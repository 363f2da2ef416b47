"""Adam(W), its learning-rate schedules and clipping, in optax."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from i3d_jax.model.encoder import Params

Trainable = Literal["all", "predictor"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam(W) with a warm-up schedule."""

    learning_rate: float = 2e-3
    """Peak learning rate."""
    warmup_steps: int = 1000
    """Steps of linear warm-up."""
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "inverse_sqrt"
    """Decay after the warm-up: inverse square root (ESPnet's WarmupLR), cosine or linear to zero at the last step,
    or none."""
    weight_decay: float = 1e-6
    """Decoupled weight decay of the kernels (AdamW), or L2 on every parameter (Adam)."""
    decoupled: bool = True
    """AdamW; False adds the decay to the gradient as PyTorch's Adam does."""
    beta1: float = 0.9
    """Adam beta_1."""
    beta2: float = 0.98
    """Adam beta_2."""
    epsilon: float = 1e-9
    """Adam epsilon."""
    clip_norm: float = 5.0
    """Largest global gradient norm; 0 switches clipping off."""


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of update ``count`` (from 0).

    ``inverse_sqrt`` is ESPnet's WarmupLR: ``lr * w**0.5 * min(t**-0.5, t * w**-1.5)`` with t = count + 1, whose peak is
    ``learning_rate`` at t = w.
    """
    warmup = max(config.warmup_steps, 1)

    def schedule(count: Any) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1.0
        rising = jnp.minimum(step / warmup, 1.0)
        done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        match config.schedule:
            case "inverse_sqrt":
                decay = jnp.sqrt(warmup / jnp.maximum(step, warmup))
            case "cosine":
                decay = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            case "linear":
                decay = 1.0 - done
            case "constant":
                decay = jnp.ones(())
        return config.learning_rate * rising * decay

    return schedule


def trained(params: Params, trainable: Trainable) -> Params:
    """The part of the parameters that is trained; nothing else has gradients or a state of the optimiser."""
    return params if trainable == "all" else {"predictor": params["predictor"]}


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, trainable: Trainable = "all"
) -> optax.GradientTransformation:
    """Clip, Adam, weight decay, schedule, of the trained part: ``init`` and ``update`` are given all parameters.

    Args:
      config: the settings.
      total_steps: where cosine and linear reach zero.
      trainable: of what gradients, updates and state are.
    """
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_is_kernel if config.decoupled else None)
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        *((adam, decay) if config.decoupled else (decay, adam)),
        optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps)),
    )
    if trainable == "all":
        return chain

    def update(updates: Params, state: optax.OptState, params: Params) -> tuple[Params, optax.OptState]:
        return chain.update(updates, state, trained(params, trainable))

    return optax.GradientTransformation(lambda params: chain.init(trained(params, trainable)), update)
