"""Inference at batch 1 beside ESPnet and ONNX Runtime: shown to be equal, then timed."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import Times, paired
from paper_encoder import BRANCHES, MELS, programs, spread
from peers import SETTLE, Worker, demand, difference, espnet_encoder, make_model, make_params, output_of, save, sizes_of


def inference(flags: Any, worker: Worker, folder: Path) -> tuple[dict[str, float], Times]:
    """Differences, and seconds of every way to run the encoder at batch 1."""
    model = make_model(flags, flags.layers, 0.0)
    params = make_params(model, 0)
    features = jax.random.normal(jax.random.key(2), (1, flags.frames, MELS))
    x, _ = jax.jit(model.embed)(params, features, jnp.ones(features.shape[:2], bool))
    arrays = save(folder / "arrays.npz", {"features": features, "states": x})
    weights = save(folder / "weights.npz", espnet_encoder(params))
    worker.call("load_inference", sizes=sizes_of(flags), weights=weights, arrays=arrays, folder=str(folder))
    executions_of = {part: programs(model, params, given, part == "whole") for part, given in inputs(features, x)}
    everything = spread(BRANCHES * flags.layers, flags.layers)
    ours = {part: executions["masked"](everything) for part, executions in executions_of.items()}
    differences = {
        name: demand(name, difference(ours[part], output_of(worker, name, folder)))
        for part, names in (("whole", ("whole", "whole_fused")), ("blocks", ("blocks", "blocks_fused", "onnx_fp32")))
        for name in names
    }
    differences["onnx_int8"] = difference(ours["blocks"], output_of(worker, "onnx_int8", folder))
    functions = peers_functions(worker)
    for part, executions in executions_of.items():
        for execution, program in executions.items():
            for executed in depths(flags.layers):
                gates = spread(BRANCHES * executed, flags.layers)
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
