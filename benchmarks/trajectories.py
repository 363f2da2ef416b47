"""Losses of the same training on other meshes and numbers of processes, relative to one device in one process.

Command: ``python benchmarks/trajectories.py``. It trains ``tests/tiny_config.py`` for 20 steps of 32 rows in each
place, on emulated CPU devices, and prints a Markdown table; about a quarter of an hour on two cores.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_hosts import end, start
from tests.trainings import losses

# Processes, devices of each, fsdp, parts: everything is mixed.
PLACES = [
    (1, 1, 1, 4),
    (1, 2, 1, 2),
    (1, 8, 4, 1),
    (2, 1, 2, 1),
    (2, 2, 1, 1),
    (2, 8, 2, 2),
    (4, 1, 1, 1),
    (4, 2, 8, 1),
    (4, 8, 1, 1),
]
RECIPE = ("--batching.batch-multiple=32", "--training.epochs=10", "--training.eval-every-epochs=10")


def run(folder: Path, processes: int, devices: int, fsdp: int = 1, parts: int = 1) -> dict[int, float]:
    """Step -> loss."""
    workdir = folder / f"{processes}-{devices}-{fsdp}-{parts}"
    settings = (f"--parallel.fsdp={fsdp}", f"--parallel.accumulate={parts}")
    texts, codes = end(start(workdir, processes, devices, *RECIPE, *settings))
    if any(codes):
        raise SystemExit("\n".join(texts))
    return losses(workdir)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected = run(folder, 1, 1)
        print("| processes x devices | mesh (data, fsdp) | parts | steps | largest relative difference of a loss |")
        print("| --- | --- | --- | --- | --- |")
        for processes, devices, fsdp, parts in PLACES:
            found = run(folder, processes, devices, fsdp, parts)
            worst = max(abs(found[step] / loss - 1) for step, loss in expected.items())
            mesh = f"({processes * devices // fsdp}, {fsdp})"
            print(f"| {processes} x {devices} | {mesh} | {parts} | {len(found)} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
