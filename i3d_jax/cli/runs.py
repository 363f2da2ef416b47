"""List and compare runs: ``python -m i3d_jax.cli.runs runs --sort=dev_wer --against=runs/demo/dense``.

Prints state, progress and error rates of each run, then the settings that differ between them. Folders are searched
for runs; what is no run is listed as what it is.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from etils import epath

from i3d_jax.analysis.plots import plot_sweeps
from i3d_jax.analysis.sweep import read_sweep
from i3d_jax.experiment import parse_flags, run_program
from i3d_jax.inference.report import align_columns
from i3d_jax.inference.scoring import compare
from i3d_jax.progress import format_duration
from i3d_jax.runs import RunSummary, different_settings, find_runs, summarize
from i3d_jax.threshold_sweep import sweep_file

Sort = Literal["path", "state", "dev_wer", "best_dev_wer", "test_wer", "dev_layers", "test_layers", "parameters",
               "seconds"]  # fmt: skip


@dataclass(frozen=True)
class RunsFlags:
    """Flags of the runs command."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("runs",)
    """Run directories, or folders that hold some."""
    against: str = ""
    """A run: adds the difference in WER from it on every split that both have evaluated, with its paired-bootstrap
    interval."""
    sort: Sort = "path"
    """Column to sort by, smallest first; runs that lack it come last."""
    format: Literal["table", "json", "csv", "markdown"] = "table"
    """csv is one line a run, settings and differences as further columns."""
    plot: str = ""
    """PNG file: draws the threshold sweeps of the runs in one figure."""
    split: str = "dev"
    """Split of the sweeps to draw."""


@dataclass(frozen=True)
class Difference:
    """WER of a run minus that of another on one split, in points; or why there is none."""

    run: str
    split: str
    wer: float | None = None
    other_wer: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    problem: str = ""


def differences(runs: Sequence[RunSummary], other: RunSummary) -> list[Difference]:
    """Paired differences from another run on the splits that both have evaluated; problems are told, not raised."""
    found = []
    for run in runs:
        if run.path.resolve() == other.path.resolve() or not run.settings:
            continue
        name = str(run.path)
        shared = 0
        for split in sorted({evaluation.split for evaluation in run.evaluations}):
            ours, theirs = run.evaluation(split), other.evaluation(split)
            if ours is None or theirs is None:
                continue
            shared += 1
            try:
                result = compare(ours.folder, theirs.folder)
            except (ValueError, FileNotFoundError) as error:
                found.append(Difference(name, split, ours.wer, theirs.wer, problem=str(error)))
                continue
            found.append(Difference(name, split, ours.wer, theirs.wer, result.difference, result.interval))
        if not shared:
            found.append(Difference(name, "-", problem="no split that both have evaluated"))
    return found


_COLUMNS: dict[str, Callable[[RunSummary], str]] = {
    "run": lambda run: str(run.path),
    "state": lambda run: run.state,
    "epochs": lambda run: "-" if run.epochs is None else f"{_text(run.epochs_done, '.3g')}/{run.epochs}",
    "loss": lambda run: _text(run.train_loss, ".3g"),
    "best dev WER": lambda run: _text(run.best_dev_wer, ".2f"),
    "dev WER": lambda run: _text(run.dev_wer, ".2f"),
    "dev layers": lambda run: _text(run.dev_layers, ".2f"),
    "test WER": lambda run: _text(run.test_wer, ".2f"),
    "test layers": lambda run: _text(run.test_layers, ".2f"),
    "time": lambda run: "-" if run.seconds is None else format_duration(run.seconds),
    "parameters": lambda run: "-" if run.parameters is None else f"{run.parameters / 1e6:.2f} M",
}
_LEFT = ("run", "state")


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _setting(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    rule = ["---" if at_left else "---:" for at_left in left]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in line] for line in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_text(runs: Sequence[RunSummary], compared: Sequence[Difference], other: str, markdown: bool) -> str:
    """The tables, one below the other: runs, settings that differ, differences in WER."""
    table = _markdown if markdown else align_columns
    body = [[column(run) for column in _COLUMNS.values()] for run in runs]
    parts = [table(list(_COLUMNS), body, [title in _LEFT for title in _COLUMNS])]
    settings = different_settings(runs)
    if settings:
        names = [str(run.path) for run in runs if run.settings]
        lines = [[key, *map(_setting, values)] for key, values in settings.items()]
        parts.append("Settings that differ:")
        parts.append(table(["setting", *names], lines, [True] * (len(names) + 1)))
    if other:
        lines = []
        for one in compared:
            interval = one.problem if one.interval is None else f"{one.interval[0]:+.2f} to {one.interval[1]:+.2f}"
            numbers = [_text(one.wer, ".2f"), _text(one.other_wer, ".2f"), _text(one.difference, "+.2f")]
            lines.append([one.run, one.split, *numbers, interval])
        header = ["run", "split", "WER", "its WER", "difference", "95 % interval"]
        parts.append(f"WER minus that of {other}, paired bootstrap:")
        parts.append(table(header, lines, [True, True, False, False, False, True]))
    return "\n\n".join(parts)


def to_records(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """The runs as JSON-able values, without their settings."""
    records = []
    for run in runs:
        record = {key: value for key, value in vars(run).items() if key not in ("path", "settings", "evaluations")}
        evaluations = [vars(e) | {"folder": e.folder.name} for e in run.evaluations]
        records.append({"run": str(run.path), **record, "evaluations": evaluations})
    return records


def format_csv(runs: Sequence[RunSummary], compared: Sequence[Difference]) -> str:
    """One line a run; ``settings.<key>`` and ``difference.<split>`` are further columns."""
    settings = different_settings(runs)
    with_settings = [str(run.path) for run in runs if run.settings]
    rows = []
    for record in to_records(runs):
        name = record["run"]
        row = {key: value for key, value in record.items() if key != "evaluations"}
        if name in with_settings:
            place = with_settings.index(name)
            row |= {f"settings.{key}": _setting(values[place]) for key, values in settings.items()}
        for one in compared:
            if one.run == name and one.interval is not None:
                row[f"difference.{one.split}"] = one.difference
                row[f"difference_low.{one.split}"], row[f"difference_high.{one.split}"] = one.interval
        rows.append(row)
    buffer = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


def plot(runs: Sequence[RunSummary], split: str, path: epath.Path) -> None:
    """Draws the sweeps of the runs that have one.

    Raises:
      ValueError: none has one, or one is damaged.
    """
    files = {str(run.path): sweep_file(run.path, split) for run in runs}
    sweeps = {name: read_sweep(file) for name, file in files.items() if file.exists()}
    if not sweeps:
        raise ValueError(
            f"--plot: none of the {len(runs)} runs has a sweep of {split}; make one with "
            f"python eval.py RUN --split={split} --sweep-threshold"
        )
    plot_sweeps(sweeps, path, f"Threshold sweeps, {split}")


def main(argv: list[str]) -> None:
    """Print the runs."""
    flags = parse_flags(argv, RunsFlags, description=__doc__ or "")
    runs = [summarize(folder) for folder in find_runs(flags.runs)]
    if flags.sort != "path":
        runs.sort(key=lambda run: ((value := getattr(run, flags.sort)) is None, value))
    compared: list[Difference] = []
    if flags.against:
        other = summarize(epath.Path(flags.against).expanduser())
        if not other.settings:
            raise ValueError(f"--against={flags.against}: {other.state}; give a run directory")
        compared = differences(runs, other)
    match flags.format:
        case "json":
            data = {"runs": to_records(runs), "settings": different_settings(runs)}
            if flags.against:
                data["differences"] = [vars(one) for one in compared]
            print(json.dumps(data, indent=2))
        case "csv":
            print(format_csv(runs, compared))
        case _:
            print(format_text(runs, compared, flags.against, flags.format == "markdown"))
    if flags.plot:
        plot(runs, flags.split, epath.Path(flags.plot).expanduser())


if __name__ == "__main__":
    run_program(main)
