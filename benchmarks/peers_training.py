"""The training step beside ESPnet: losses and gradients shown to be equal, then timed."""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import Times, paired
from paper_encoder import MELS
from peers import EQUAL, SETTLE, Worker, demand, difference, espnet_trained, make_model, make_params, save, sizes_of

from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Params
from i3d_jax.model.gates import Open
from i3d_jax.model.layers import split_keys
from i3d_jax.training.losses import ctc_loss
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant", decoupled=False)
FIRST_STEPS = 3


class Labelled(NamedTuple):
    """Features [B, T, F] with labels [B, U], none of them padded."""

    features: jax.Array
    labels: jax.Array


class TrainingStep:
    """Loss, gradient, clipping and Adam in one program, which replaces its state; a call is the loss of one step."""

    def __init__(self, model: ASRModel, params: Params, batch: Labelled):
        self._model, self._batch = model, batch
        self._optimizer = make_optimizer(OPTIMIZER, 10**6)
        params = jax.tree.map(jnp.copy, params)  # what is given is donated
        self._state = (jnp.zeros((), jnp.int32), params, self._optimizer.init(params))
        self._step = jax.jit(self._run, donate_argnums=0)

    def loss(self, params: Params, batch: Labelled, dropout_keys: jax.Array | None) -> jax.Array:
        """Averaged over utterances."""
        mask = jnp.ones(batch.features.shape[:2], bool)
        output = self._model.apply(params, batch.features, mask, Open(), dropout_keys=dropout_keys)
        return jnp.mean(ctc_loss(output.logits, output.mask, batch.labels, jnp.full(*batch.labels.shape)))

    def _run(self, state: Any, batch: Labelled) -> tuple[Any, jax.Array]:
        step, params, opt_state = state
        key = jax.random.fold_in(jax.random.key(0), step)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(batch.labels)))
        loss, grads = jax.value_and_grad(self.loss)(params, batch, split_keys(keys, 2)[1])
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, new_state = self._optimizer.update(grads, opt_state, params)
        new = (optax.apply_updates(params, updates), new_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, opt_state))
        return (step + 1, params, opt_state), loss

    def __call__(self) -> jax.Array:
        """One step."""
        self._state, loss = self._step(self._state, self._batch)
        return loss


def training(flags: Any, worker: Worker, folder: Path) -> tuple[dict[str, float], Times]:
    """Differences without dropout, and seconds of the step with it."""
    model = make_model(flags, flags.training_layers, 0.0)
    params = make_params(model, 3)
    features = jax.random.normal(jax.random.key(5), (flags.rows, flags.training_frames, MELS))
    labels = jax.random.randint(jax.random.key(6), (flags.rows, flags.labels), 1, flags.vocabulary)
    batch = Labelled(features, labels)
    load = partial(
        worker.call,
        "load_training",
        sizes=sizes_of(flags),
        weights=save(folder / "weights.npz", espnet_trained(params)),
        batch=save(folder / "batch.npz", peers_batch(batch)),
    )
    load(dropout=0.0, optimizer=adam())
    step = TrainingStep(model, params, batch)
    ours = espnet_trained(jax.jit(jax.grad(lambda params, batch: step.loss(params, batch, None)))(params, batch))
    path = folder / "gradients.npz"
    worker.call("gradients", path=str(path))
    with np.load(path) as theirs:
        # The loss does not depend on the biases of keys: their gradients are rounding errors.
        names = [name for name in theirs.files if not name.endswith("linear_k.bias")]
        largest = max(difference(ours[name], theirs[name]) for name in names)
    differences = {"gradients": demand("gradients", largest, 1e-2)}
    losses = worker.call("losses", steps=FIRST_STEPS)
    for index, loss in enumerate(losses):
        name = f"loss of step {index + 1}"
        differences[name] = demand(name, difference(step(), loss), EQUAL if index == 0 else 1e-3)
    load(dropout=flags.dropout, optimizer=adam())
    step = TrainingStep(make_model(flags, flags.training_layers, flags.dropout), params, batch)
    functions = {"training: ESPnet": partial(worker.call, "seconds", name="training"), "training: ours": step}
    return differences, paired(functions, flags.rounds, partial(time.sleep, SETTLE), again=True)


def peers_batch(batch: Labelled) -> dict[str, np.ndarray]:
    """The batch with lengths."""
    rows, frames, _ = batch.features.shape
    return {
        "features": np.asarray(batch.features),
        "lengths": np.full(rows, frames),
        "labels": np.asarray(batch.labels, np.int64),
        "num_labels": np.full(rows, batch.labels.shape[1]),
    }


def adam() -> dict[str, Any]:
    """Our optimiser in the words of ``torch.optim.Adam``, and where the gradient is clipped."""
    return {
        "lr": OPTIMIZER.learning_rate,
        "betas": (OPTIMIZER.beta1, OPTIMIZER.beta2),
        "eps": OPTIMIZER.epsilon,
        "weight_decay": OPTIMIZER.weight_decay,
        "clip": OPTIMIZER.clip_norm,
    }
