"""The same encoder with the same weights here, in ESPnet and in ONNX Runtime: inference and the training step.

Command: ``python benchmarks/vs_espnet.py --peer-python=PATH --json=vs_espnet.json --plot=vs_espnet.png``, where PATH is
the interpreter of an environment with ``pip install torch espnet onnx onnxscript onnxruntime``; about three minutes on
two cores. ESPnet is ``TransformerEncoder`` as a recipe builds it (pre-norm, ``conv2d``), *fused* the same with the
fused attention of PyTorch, for which its encoder has no option. ONNX Runtime runs the blocks of that encoder, without
subsampling and final norm, with float32 weights and with int8 ones of ``quantize_dynamic``.

Every timed call follows an untimed one of the same, and nothing is timed before outputs, losses and gradients were
shown to be equal. The peers run in a process of their own
(``benchmarks/espnet_worker.py``), which times its calls itself; the two never compute at the same time. Anything else
that runs on the machine meanwhile falsifies the ratios: threads of PyTorch wait for each other by spinning, and lose
far more than the share that another process takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Times, finish, milliseconds, paired, parse, ratio
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.inference.execution import EagerProgram, Pipeline
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig, Params, conditional, masked
from i3d_jax.model.gates import Fixed, Open
from i3d_jax.model.layers import layer_norm, split_keys
from i3d_jax.training.losses import ctc_loss
from i3d_jax.training.optimizer import OptimizerConfig, make_optimizer

MELS = 80
EQUAL = 1e-4
"""Largest difference, relative to the largest value, at which two outputs are the same."""
SETTLE = 0.02
"""Seconds between two calls, in which threads that wait for more work by spinning go to sleep."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant", decoupled=False)
FIRST_STEPS = 3
PEERS = {
    "whole": ("ESPnet", "ESPnet, fused"),
    "blocks": ("ESPnet, fused", "ONNX fp32", "ONNX int8"),
    "training": ("ESPnet",),
}
"""What each part is compared with."""
TITLES = {"whole": "Encoder", "blocks": "Its blocks alone", "training": "Training step"}

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
        answers, to_us = os.pipe()
        command = [python, str(Path(__file__).with_name("espnet_worker.py")), str(to_us)]
        with self._errors.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[to_us], text=True
            )
        os.close(to_us)
        self._answers = os.fdopen(answers)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()
        self._answers.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """What the method returns.

        Raises:
          RuntimeError: it failed, or the process ended.
        """
        assert self._process.stdin
        request = {"call": method, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._errors.read_text()[-4000:]}
        if "error" in answer:
            raise RuntimeError(f"the peers' process failed in {method}:\n{answer['error'].strip()}")
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

    def one_program(execute: Any, params: Params) -> Program:
        def run(params: Params, x: jax.Array, mask: jax.Array, gates: jax.Array) -> jax.Array:
            x, mask = start(params, x, mask)
            return end(params, encoder.apply(params, x, mask, Fixed(gates), execute=execute).x)

        return partial(jax.jit(run), params, x, mask)

    loop = EagerProgram(Pipeline(FrontendConfig(), model), params)
    first, last, outside = jax.jit(start), jax.jit(end), {part: params[part] for part in ("subsampling", "head")}

    def eager(gates: np.ndarray) -> jax.Array:
        y, valid = first(outside, x, mask)
        return last(outside, loop.encode(y, valid, Fixed(gates), gates[:, None])[0])

    return {
        "masked": one_program(masked, params),
        "conditional": one_program(conditional, encoder.unstack(params)),
        "eager": eager,
    }


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
    """Differences, and seconds of every way to run the encoder at batch 1."""
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
        for part, names in (("whole", ("whole", "whole_fused")), ("blocks", ("blocks", "blocks_fused", "onnx_fp32")))
        for name in names
    }
    differences["onnx_int8"] = difference(ours["blocks"], output_of(worker, "onnx_int8", folder))
    functions = peers_functions(worker)
    for part, executions in programs.items():
        for execution, program in executions.items():
            for executed in depths(flags.layers):
                gates = pattern(flags.layers, executed)
                found = difference(program(gates), executions["masked"](gates))
                demand(f"{part}, {execution}, {executed} layers", found)
                functions[our_name(part, execution, executed)] = partial(program, gates)
    return differences, paired(functions, flags.rounds, partial(time.sleep, SETTLE), again=True)


def inputs(features: jax.Array, x: jax.Array) -> tuple[tuple[str, jax.Array], ...]:
    """What the two parts that are timed begin with."""
    return ("whole", features), ("blocks", x)


def depths(layers: int) -> list[int]:
    """Executed layers: all, three quarters, half and a quarter."""
    return [layers * quarters // 4 for quarters in (4, 3, 2, 1)]


def our_name(part: str, execution: str, executed: int) -> str:
    """Of an execution in the figures."""
    return f"{part}: ours, {execution}, {executed} layers"


def peers_functions(worker: Worker) -> dict[str, Callable[[], float]]:
    """Seconds of each way the peers run inference."""

    names = {
        "whole: ESPnet": "whole",
        "whole: ESPnet, fused": "whole_fused",
        "blocks: ESPnet": "blocks",
        "blocks: ESPnet, fused": "blocks_fused",
        "blocks: ONNX fp32": "onnx_fp32",
        "blocks: ONNX int8": "onnx_int8",
    }
    return {key: partial(worker.call, "seconds", name=name) for key, name in names.items()}


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


def sizes_of(flags: Any) -> dict[str, int]:
    """What ``espnet_worker`` builds its models from."""
    names = ("layers", "width", "heads", "ffn", "training_layers", "vocabulary")
    return {"mels": MELS} | {name: getattr(flags, name) for name in names}


def rows_of(times: Times) -> list[dict[str, Any]]:
    """Milliseconds of each function, and how often it takes as long as the peers of its part."""
    rows = []
    for name, seconds in times.items():
        part, _, system = name.partition(": ")
        peers = {peer: f"{part}: {peer}" for peer in PEERS[part]}
        over = {peer: ratio(seconds, times[key]) for peer, key in peers.items()}
        rows.append({"part": part, "system": system, "milliseconds": milliseconds(seconds), "over": over})
    return rows


def print_tables(rows: list[dict[str, Any]]) -> None:
    """A Markdown table for each part; ratios with quartiles."""
    for part, peers in PEERS.items():
        own = [row for row in rows if row["part"] == part]
        if not own:
            continue
        print(f"| {part} | ms | " + " | ".join(f"over {peer}" for peer in peers) + " |")
        print("| --- | --- |" + " --- |" * len(peers))
        for row in own:
            ratios = (row["over"][peer] for peer in peers)
            cells = (f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios)
            print(f"| {row['system']} | {row['milliseconds']:.1f} | " + " | ".join(cells) + " |")
        print()


def plot(path: Path, times: Times, layers: int) -> None:
    """Milliseconds by system and executed layers; shades and hatches tell them apart in grey."""
    figure = Figure(figsize=(9, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    parts = [part for part in PEERS if any(name.startswith(part) for name in times)]
    for axis, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        own = {
            name.partition(": ")[2]: milliseconds(seconds) for name, seconds in times.items() if name.startswith(part)
        }
        for position, (system, value) in enumerate(own.items()):
            ours = system.startswith("ours")
            executed = next((n for n in depths(layers) if system.endswith(f" {n} layers")), layers)
            shade = str(0.25 + 0.6 * (1 - executed / layers))
            face = {"color": shade} if ours else {"facecolor": "white", "edgecolor": "black", "hatch": "///"}
            axis.barh(position, value, **face)
            axis.annotate(f" {value:.0f}", (value, position), va="center", fontsize=7)
        axis.set_yticks(range(len(own)), own, fontsize=7)
        axis.set_ylim(max(len(own), 8) - 0.4, -0.6)
        axis.set_xlim(0, 1.2 * max(own.values()))
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(TITLES[part], fontsize=9)
        axis.set_xlabel("ms", fontsize=8)
    figure.savefig(path)


def headlines(times: Times, layers: int) -> tuple[dict[str, float | None], dict[str, str]]:
    """The ratios to look at, and the executions that they are of: of those that skip the fastest."""
    ratios: dict[str, float | None] = {}
    executions: dict[str, str] = {}

    def note(key: str, part: str, executed: int, names: tuple[str, ...], peer: str) -> None:
        ratios[key] = None
        if f"{part}: {peer}" in times:
            own = {name: times[our_name(part, name, executed)] for name in names}
            executions[key] = min(own, key=lambda name: milliseconds(own[name]))
            ratios[key] = ratio(own[executions[key]], times[f"{part}: {peer}"])["median"]

    skip = ("conditional", "eager")
    note("whole_full_over_espnet", "whole", layers, ("masked", *skip), "ESPnet")
    note("whole_18_over_espnet", "whole", depths(layers)[2], skip, "ESPnet")
    note("blocks_full_over_onnx_fp32", "blocks", layers, ("masked", *skip), "ONNX fp32")
    note("blocks_18_over_onnx_int8", "blocks", depths(layers)[2], skip, "ONNX int8")
    ratios["training_step_over_espnet"] = None
    if "training: ours" in times:
        ratios["training_step_over_espnet"] = ratio(times["training: ours"], times["training: ESPnet"])["median"]
    return ratios, executions


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where the peers are, and sizes."""
    parser.add_argument("--peer-python", required=True, help="interpreter of the environment of the peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peers")
    parser.add_argument("--only", choices=("inference", "training"), help="one of the two; both by default")
    parser.add_argument("--layers", type=int, default=36, help="of inference, divisible by four")
    parser.add_argument("--frames", type=int, default=1500, help="feature frames of the utterance: 15 s")
    parser.add_argument("--width", type=int, default=256, help="d_model")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=1024, help="width of the feed-forward blocks")
    parser.add_argument("--training-layers", type=int, default=12)
    parser.add_argument("--training-frames", type=int, default=1000, help="feature frames of each row: 10 s")
    parser.add_argument("--rows", type=int, default=8, help="of the training batch")
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--labels", type=int, default=40, help="of each row")
    parser.add_argument("--dropout", type=float, default=0.1, help="every rate, in training")


def main() -> None:
    """Compare, print the tables, and write them."""
    flags = parse(__doc__ or "", 11, add_flags)
    differences: dict[str, float] = {}
    times: Times = {}
    with tempfile.TemporaryDirectory() as name, Worker(flags.peer_python, Path(name)) as worker:
        versions = worker.call("versions", threads=flags.threads)
        for part, measure in (("inference", inference), ("training", training)):
            if flags.only in (None, part):
                found, measured = measure(flags, worker, Path(name))
                differences |= found
                times |= measured
    rows = rows_of(times)
    print(f"medians of {flags.rounds} rounds, {flags.threads} threads, peers {versions}")
    print(f"largest differences, relative: {', '.join(f'{key} {value:.1g}' for key, value in differences.items())}\n")
    print_tables(rows)
    if flags.plot:
        plot(flags.plot, times, flags.layers)
    ratios, executions = headlines(times, flags.layers)
    figures = {"peers": versions, "differences": differences, "executions": executions, "rows": rows}
    finish(flags, figures, ratios)


if __name__ == "__main__":
    main()
