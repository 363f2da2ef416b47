"""Time to the first transcript of a new process: with an empty compilation cache, with a filled one, and once warm.

Command: ``python benchmarks/first_transcript.py --json docs/benchmarks/first_transcript.json --plot
docs/benchmarks/first_transcript.png``; two minutes on two cores.

Each start is a process of its own: import, load, then ``docs/demo_model/sample.flac`` twice.
The models are the demo model and one of the paper's size (36 layers of width 256, random weights, global predictor).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import finish, parse, ratio
from paper_encoder import paper_model

import i3d_jax
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.asr import ASRModel

ROOT = Path(__file__).parents[1]
STEPS = ("import", "load", "first transcript", "second transcript")

_START = """
import sys, time
begun = time.perf_counter()
import i3d_jax
i3d_jax.load
marks = [time.perf_counter()]
asr = i3d_jax.load(sys.argv[1])
marks.append(time.perf_counter())
for _ in range(2):
    asr.transcribe(sys.argv[2], execution=sys.argv[3] or None)
    marks.append(time.perf_counter())
print([b - a for a, b in zip([begun, *marks], marks)])
"""


def start(model: Path, cache: Path, execution: str) -> list[float]:
    """Seconds of the steps of one start."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    command = [sys.executable, "-c", _START, str(model), str(ROOT / "docs" / "demo_model" / "sample.flac"), execution]
    output = subprocess.run(
        command, cwd=ROOT, env=environment | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=True
    )
    return list(json.loads(output.stdout))


def paper_bundle(folder: Path) -> Path:
    """A bundle of the paper's size, with random weights and the front end and tokenizer of the demo model."""
    demo = i3d_jax.load(ROOT / "docs" / "demo_model")
    config = replace(demo.config, name="paper", model=paper_model(predictor="global").config)
    params = jax.jit(ASRModel(config.model, config.frontend.num_mels, demo.tokenizer.vocab_size).init)(
        jax.random.key(0)
    )
    Recognizer(config, params, demo.tokenizer, demo.stats).save(folder / "paper")
    return folder / "paper"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Stacked bars of the steps."""
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    left = np.zeros(len(rows))
    for step, shade in zip(STEPS[:3], ("0.85", "0.6", "0.3"), strict=True):
        widths = np.array([row[step] for row in rows])
        axis.barh(range(len(rows)), widths, left=left, color=shade, edgecolor="0.1", linewidth=0.5, label=step)
        left += widths
    names = [f"{row['model']}, {row['execution']}, {row['cache']}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    canvas.print_png(str(path))


def main() -> None:
    """Measure, print, write."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--executions", nargs="+", default=["conditional", "eager"])

    flags = parse(__doc__ or "", 3, add)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    print("| model | execution | cache | import | load | first | second |\n| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, model in (("demo", ROOT / "docs" / "demo_model"), ("paper", paper_bundle(folder))):
            for execution in flags.executions:
                cold, warm = [], []
                for index in range(flags.rounds):
                    cache = folder / f"{name}-{execution}-{index}"
                    cold.append(start(model, cache, execution))
                    warm.append(start(model, cache, execution))
                for label, times in (("empty", cold), ("filled", warm)):
                    medians = dict(zip(STEPS, np.median(times, axis=0).tolist(), strict=True))
                    rows.append({"model": name, "execution": execution, "cache": label, **medians})
                    cells = " | ".join(f"{medians[step]:.2f}" for step in STEPS[:3])
                    print(f"| {name} | {execution} | {label} | {cells} | {medians[STEPS[3]]:.3f} |", flush=True)
                whole = [np.sum(np.array(times)[:, :3], axis=1) for times in (warm, cold)]
                ratios[f"{name}_{execution}_filled_over_empty"] = ratio(*(list(t) for t in whole))["median"]
    if flags.plot:
        draw(rows, flags.plot)
    finish(flags, {"rows": rows}, ratios)


if __name__ == "__main__":
    main()
