"""Time of the paper's encoder (36 layers of width 256, without subsampling) against the blocks that are executed.

Command: ``python benchmarks/encoder_depth.py --json docs/benchmarks/encoder_depth.json --plot
docs/benchmarks/encoder_depth.png``; about a quarter of an hour on two cores.

Patterns are forced, half of the open blocks attention and half feed-forward: at batch 1 they are spread evenly over
the layers; at batch 16 each row has as many, but others, drawn at random, which is as mixed as a batch can be. One
batch has gates that a trained model predicted: those of ``--model`` (the demo model) for sentences of its test set, at
the threshold with the most different patterns among those at which about half of the blocks are open, each of its
layers standing for several of the 36.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import Times, finish, milliseconds, paired, parse, ratio
from paper_encoder import BRANCHES, FRAMES, LAYERS, WIDTH, Program, mixed, paper_model, programs, spread

import i3d_jax
from i3d_jax.data.corpora import load_corpus
from i3d_jax.experiment import load_config
from i3d_jax.inference.evaluation import evaluate
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import conditional
from i3d_jax.model.gates import Fixed, Threshold


def predicted(model: str, rows: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Gates [rows, N, M] of a trained model for sentences of its corpus, 0.4 to 0.6 open; and how they were made."""
    asr = i3d_jax.load(model)
    config = load_config(Path(__file__).parents[1] / "configs" / "demo.py")
    demo = replace(config.data.demo, train_utterances=2, dev_utterances=2, test_utterances=rows)
    corpus = load_corpus(replace(config.data, demo=demo), config.data.test)
    result = evaluate(asr, corpus, Threshold(0.5), "masked", config.evaluation, config.batching)
    probabilities = result.gate_probabilities

    def patterns(beta: float) -> int:
        return len({row.tobytes() for row in probabilities > beta})

    around = np.quantile(probabilities, np.linspace(0.4, 0.6, 101))
    beta = float(max(around, key=patterns))
    gates = probabilities > beta
    how = {"model": asr.config.name, "beta": beta, "open": float(gates.mean()), "patterns": patterns(beta)}
    return np.repeat(gates, LAYERS // gates.shape[1], axis=1), how


def runs_of(model: ASRModel, rows: int, frames: int) -> dict[str, Program]:
    """The executions of a batch of random states, with random parameters."""
    x = jax.random.normal(jax.random.key(1), (rows, frames, WIDTH))
    return programs(model, jax.jit(model.init)(jax.random.key(0)), x)


def line(points: dict[int, float]) -> dict[str, float]:
    """Least-squares line of milliseconds over executed blocks: at 0, for each block, and the largest deviation."""
    blocks, times = np.array(list(points)), np.array(list(points.values()))
    slope, fixed = np.polyfit(blocks, times, 1)
    return {
        "fixed_ms": float(fixed),
        "ms_per_block": float(slope),
        "largest_deviation_ms": float(np.abs(fixed + slope * blocks - times).max()),
    }


def depth(rows: int, seconds: int, counts: list[int], rounds: int) -> tuple[dict[str, Any], Times]:
    """Times of each execution at each number of blocks."""
    runs = runs_of(paper_model(), rows, FRAMES[seconds])
    cases = {
        f"{name}/{blocks}": partial(run, spread(blocks) if rows == 1 else mixed(blocks, rows))
        for name, run in runs.items()
        for blocks in (counts if name != "masked" else counts[-1:])  # what masked computes does not depend on gates
    }
    times = paired(cases, rounds)
    figures: dict[str, Any] = {"rows": rows, "seconds": seconds, "executions": {}}
    for name in runs:
        points = {blocks: milliseconds(times[key]) for blocks in counts if (key := f"{name}/{blocks}") in times}
        figures["executions"][name] = {"ms": points} | (line(points) if len(points) > 2 else {})
    return figures, times


def against_dense(rounds: int) -> dict[str, dict[str, float]]:
    """18 of 36 layers against a dense encoder of 18, and gate predictors against none; batch 1, 15 s."""
    frames = FRAMES[15]
    half, whole = spread(LAYERS * BRANCHES // 2), spread(LAYERS * BRANCHES)
    large, small = runs_of(paper_model(), 1, frames), runs_of(paper_model(LAYERS // 2), 1, frames)
    cases: dict[str, Callable[[], Any]] = {}
    for name in ("conditional", "eager"):
        # Half of the blocks are whole layers, as a pruned model has them.
        cases |= {f"{name}/18 of 36": partial(large[name], half), f"{name}/18": partial(small[name], whole[:, :18])}
    x, mask = jax.random.normal(jax.random.key(1), (1, frames, WIDTH)), jnp.ones((1, frames), bool)
    for predictor in ("none", "global", "local"):
        model = paper_model(predictor=predictor)
        encoder = model.encoder
        params = encoder.unstack(jax.jit(model.init)(jax.random.key(0)))
        run = jax.jit(
            lambda params, x, mask, beta, encoder=encoder: encoder.apply(
                params, x, mask, Threshold(beta) if encoder.gates.predictor != "none" else Fixed(whole),
                execute=conditional,
            ).x
        )  # fmt: skip
        cases[f"predictor/{predictor}"] = partial(run, params, x, mask, 0.5)  # a new predictor opens everything
    times = paired(cases, rounds)
    found = {
        f"18_of_36_over_dense_18_{name}": ratio(times[f"{name}/18 of 36"], times[f"{name}/18"])
        for name in ("conditional", "eager")
    }
    for predictor in ("global", "local"):
        found[f"{predictor}_predictor_over_none"] = ratio(times[f"predictor/{predictor}"], times["predictor/none"])
    return found


def batch_of_predicted(model: str, rows: int, seconds: int, rounds: int) -> dict[str, Any]:
    """A batch whose gates a trained model predicted, and one of random gates, both about half open."""
    gates, how = predicted(model, rows)
    runs = runs_of(paper_model(), rows, FRAMES[seconds])
    cases = {"masked": partial(runs["masked"], gates)}
    for name in ("compacted", "conditional"):
        cases |= {f"{name}/predicted": partial(runs[name], gates)}
        cases |= {f"{name}/random": partial(runs[name], mixed(gates[0].size // 2, rows))}
    times = paired(cases, rounds)
    ratios = {name: ratio(times[name], times["masked"]) for name in cases if name != "masked"}
    return {"gates": how, "rows": rows, "seconds": seconds, "over_masked": ratios}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against executed layers, a panel for each batch and length."""
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(len({row["rows"] for row in rows}), len({row["seconds"] for row in rows})))
    styles = {"masked": ("0.6", "--", ""), "conditional": ("0.0", "-", "o"), "eager": ("0.35", ":", "s")}
    styles["compacted"] = ("0.25", "-.", "^")
    for axis, row in zip(axes.ravel(), rows, strict=True):
        for name, found in row["executions"].items():
            blocks, times = np.array([int(key) for key in found["ms"]]), np.array(list(found["ms"].values()))
            color, style, marker = styles[name]
            if name == "masked":
                axis.axhline(times[0], color=color, linestyle=style, label=name)
            else:
                axis.plot(blocks / 2, times, color=color, linestyle=style, marker=marker, markersize=4, label=name)
        axis.set_title(f"batch {row['rows']}, {row['seconds']} s", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(color="0.9", linewidth=0.6)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7, frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("executed layers", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("ms", fontsize=9)
    canvas.print_png(str(path))


def main() -> None:
    """Measure, print, write."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default=str(Path(__file__).parents[1] / "docs" / "demo_model"))
        parser.add_argument("--seconds", type=int, nargs="+", default=list(FRAMES), choices=list(FRAMES))
        parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])

    flags = parse(__doc__ or "", 9, add)
    every = LAYERS * BRANCHES
    rows, ratios = [], {}
    for batch in flags.batches:
        counts = [every * part // 8 for part in range(9)] if batch == 1 else [every * part // 4 for part in range(5)]
        for seconds in flags.seconds:
            figures, times = depth(batch, seconds, counts, flags.rounds if batch == 1 else max(flags.rounds // 3, 1))
            rows.append(figures)
            for name, found in figures["executions"].items():
                text = " ".join(f"{blocks / 2:g}: {ms:.1f}" for blocks, ms in found["ms"].items())
                fit = f"  {found['fixed_ms']:.2f} ms + {found['ms_per_block']:.3f} a block" if len(found) > 1 else ""
                print(f"batch {batch}, {seconds} s, {name}: ms by layers {text}{fit}", flush=True)
            if batch == 1 and seconds == 15:
                for name in ("conditional", "eager"):
                    ratios[f"half_over_all_{name}"] = ratio(times[f"{name}/{every // 2}"], times[f"{name}/{every}"])
    ratios |= against_dense(flags.rounds)
    batch16 = batch_of_predicted(flags.model, 16, 15, max(flags.rounds // 3, 3))
    for name in ("predicted", "random"):
        ratios[f"compacted_over_masked_{name}"] = batch16["over_masked"][f"compacted/{name}"]
    print(f"batch 16, 15 s, {batch16['gates']}")
    for name, found in (batch16["over_masked"] | ratios).items():
        print(f"{name}: {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
    if flags.plot:
        draw(rows, flags.plot)
    figures = {"depth": rows, "batch_of_predicted": batch16, "quartiles": ratios}
    finish(flags, figures, {name: found["median"] for name, found in ratios.items()})


if __name__ == "__main__":
    main()
