"""What the speed benchmarks share: paired timing, ratios, and how figures are written.

Machines are shared and their speed drifts, so only ratios are read: all functions run once in every round, one after
the other, and a ratio is the median over the rounds of the ratio within a round.

Benchmarks import it as ``measure``, before the package, which it makes importable.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from i3d_jax.allocator import keep_freed_memory_on_cpu

Times = dict[str, list[float]]


def paired(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    between: Callable[[], None] = lambda: None,
    again: bool = False,
) -> Times:
    """Seconds of each function in each round; a round before them, in which everything compiles, does not count.

    With ``again`` every timed call follows an untimed one of the same function: cores that idled in ``between``, or
    caches that another function filled, are not its business. A function may return seconds that it measured itself, as
    one in another process does; of any other the call is timed, until its result is there.
    """
    times: Times = {name: [] for name in functions}
    for index in range(rounds + 1):
        order = list(functions.items())
        for name, run in order if index % 2 else reversed(order):  # nothing is always after the same neighbour
            between()
            if again:
                jax.block_until_ready(run())
            begun = time.perf_counter()
            result = jax.block_until_ready(run())
            seconds = result if isinstance(result, float) else time.perf_counter() - begun
            if index:
                times[name].append(seconds)
    gc.collect()
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within each round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def milliseconds(times: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * statistics.median(times)


def parse(
    description: str, rounds: int, add: Callable[[argparse.ArgumentParser], None] = lambda _: None, keep: bool = True
) -> Any:
    """Flags of a benchmark: ``--json``, ``--plot``, ``--rounds`` and its own; ``keep`` keeps freed memory."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    parser.add_argument("--rounds", type=int, default=rounds, help="paired runs behind each median")
    add(parser)
    flags = parser.parse_args()
    if keep:
        keep_freed_memory_on_cpu()  # as a training and `i3d_jax.load` do
    return flags


def place() -> dict[str, Any]:
    """The machine and the versions."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": jax.devices()[0].device_kind,
        "processor": f"{model} {platform.machine()}".strip(),
        "cpus": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }


def finish(flags: Any, figures: Mapping[str, Any], ratios: Mapping[str, float | None]) -> None:
    """Write the figures, and print the ratios as the last line: one JSON object."""
    rounded = {name: None if value is None else round(value, 4) for name, value in ratios.items()}
    if flags.json:
        settings = {key: str(value) for key, value in vars(flags).items() if key not in ("json", "plot")}
        settings = {key: Path(text).name if Path(text).is_absolute() else text for key, text in settings.items()}
        data = {"settings": settings, **place(), **figures, "ratios": rounded}
        flags.json.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    print(json.dumps(rounded), flush=True)
