"""The programs of an experiment, training step and evaluation step: jitted to run, or compiled ahead of time.

Ahead of time, nothing but the configuration is needed: neither data nor the devices, if there is a compiler for them.
"""

import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import optax

from i3d_jax.audio.frontend import GlobalStats
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.execution import Pipeline
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.gates import inference_decision
from i3d_jax.training.compiled import program_bytes
from i3d_jax.training.family import Stacked
from i3d_jax.training.optimizer import make_optimizer
from i3d_jax.training.sharding import Parallel
from i3d_jax.training.step import Member, StepConfig, make_train_step
from i3d_jax.training.temperature import annealing
from i3d_jax.types import Batch

Program = Literal["train", "masked", "conditional"]

_COLLECTIVE = re.compile(
    r" = (?P<type>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
    r"(?P<rest>.*)"
)
_MANY_STEPS = 100_000  # of a training that is only compiled: the program is the same
_IN_LOOP = "/while/body/"
_ARRAY = re.compile(r"(pred|[a-z]+)(\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class BatchShape:
    """Static shape of a batch."""

    rows: int
    seconds: float
    labels: int


@dataclass(frozen=True)
class ProgramFigures:
    """What the compiler says about a program, for each device.

    Attributes:
      bytes: memory: arguments, results and work space.
      argument_bytes: parameters, optimiser state and batch.
      compile_seconds: lowering and compiling, on this machine.
      collectives: kind -> (number of them in one step, bytes of their results); None where loops other than one over
        the layers may communicate: with intermediate CTC losses, a decoder, or a batch in parts.
    """

    bytes: int
    argument_bytes: int
    compile_seconds: float
    collectives: Mapping[str, tuple[int, int]] | None


def member_of(config: ExperimentConfig) -> Member:
    """The arguments of the step that a configuration gives."""
    return Member(
        np.array(config.seed % 2**32, np.uint32),
        np.array(config.loss.utility_weight, np.float32),
        np.array(config.model.gates.temperature, np.float32),
    )


def jit_train_step(
    config: ExperimentConfig,
    model: ASRModel,
    optimizer: optax.GradientTransformation,
    stats: GlobalStats | None,
    parallel: Parallel,
    state: Any,
    total_steps: int,
) -> Any:
    """(state, batch, member) -> (state, metrics), jitted: the state is replaced in its place, split by the rule.

    Of a family all but the batch is stacked (`Stacked`), and nothing is split.

    Args:
      config: the experiment.
      model: what is trained.
      optimizer: how.
      stats: of global normalisation.
      parallel: the mesh.
      state: training state, or its shapes; None leaves the place to jax.
      total_steps: of the training, over which the temperature is annealed.
    """
    step_config = StepConfig(
        config.frontend,
        config.augment,
        config.loss,
        config.parallel.accumulate,
        config.training.remat,
        annealing(config.model.gates, total_steps),
        config.training.trainable,
    )
    step = make_train_step(model, step_config, optimizer, stats, parallel.gather)
    if config.family.size > 1:
        return Stacked(config.family.size).map(step, parallel)
    split = None if state is None else (parallel.shardings(state), parallel.replicated)
    return jax.jit(step, donate_argnums=0, out_shardings=split)


def abstract(
    config: ExperimentConfig, program: Program, shape: BatchShape, devices: Sequence[jax.Device] = ()
) -> tuple[Any, tuple[Any, ...]]:
    """The jitted function of a program, and the shapes of its arguments.

    Args:
      config: the experiment; the size of the vocabulary is taken from it.
      program: training step, or evaluation step in one of two executions.
      shape: of the batch.
      devices: over which everything is placed as in a run; they need not be here. Empty leaves the place to jax.

    Raises:
      ValueError: the rows cannot be split over the devices, or the mesh does not fit them.
    """
    mels = config.frontend.num_mels
    model = ASRModel(config.model, mels, config.tokenizer.vocab_size + 1)
    stats = None
    if config.frontend.normalization == "global":
        stats = GlobalStats(np.zeros(mels, np.float32), np.ones(mels, np.float32))
    optimizer = make_optimizer(config.optimizer, _MANY_STEPS, config.training.trainable)
    params = jax.eval_shape(model.init, jax.random.key(0))
    samples = round(shape.seconds * config.data.sample_rate)
    rows, shaped = (shape.rows,), jax.ShapeDtypeStruct
    fields: list[Any] = [
        shaped((shape.rows, samples), np.float32),
        shaped(rows, np.int32),
        shaped((shape.rows, shape.labels), np.int32),
        shaped(rows, np.int32),
        shaped(rows, np.bool_),
        shaped(rows, np.uint32),
    ]
    batch = Batch(*fields)
    if program == "train":
        parallel = Parallel.over_devices(config.parallel, shape.rows, devices or jax.devices()[:1])
        stacked = Stacked(config.family.size)
        state = jax.eval_shape(lambda own: stacked.init_state([own] * stacked.count, optimizer), params)
        function = jit_train_step(config, model, optimizer, stats, parallel, state if devices else None, _MANY_STEPS)
        if devices:
            state = jax.tree.map(_placed, state, parallel.shardings(state))
            batch = jax.tree.map(lambda x: _placed(x, parallel.rows), batch)
        return function, (state, batch, stacked.join([member_of(config)] * stacked.count))
    pipeline = Pipeline(config.frontend, model, stats, devices)
    run = pipeline.masked if program == "masked" else pipeline.conditional
    return run, (params, batch.waveform, batch.num_samples, inference_decision(config.model.gates))


def _placed(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def compile_ahead(
    config: ExperimentConfig, program: Program, shape: BatchShape, devices: Sequence[jax.Device]
) -> ProgramFigures:
    """Compile a program for devices that need not be here, and read what the compiler says.

    Raises:
      ValueError: see `abstract`.
    """
    function, arguments = abstract(config, program, shape, devices)
    begun = time.monotonic()
    compiled = function.lower(*arguments).compile()
    seconds = time.monotonic() - begun
    memory = compiled.memory_analysis()
    held = int(memory.argument_size_in_bytes) if memory else 0
    one_loop = not (config.loss.interctc_layers or config.model.decoder.num_layers) and config.parallel.accumulate == 1
    told = collectives(compiled.as_text(), config.model.encoder.num_layers) if one_loop else None
    return ProgramFigures(program_bytes(compiled), held, seconds, told)


def topology_devices(name: str) -> Sequence[jax.Device]:
    """TPUs that are not here, to compile for: ``v5e:2x4``, ``v5p:2x2x2``. Computations of this process stay on the CPU.

    Raises:
      ModuleNotFoundError: libtpu is not installed.
      ValueError: there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        versions = [r for r in importlib.metadata.requires("jax") or [] if r.startswith("libtpu")]
        fitting = versions[0].partition(";")[0].strip() if versions else "libtpu"
        raise ModuleNotFoundError(f"compiling for {name} needs libtpu: pip install '{fitting}'")
    jax.config.update("jax_platforms", "cpu")
    # What libtpu would ask the machine of a TPU.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # whatever libtpu makes of a name that it does not know
        first = str(error).partition("\n")[0][:200]
        raise ValueError(f"topology {name!r}: expected one such as v5e:2x4 or v5p:2x2x2 ({first})") from error


def collectives(program: str, rounds: int) -> dict[str, tuple[int, int]]:
    """Collectives of a compiled program: kind -> (number, bytes of their results on each device).

    Args:
      program: its text.
      rounds: of the loop over the layers, the only one that communicates.
    """
    found: dict[str, tuple[int, int]] = {}
    for match in _COLLECTIVE.finditer(program):
        times = rounds if _IN_LOOP in match["rest"] else 1
        count, size = found.get(match["kind"], (0, 0))
        arrays = _ARRAY.findall(match["type"])
        if match["start"]:  # of an asynchronous one operands come first; reductions have results alone
            arrays = {"all-gather": arrays[len(arrays) // 2 :], "collective-permute": arrays[1:2]}.get(
                match["kind"], arrays
            )
        own = sum(_bytes(*array) for array in arrays)
        found[match["kind"]] = count + times, size + times * own
    return dict(sorted(found.items()))


def _bytes(kind: str, bits: str, dimensions: str) -> int:
    size = 8 if kind == "pred" else int(bits)
    return math.prod(int(n) for n in dimensions.split(",") if n) * size // 8
