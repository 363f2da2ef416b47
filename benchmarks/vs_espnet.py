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
import os
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import Times, finish, milliseconds, parse, ratio
from paper_encoder import FFN, HEADS, LAYERS, VOCABULARY, WIDTH
from peers import Worker
from peers_inference import depths, inference, our_name
from peers_training import training

PEERS = {
    "whole": ("ESPnet", "ESPnet, fused"),
    "blocks": ("ESPnet, fused", "ONNX fp32", "ONNX int8"),
    "training": ("ESPnet",),
}
"""What each part is compared with."""
TITLES = {"whole": "Encoder", "blocks": "Its blocks alone", "training": "Training step"}


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
    parser.add_argument("--layers", type=int, default=LAYERS, help="of inference, divisible by four")
    parser.add_argument("--frames", type=int, default=1500, help="feature frames of the utterance: 15 s")
    parser.add_argument("--width", type=int, default=WIDTH, help="d_model")
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--ffn", type=int, default=FFN, help="width of the feed-forward blocks")
    parser.add_argument("--training-layers", type=int, default=12)
    parser.add_argument("--training-frames", type=int, default=1000, help="feature frames of each row: 10 s")
    parser.add_argument("--rows", type=int, default=8, help="of the training batch")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--labels", type=int, default=40, help="of each row")
    parser.add_argument("--dropout", type=float, default=0.1, help="every rate, in training")


def main() -> None:
    """Compare, print the tables, and write them."""
    flags = parse(__doc__ or "", 11, add_flags)
    differences: dict[str, float] = {}
    times: Times = {}
    with tempfile.TemporaryDirectory() as name, Worker(flags.peer_python, Path(name)) as worker:
        versions = worker.call("versions", threads=flags.threads)
        for part, compare in (("inference", inference), ("training", training)):
            if flags.only in (None, part):
                found, measured = compare(flags, worker, Path(name))
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
