"""Peak memory of inference in each execution, and of the training step with and without rematerialisation.

Command: ``python benchmarks/peak_memory.py --json=peak_memory.json --plot=peak_memory.png``; about four minutes on two
cores, 4 GB at most. The model is the paper's, with a global gate predictor and every gate open. Of each program, which
runs in a process of its own:

- *compiler*: arguments, results and work space, as the compiler planned them; none for the eager loop, which is many
  programs.
- *run*: how much the resident set of the process grew in the second run, at its peak, above what the process held
  before: results and work space, but not the arguments. Linux only. Memory that is kept by the allocator is given back
  before, and the peak is forgotten, so that neither compilation nor the first run counts.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import finish, parse

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.inference.execution import EXECUTIONS, Pipeline
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.gates import Threshold
from i3d_jax.programs import BatchShape, abstract
from i3d_jax.training.compiled import program_bytes

CONFIG = Path(__file__).parents[1] / "configs" / "librispeech100_i3d_global.py"
REMAT = ("none", "dense", "full")
LABELS = 40


@dataclass(frozen=True)
class Case:
    """A program: an execution, or a training step with ``remat``, of so many layers for a batch of rows x seconds."""

    layers: int
    rows: int
    seconds: float
    execution: str = ""
    remat: str = ""

    @property
    def name(self) -> str:
        """In tables."""
        what = self.execution or f"training, remat {self.remat}"
        return f"{what}, {self.layers} layers, {self.rows} x {self.seconds:g} s"


def config_of(case: Case) -> ExperimentConfig:
    """The paper's model with other sizes."""
    config = load_config(CONFIG)
    model = replace(config.model, encoder=replace(config.model.encoder, num_layers=case.layers))
    training = replace(config.training, remat=case.remat or "none")
    return replace(config, model=model, training=training)


def filled(shapes: Any) -> Any:
    """Arrays that hold small numbers, in memory that is really there and that a program may take over."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if np.issubdtype(leaf.dtype, np.floating):
            return jax.numpy.array(0.02 * rng.random(leaf.shape, np.float32), leaf.dtype)
        return jax.numpy.ones(leaf.shape, leaf.dtype)

    return jax.block_until_ready(jax.tree.map(fill, shapes))


def inference_program(case: Case) -> tuple[Callable[[], Any], int | None]:
    """A run of an execution, and the compiler's bytes."""
    config = config_of(case)
    _, (params, waveform, num_samples, _) = abstract(config, "masked", BatchShape(case.rows, case.seconds, LABELS))
    arguments = filled(waveform), np.full(num_samples.shape, waveform.shape[1], np.int32), Threshold(0.0)
    model = ASRModel(config.model, config.frontend.num_mels, config.tokenizer.vocab_size + 1)
    program = Pipeline(config.frontend, model).program(case.execution, filled(params))  # type: ignore[arg-type]
    if not isinstance(program, partial):
        return partial(program, *arguments), None
    compiled = program.func.lower(*program.args, *arguments).compile()
    return partial(compiled, *program.args, *arguments), program_bytes(compiled)


def training_program(case: Case) -> tuple[Callable[[], Any], int]:
    """A training step, which goes on from its own result, and the compiler's bytes."""
    function, (state, batch, member) = abstract(config_of(case), "train", BatchShape(case.rows, case.seconds, LABELS))
    compiled = function.lower(state, batch, member).compile()
    held = filled((state, batch, member))
    samples = np.full(batch.num_samples.shape, batch.waveform.shape[1], np.int32)
    batch = held[1]._replace(num_samples=samples, num_labels=np.full_like(samples, LABELS))
    states = [held[0]]
    member = held[2]

    def run() -> Any:
        new, metrics = compiled(states.pop(), batch, member)
        states.append(new)
        return metrics

    return run, program_bytes(compiled)


def resident(kind: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM``, the most since the peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def growth(run: Callable[[], Any]) -> int:
    """Bytes by which the resident set grew in the second run, at its peak."""
    jax.block_until_ready(run())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    jax.block_until_ready(run())
    return resident("VmHWM") - before


def measure(case: Case) -> dict[str, Any]:
    """Bytes of a program, in this process."""
    run, planned = inference_program(case) if case.execution else training_program(case)
    _, (first, *_) = abstract(config_of(case), "masked", BatchShape(1, 1.0, 1))
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first))
    return {"compiler": planned, "run": growth(run), "parameters": parameters}


def measure_apart(case: Case, rounds: int) -> dict[str, Any]:
    """The same in processes of their own; the median growth of so many."""
    command = [sys.executable, __file__, f"--case={json.dumps(asdict(case))}"]
    found = [json.loads(subprocess.check_output(command, text=True).splitlines()[-1]) for _ in range(rounds)]
    return asdict(case) | found[0] | {"run": statistics.median(row["run"] for row in found)}


def cases_of(flags: Any) -> list[Case]:
    """Inference in each execution for one utterance and for a batch, and the training step in two depths."""
    inference = [
        Case(flags.layers, rows, flags.seconds, execution)
        for rows in (1, flags.batch)
        for execution in EXECUTIONS
        if rows == 1 or execution != "eager"
    ]
    training = [
        Case(layers, flags.rows, flags.training_seconds, remat=remat)
        for layers in (flags.few_layers, flags.layers)
        for remat in REMAT
    ]
    return inference + training


def plot(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    """Gigabytes of each program: the compiler's plan, and the growth of the process."""
    figure = Figure(figsize=(7.5, 0.32 * len(rows) + 1), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for index, row in enumerate(rows):
        bars = ((row["compiler"] or 0, {"color": "0.35"}), (row["run"], {"facecolor": "white", "hatch": "///"}))
        for offset, (value, face) in zip((-0.2, 0.2), bars, strict=True):
            axis.barh(index + offset, value / 1e9, 0.38, edgecolor="black", linewidth=0.6, **face)
            axis.annotate(
                f" {value / 1e9:.2f}" if value else "", (value / 1e9, index + offset), va="center", fontsize=6
            )
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("GB; dark: planned by the compiler, arguments included; hatched: growth in a run", fontsize=8)
    figure.savefig(path)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--few-layers", type=int, default=12, help="of the smaller training")
    parser.add_argument("--batch", type=int, default=16, help="rows of the larger inference")
    parser.add_argument("--seconds", type=float, default=15.0, help="of an utterance, in inference")
    parser.add_argument("--rows", type=int, default=8, help="of the training batch")
    parser.add_argument("--training-seconds", type=float, default=10.0, help="of an utterance, in training")
    parser.add_argument("--case", help=argparse.SUPPRESS)


def main() -> None:
    """Measure each program in a process of its own, print the table, and write it."""
    flags = parse(__doc__ or "", 1, add_flags, keep=False)
    if flags.case:
        print(json.dumps(measure(Case(**json.loads(flags.case)))))
        return
    cases = cases_of(flags)
    rows = []
    print("| program | compiler, MB | run, MB |\n| --- | --- | --- |")
    for case in cases:
        row = measure_apart(case, flags.rounds)
        planned = "" if row["compiler"] is None else f"{row['compiler'] / 1e6:.0f}"
        print(f"| {case.name} | {planned} | {row['run'] / 1e6:.0f} |", flush=True)
        rows.append(row)
    print(f"\nparameters of {flags.layers} layers: {rows[0]['parameters'] / 1e6:.0f} MB\n")
    if flags.plot:
        plot(flags.plot, [case.name for case in cases], rows)
    found = dict(zip(cases, rows, strict=True))
    training = {remat: Case(flags.layers, flags.rows, flags.training_seconds, remat=remat) for remat in REMAT}
    none, dense, full = (found[case]["compiler"] for case in training.values())
    one = found[Case(flags.layers, 1, flags.seconds, "conditional")]
    ratios = {
        "remat_dense_over_none": dense / none,
        "remat_full_over_none": full / none,
        "inference_over_parameters": one["compiler"] / one["parameters"],
    }
    finish(flags, {"rows": rows}, ratios)


if __name__ == "__main__":
    main()
