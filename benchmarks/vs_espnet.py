"""The same encoder with the same weights here, in ESPnet and in ONNX Runtime: inference and the training step.

Command: ``python benchmarks/vs_espnet.py --peer-python=PATH --json=vs_espnet.json --plot=vs_espnet.png``, where PATH is
the interpreter of an environment with ``pip install torch espnet onnx onnxscript onnxruntime``; about five minutes on
two cores. ESPnet is ``TransformerEncoder`` as a recipe builds it (pre-norm, ``conv2d``), *fused* the same with PyTorch's
fused attention, for which its encoder has no option. ONNX Runtime runs the blocks of that encoder, without subsampling
and final norm, with float32 weights and with int8 ones of ``quantize_dynamic``.

Nothing is timed before outputs, losses and gradients were shown to be equal. The peers run in a process of their own
(``benchmarks/espnet_worker.py``), which times its calls itself; the two never compute at the same time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Times, finish, milliseconds, paired, parse, ratio
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig, Params, conditional, masked
from i3d_jax.model.gates import Fixed, Open
from i3d_jax.model.layers import Context, layer_norm, split_keys
from i3d_jax.training.losses import ctc_loss
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer

MELS = 80
EQUAL = 1e-4
"""Largest difference, relative to the largest value, at which two outputs are the same."""
SETTLE = 0.02
"""Seconds between two calls, in which threads that wait for more work by spinning go to sleep."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant", decoupled=False)
FIRST_STEPS = 3

Program = Callable[[np.ndarray], jax.Array]
"""A pattern [N, M] of open gates to the output of one utterance, [1, T, D]."""


class Labelled(NamedTuple):
    """Features [B, T, F] with labels [B, U], none of them padded."""

    features: jax.Array
    labels: jax.Array


class Worker:
    """The process of the peers: methods of ``espnet_worker.Peers`` by name."""

    def __init__(self, python: str, folder: Path):
        self._errors = folder / "worker.log"
        worker = Path(__file__).with_name("espnet_worker.py")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def call(self, method: str, **arguments: Any) -> Any:
        """What the method returns.

        Raises:
          RuntimeError: it failed, or the process ended.
        """
        assert self._process.stdin and self._process.stdout
        request = {"call": method, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._errors.read_text()[-4000:]}
        if "error" in answer:
            raise RuntimeError(f"the peers' process failed in {method}:\n{answer['error']}")
        return answer["result"]


def make_model(flags: Any, layers: int, dropout: float) -> ASRModel:
    """Without a gate predictor; ``dropout`` is every rate."""
    encoder = EncoderConfig(layers, flags.width, flags.heads, flags.ffn, dropout, dropout, positional_dropout=dropout)
    return ASRModel(ModelConfig(encoder=encoder), MELS, flags.vocabulary)


def make_params(model: ASRModel, seed: int) -> Params:
    """Random parameters, with biases and scales that show where they are used."""
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = (x + 0.02 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True))
    return jax.tree.unflatten(tree, noisy)


def _linear(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.asarray(node["kernel"]).T, f"{prefix}.bias": np.asarray(node["bias"])}


def _norm(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.asarray(node["scale"]), f"{prefix}.bias": np.asarray(node["bias"])}


def _convolution(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.transpose(node["kernel"], (3, 2, 0, 1)), f"{prefix}.bias": np.asarray(node["bias"])}


def espnet_encoder(params: Params) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under the names and in the layouts of ESPnet's encoder."""
    subsampling, layers = params["subsampling"], jax.device_get(params["layers"])
    arrays = {
        **_convolution("embed.conv.0", subsampling["conv1"]),
        **_convolution("embed.conv.2", subsampling["conv2"]),
        **_linear("embed.out.0", subsampling["out"]),
        **_norm("after_norm", params["head"]["norm"]),
    }
    for n in range(len(layers["mha"]["norm"]["scale"])):
        layer, own = f"encoders.{n}", jax.tree.map(lambda leaf, n=n: leaf[n], layers)
        for third, name in enumerate("qkv"):
            part = jax.tree.map(lambda leaf, third=third: np.split(leaf, 3, axis=-1)[third], own["mha"]["qkv"])
            arrays |= _linear(f"{layer}.self_attn.linear_{name}", part)
        arrays |= _linear(f"{layer}.self_attn.linear_out", own["mha"]["output"])
        arrays |= _linear(f"{layer}.feed_forward.w_1", own["ffn"]["hidden"])
        arrays |= _linear(f"{layer}.feed_forward.w_2", own["ffn"]["output"])
        arrays |= _norm(f"{layer}.norm1", own["mha"]["norm"]) | _norm(f"{layer}.norm2", own["ffn"]["norm"])
    return arrays


def espnet_trained(params: Params) -> dict[str, np.ndarray]:
    """The same with the CTC head, of ``espnet_worker.Trained``."""
    encoder = {f"encoder.{name}": array for name, array in espnet_encoder(params).items()}
    return encoder | _linear("ctc.ctc_lo", params["head"]["projection"])


def pattern(layers: int, executed: int) -> np.ndarray:
    """Gates [N, 2] with so many whole layers open, evenly spread."""
    open_layers = np.diff(np.arange(layers + 1) * executed // layers) > 0
    return np.repeat(open_layers[:, None], 2, axis=1)


def our_programs(model: ASRModel, params: Params, x: jax.Array, whole: bool) -> dict[str, Program]:
    """Each execution of the encoder on one input, compiled at the first call.

    Args:
      model: the recogniser.
      params: its parameters.
      x: features [1, T, F], or the blocks' input [1, T', D].
      whole: from features to the final norm, or the blocks alone.
    """
    encoder = model.encoder
    mask = jnp.ones(x.shape[:2], bool)

    def start(params: Params, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.embed(params, x, mask) if whole else (x, mask)

    def end(params: Params, x: jax.Array) -> jax.Array:
        norm = layer_norm("norm", model.config.precision)
        return norm.apply({"params": params["head"]["norm"]}, x) if whole else x  # type: ignore[return-value]

    def one_program(execute: Any) -> Program:
        def run(params: Params, x: jax.Array, mask: jax.Array, gates: jax.Array) -> jax.Array:
            x, mask = start(params, x, mask)
            return end(params, encoder.apply(params, x, mask, Fixed(gates), execute=execute).x)

        return partial(jax.jit(run), params, x, mask)

    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in range(encoder.config.num_layers)]
    first, last = jax.jit(start), jax.jit(end)

    def block(module: Any) -> Callable[[Params, jax.Array, Context], jax.Array]:
        return jax.jit(lambda params, x, context: x + module.apply({"params": params}, x, context))

    blocks = {branch.name: block(branch.module) for branch in encoder.branches}

    def eager(gates: np.ndarray) -> jax.Array:
        y, valid = first(params, x, mask)
        for layer, row in zip(layers, gates, strict=True):
            for name, gate in zip(encoder.gate_names, row, strict=True):
                y = blocks[name](layer[name], y, Context(valid)) if gate else y
        return last(params, y)

    return {"masked": one_program(masked), "conditional": one_program(conditional), "eager": eager}


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest value of theirs."""
    return float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))) / np.max(np.abs(theirs)))


def demand(name: str, found: float, limit: float = EQUAL) -> float:
    """The difference.

    Raises:
      SystemExit: it is larger than the limit.
    """
    if not found <= limit:
        raise SystemExit(f"{name}: differs by {found:.2g} of the largest value, more than {limit:.2g}; not timed")
    return found


def output_of(worker: Worker, name: str, folder: Path) -> np.ndarray:
    """What a function of the peers returns."""
    path = str(folder / "output.npz")
    worker.call("output", name=name, path=path)
    with np.load(path) as arrays:
        return arrays["y"]


def save(path: Path, arrays: Mapping[str, Any]) -> str:
    """Arrays to a ``.npz`` file; its name."""
    np.savez(path, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return str(path)


def inference(flags: Any, worker: Worker, folder: Path) -> tuple[dict[str, float], Times]:
    """Differences and seconds of the encoder at batch 1; times are named ``part system [layers]``."""
    model = make_model(flags, flags.layers, 0.0)
    params = make_params(model, 0)
    features = jax.random.normal(jax.random.key(2), (1, flags.frames, MELS))
    x, _ = jax.jit(model.embed)(params, features, jnp.ones(features.shape[:2], bool))
    arrays = save(folder / "arrays.npz", {"features": features, "states": x})
    weights = save(folder / "weights.npz", espnet_encoder(params))
    worker.call("load_inference", sizes=sizes_of(flags), weights=weights, arrays=arrays, folder=str(folder))
    programs = {part: our_programs(model, params, given, part == "whole") for part, given in inputs(features, x)}
    everything = pattern(flags.layers, flags.layers)
    ours = {part: executions["masked"](everything) for part, executions in programs.items()}
    differences = {
        name: demand(name, difference(ours[part], output_of(worker, name, folder)))
        for part, name in (("whole", "whole"), ("blocks", "blocks"), ("blocks", "onnx_fp32"))
    }
    differences["onnx_int8"] = difference(ours["blocks"], output_of(worker, "onnx_int8", folder))
    functions = peers_functions(worker)
    for part, executions in programs.items():
        for execution, program in executions.items():
            for executed in depths(flags.layers):
                gates = pattern(flags.layers, executed)
                found = difference(program(gates), executions["masked"](gates))
                demand(f"{part}, {execution}, {executed} layers", found)
                functions[f"{part} {execution} {executed}"] = partial(program, gates)
    return differences, paired(functions, flags.rounds, partial(time.sleep, SETTLE))


def inputs(features: jax.Array, x: jax.Array) -> tuple[tuple[str, jax.Array], ...]:
    """What the two parts that are timed begin with."""
    return ("whole", features), ("blocks", x)


def depths(layers: int) -> list[int]:
    """Executed layers: all, three quarters, half and a quarter."""
    return [layers * quarters // 4 for quarters in (4, 3, 2, 1)]


def peers_functions(worker: Worker) -> dict[str, Callable[[], float]]:
    """Seconds of each way the peers run inference."""

    def seconds(name: str, fused: bool) -> float:
        worker.call("fused_attention", on=fused)
        return worker.call("seconds", name=name)

    functions = {"whole ESPnet": ("whole", False), "whole ESPnet, fused": ("whole", True)}
    functions |= {"blocks ESPnet": ("blocks", False), "blocks ESPnet, fused": ("blocks", True)}
    functions |= {"blocks ONNX fp32": ("onnx_fp32", False), "blocks ONNX int8": ("onnx_int8", False)}
    return {name: partial(seconds, *arguments) for name, arguments in functions.items()}


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
        if theirs.files - ours.keys():
            raise SystemExit(f"weights of ESPnet without a counterpart: {theirs.files - ours.keys()}")
        largest = max(difference(ours[name], theirs[name]) for name in theirs.files if ".linear_k.bias" not in name)
    differences = {"gradients": demand("gradients", largest, 1e-2)}
    losses = worker.call("losses", steps=FIRST_STEPS)
    for index, loss in enumerate(losses):
        name = f"loss of step {index + 1}"
        differences[name] = demand(name, difference(step(), loss), EQUAL if index == 0 else 1e-3)
    load(dropout=flags.dropout, optimizer=adam())
    step = TrainingStep(make_model(flags, flags.training_layers, flags.dropout), params, batch)
    functions = {"training ours": step, "training ESPnet": partial(worker.call, "seconds", name="training")}
    return differences, paired(functions, flags.rounds, partial(time.sleep, SETTLE))


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


def sizes_of(flags: Any) -> dict[str, int]:
    """What ``espnet_worker`` builds its models from."""
    names = ("layers", "width", "heads", "ffn", "training_layers", "vocabulary")
    return {"mels": MELS} | {name: getattr(flags, name) for name in names}


def main() -> None:
    pass
