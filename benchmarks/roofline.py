"""Share of the machine's measured matrix-multiply peak that each part of the paper's encoder reaches.

Command: ``python benchmarks/roofline.py --json docs/benchmarks/roofline.json --plot docs/benchmarks/roofline.png``;
two minutes on two cores. Unset what holds NumPy's BLAS back (``OPENBLAS_CORETYPE``) first: the peak is the best of
square products by NumPy (median) and by XLA (of the same round as the part).

A part is run as it is in the model, with its norm, biases and residual, once for each of the 36 layers and with
parameters of their own. FLOPs are those of its products (`model.flops`): what else it does counts as time only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import finish, milliseconds, paired, parse
from paper_encoder import FRAMES, LAYERS, WIDTH, paper_model

from i3d_jax.model.attention import attend
from i3d_jax.model.encoder import conditional, masked
from i3d_jax.model.flops import branch_flops, count_flops_by_part
from i3d_jax.model.gates import Fixed
from i3d_jax.model.layers import Context, layer_norm

SQUARES = (1024, 2048)


def squares() -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Square products by XLA and NumPy, and their FLOPs."""
    runs: dict[str, Callable[[], Any]] = {}
    flops = {}
    multiply = jax.jit(jnp.matmul)
    for size in SQUARES:
        a = np.random.default_rng(size).standard_normal((size, size), np.float32)
        runs[f"XLA {size}"] = partial(multiply, jnp.asarray(a), jnp.asarray(a))
        runs[f"NumPy {size}"] = partial(np.matmul, a, a)
        flops |= {f"{name} {size}": 2.0 * size**3 for name in ("XLA", "NumPy")}
    return runs, flops


def parts(seconds: int) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Parts of the encoder at batch 1, and the FLOPs of their products."""
    model = paper_model()
    encoder, frames = model.encoder, FRAMES[seconds]
    params = jax.jit(model.init)(jax.random.key(0))
    layers = encoder.unstack(params)["layers"]
    x = jax.random.normal(jax.random.key(1), (1, frames, WIDTH))
    mask = jnp.ones((1, frames), bool)
    every = np.ones((LAYERS, 2), bool)

    def chain(step: Callable[[jax.Array, Any], jax.Array]) -> Callable[[], Any]:
        def run(x: jax.Array, layers: Any) -> jax.Array:
            for layer in layers:
                x = step(x, layer)
            return x

        return partial(jax.jit(run), x, layers)

    def branch(index: int) -> Callable[[], Any]:
        one = encoder.branches[index]
        return chain(
            lambda x, layer: x + one.module.apply({"params": layer[one.name]}, x, Context(mask))  # type: ignore[operator]
        )

    norm = layer_norm("norm", "float32")
    features, valid = jax.random.normal(jax.random.key(2), (1, 100 * seconds, 80)), jnp.ones((1, 100 * seconds), bool)
    blocks = jax.jit(lambda p, x, mask, gates: encoder.apply(p, x, mask, Fixed(gates), execute=conditional).x)
    whole = jax.jit(lambda p, f, mask, gates: model.apply(p, f, mask, Fixed(gates), execute=masked).logits)
    runs = {
        "mha blocks": branch(0),
        "ffn blocks": branch(1),
        "attention alone": chain(lambda x, _: x + attend(jnp.tile(x, (1, 1, 3)), mask, None, 4, "float32")),
        "norms alone": chain(lambda x, layer: norm.apply({"params": layer["ffn"]["norm"]}, x)),  # type: ignore[return-value]
        "all blocks": partial(blocks, encoder.unstack(params), x, mask, every),
        "subsampling": partial(jax.jit(model.embed), params, features, valid),
        "head": partial(jax.jit(model.project), params, x),
        "recogniser": partial(whole, params, features, valid, every),
    }
    each = {name: float(flops) for name, flops in branch_flops(model.config, frames).items()}
    count = count_flops_by_part(
        model.config, num_mels=80, vocab_size=model.vocab_size, num_frames=100 * seconds, executed=None
    )
    flops = {
        "mha blocks": LAYERS * each["mha"],
        "ffn blocks": LAYERS * each["ffn"],
        "attention alone": LAYERS * 4.0 * frames * frames * WIDTH,
        "norms alone": 0.0,
        "all blocks": LAYERS * sum(each.values()),
        "subsampling": float(count.subsampling[0]),
        "head": float(count.ctc_head[0]),
        "recogniser": float(count.total[0]),
    }
    return runs, flops


def draw(rows: dict[str, dict[str, float]], peak: float, path: Path) -> None:
    """Bars of the share of the peak."""
    figure = Figure(figsize=(7, 3.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [name for name, row in rows.items() if row["share"] > 0]
    axis.barh(names[::-1], [rows[name]["share"] for name in names[::-1]], color="0.55", edgecolor="0.2")
    for place, name in enumerate(names[::-1]):
        axis.text(rows[name]["share"] + 0.01, place, f"{rows[name]['ms']:.1f} ms", va="center", fontsize=8)
    axis.axvline(1, color="0.2", linewidth=0.8)
    axis.set_xlim(0, 1.15)
    axis.set_xlabel(f"share of the measured peak ({peak:.0f} GFLOP/s)", fontsize=9)
    axis.tick_params(labelsize=8)
    canvas.print_png(str(path))


def main() -> None:
    """Measure, print, write."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=int, default=15, choices=list(FRAMES))

    flags = parse(__doc__ or "", 15, add)
    (peaks, peak_flops), (runs, flops) = squares(), parts(flags.seconds)
    # Threads of NumPy's BLAS go on spinning after a product: those are timed apart, before and after.
    by_numpy = {name: run for name, run in peaks.items() if name.startswith("NumPy")}
    before = paired(by_numpy, flags.rounds)
    time.sleep(1)
    times = paired({name: run for name, run in (peaks | runs).items() if name not in by_numpy}, flags.rounds)
    after = paired(by_numpy, flags.rounds)
    times |= {name: before[name] + after[name] for name in by_numpy}
    steady = max(peak_flops[name] / float(np.median(times[name])) for name in by_numpy)
    own = [name for name in peaks if name not in by_numpy]
    best = [max(steady, *(peak_flops[name] / times[name][index] for name in own)) for index in range(flags.rounds)]
    rows = {}
    for name, amount in flops.items():
        shares = [amount / (seconds * peak) for seconds, peak in zip(times[name], best, strict=True)]
        low, share, high = np.percentile(shares, [25, 50, 75])
        rows[name] = {"ms": milliseconds(times[name]), "gflop": amount / 1e9, "share": float(share)}
        rows[name] |= {"low": float(low), "high": float(high)}
    peak = float(np.median(best)) / 1e9
    found = {name: float(np.median(peak_flops[name] / np.array(times[name]))) / 1e9 for name in peaks}
    print(
        "peak, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()) + f"; best {peak:.0f}\n"
    )
    print("| part | ms | GFLOP | share of the peak (quartiles) |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['ms']:.1f} | {row['gflop']:.2f} | {row['share']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f}) |"
        )
    if flags.plot:
        draw(rows, peak, flags.plot)
    figures = {"peaks_gflops": found, "peak_gflops": peak, "parts": rows}
    finish(
        flags,
        figures,
        {"blocks_share_of_peak": rows["all blocks"]["share"], "ffn_share_of_peak": rows["ffn blocks"]["share"]},
    )


if __name__ == "__main__":
    main()
