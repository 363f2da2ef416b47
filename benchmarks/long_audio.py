"""Time and memory of an hour in one file, against sixty files of one minute.

Command: ``python benchmarks/long_audio.py [--model=FOLDER | --layers=36 --width=256] [--minutes=60] [--rounds=3]
[--json=FILE] [--plot=FILE]``; under two minutes with the default model, ``docs/demo_model``. ``--layers`` takes random
weights of that size instead, all gates open, with the front end of the paper's configurations and windows of 30 s.

The files are ``docs/demo_model/sample.flac`` again and again, FLAC at 16 kHz, in a temporary folder. Times are those of
``Recognizer.transcribe(path)``: reading, front end, model, decoding and merging; compilation is done before. In every
round the file of one minute is transcribed twice before and twice after the long one, and the ratio is long file / (its
minutes x the median of these): in seconds, and in seconds of processors, which other work on the machine changes less.
Memory is by how much the largest resident size of the process grew beyond that after a minute. ``--plot`` draws the
time against the length, up to ``--minutes``.
"""

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import soundfile
from measure import finish, parse, ratio

import i3d_jax
from i3d_jax.experiment import load_config
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.windows import default_overlap, plan_windows

ROOT = Path(__file__).parents[1]
RATE = 16_000
PLOTTED = (1, 2, 5, 10, 20, 40, 60, 120)


def flags_of(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--model", default=str(ROOT / "docs" / "demo_model"), help="a run or a bundle")
    parser.add_argument("--layers", type=int, default=0, help="random weights of so many layers instead of a model")
    parser.add_argument("--width", type=int, default=256, help="of the random weights")
    parser.add_argument("--minutes", type=int, default=60, help="length of the long file")
    parser.add_argument("--execution", default="conditional", help="of the model")


def random_weights(layers: int, width: int) -> Recognizer:
    """The paper's model with a global predictor, or one of another size; the tokens are those of the demo model."""
    paper = load_config(ROOT / "configs" / "librispeech100_transformer.py")
    encoder = {"num_layers": layers, "d_model": width, "ffn_dim": 4 * width}
    gated = load_config(ROOT / "configs" / "demo.py").model.gates
    model = replace(paper.model, encoder=replace(paper.model.encoder, **encoder), gates=gated)
    tokenizer = i3d_jax.load(ROOT / "docs" / "demo_model").tokenizer
    recognizer = Recognizer(RecognizerConfig("random", frontend=paper.frontend, model=model), {}, tokenizer)
    recognizer.params = jax.jit(recognizer.model.init)(jax.random.key(0))
    return recognizer


def write(path: Path, minutes: int) -> None:
    """A file of so many minutes; never held as a whole."""
    sample, rate = soundfile.read(ROOT / "docs" / "demo_model" / "sample.flac", dtype="int16")
    left = minutes * 60 * rate
    with soundfile.SoundFile(path, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
        while left:
            file.write(sample[:left])
            left -= len(sample[:left])


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print the table, and the ratio as the last line."""
    flags = parse(__doc__ or "", 3, flags_of)
    recognizer = random_weights(flags.layers, flags.width) if flags.layers else i3d_jax.load(flags.model)
    window = recognizer.config.window_seconds
    plan = plan_windows(window, default_overlap(window), RATE)
    with tempfile.TemporaryDirectory() as folder:
        lengths = sorted({1, flags.minutes, *(n for n in PLOTTED if flags.plot and n < flags.minutes)})
        paths = {minutes: Path(folder) / f"{minutes}.flac" for minutes in lengths}
        for minutes, path in paths.items():
            write(path, minutes)

        def transcribe(minutes: int) -> np.ndarray:
            begun = np.array([time.perf_counter(), time.process_time()])
            recognizer.transcribe(paths[minutes], execution=flags.execution)
            return np.array([time.perf_counter(), time.process_time()]) - begun

        transcribe(1)  # compiles
        transcribe(1)
        before = peak_bytes()
        minute, whole = [], []
        for _ in range(flags.rounds):
            around = [transcribe(1), transcribe(1)]
            whole.append(transcribe(flags.minutes))
            around += [transcribe(1), transcribe(1)]
            minute.append(np.median(around, axis=0))
        grown = peak_bytes() - before
        times = {minutes: float(transcribe(minutes)[0]) for minutes in lengths} if flags.plot else {}
    found, of_processors = (
        ratio([x[clock] for x in whole], [flags.minutes * x[clock] for x in minute]) for clock in (0, 1)
    )
    one, hour = (float(np.median(x, axis=0)[0]) for x in (minute, whole))
    shape = recognizer.config.model.encoder
    row = {
        "model": f"{recognizer.config.name}, {shape.num_layers} layers of {shape.d_model}",
        "window_seconds": plan.length / RATE,
        "overlap_seconds": (plan.length - plan.step) / RATE,
        "windows": plan.count(flags.minutes * 60 * RATE),
        "minute_seconds": one,
        "long_seconds": hour,
        "real_time_factor": hour / (60 * flags.minutes),
        "ratio": found,
        "ratio_of_processor_time": of_processors,
        "grown_megabytes": grown / 1e6,
    }
    print("| model | window, overlap | windows | 1 minute | long file | real-time factor | ratio | memory |")
    print("| --- " * 8 + "|")
    print(
        f"| {row['model']} | {plan.length / RATE:.2f}, {(plan.length - plan.step) / RATE:.2f} s | {row['windows']} | "
        f"{one:.3f} s | {flags.minutes} min: {hour:.2f} s | {hour / (60 * flags.minutes):.5f} | "
        f"{found['median']:.3f}, processors {of_processors['median']:.3f} | +{grown / 1e6:.0f} MB |"
    )
    if flags.plot:
        plot(times, flags.plot)
    ratios = {"hour_over_60_minutes": found["median"], "hour_over_60_minutes_of_processors": of_processors["median"]}
    finish(flags, {"row": row, "times": times}, ratios)


def plot(times: dict[int, float], path: Path) -> None:
    """Time against length, and the straight line through the longest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    minutes = np.array(sorted(times))
    axes.plot(minutes, minutes * times[int(minutes[-1])] / minutes[-1], color="0.7", label="proportional")
    axes.plot(minutes, [times[int(n)] for n in minutes], "o", label="measured")
    axes.set_xlabel("minutes of audio")
    axes.set_ylabel("seconds to transcribe")
    axes.legend()
    FigureCanvasAgg(figure).print_figure(path)


if __name__ == "__main__":
    main()
