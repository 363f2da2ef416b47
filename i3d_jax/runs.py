"""What run folders say about themselves: state, progress, error rates, time; whatever else lies there is named too.

Only files are read, no model is loaded. Nothing here raises for a folder that is half-written, damaged or foreign: its
state says what it is.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import from_dict, kind_of
from i3d_jax.family import members
from i3d_jax.inference.bundle_files import LANGUAGE_MODEL, RECOGNIZER, holds
from i3d_jax.inference.execution import EXECUTIONS
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.model.asr import ASRModel
from i3d_jax.schema import to_dict
from i3d_jax.validation import flatten

_SILENT_SECONDS = 600.0  # a run whose log is older has stopped: lines come every few steps
_INSIDE = frozenset({"best", "checkpoints", "eval", "model", "tensorboard"})  # of a run; no runs below
_MAX_DEPTH = 4


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluation below ``<run>/eval/``: its folder and the row of its report."""

    folder: epath.Path
    split: str
    execution: str
    wer: float
    executed_layers: float
    is_plain: bool
    """On the run's own data and with its own threshold, so that runs can be compared by it."""


@dataclass(frozen=True)
class RunSummary:
    """A folder, as far as it is a run; None where nothing is known.

    Attributes:
      path: the folder, as given.
      state: ``finished``, ``running?``, ``interrupted at step x of about y``, ``no steps yet``, ``family of n`` (its
        members are runs of their own), or what is wrong; led by ``language model`` for a run of one, of which only the
        progress is known here.
      epochs_done: passes over the training data.
      epochs: passes that the configuration asks for.
      train_loss: of the last training line of the log.
      best_dev_wer: lowest of the dev evaluations during training, percent.
      dev_wer: of the last one.
      dev_layers: executed layers of the last one.
      test_wer: percent, of the final model with its own threshold.
      test_layers: executed layers of that evaluation.
      seconds: wall time of the training, over all its processes.
      parameters: how many the model has.
      settings: the configuration with dotted keys; empty when there is none.
      evaluations: of the final model.
    """

    path: epath.Path
    state: str
    epochs_done: float | None = None
    epochs: int | None = None
    train_loss: float | None = None
    best_dev_wer: float | None = None
    dev_wer: float | None = None
    dev_layers: float | None = None
    test_wer: float | None = None
    test_layers: float | None = None
    seconds: float | None = None
    parameters: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[EvaluationSummary, ...] = ()

    def evaluation(self, split: str) -> EvaluationSummary | None:
        """The plain evaluation of a split; ``conditional``, where there are several executions."""
        order = ("conditional", *EXECUTIONS)
        plain = [e for e in self.evaluations if e.is_plain and e.split == split]
        return min(plain, key=lambda e: order.index(e.execution), default=None)


def find_runs(folders: Sequence[epath.PathLike]) -> list[epath.Path]:
    """The runs in and below folders, each once. A folder without any is returned itself, and so is one beside runs.

    Raises:
      FileNotFoundError: a folder does not exist.
    """
    found: dict[str, epath.Path] = {}
    for given in folders:
        folder = epath.Path(given).expanduser()
        if not folder.exists():
            raise FileNotFoundError(f"{folder}: no such folder; give run directories, or a folder that holds some")
        if not folder.is_dir():  # a shell's runs/* names files too
            continue
        runs = list(_runs_below(folder)) or [folder]
        if folder not in runs:  # a folder of runs: what else lies in it is not lost
            runs = [run for child in _children(folder) for run in list(_runs_below(child)) or [child]]
        for run in runs:
            found.setdefault(str(run.resolve()), run)
    return list(found.values())


def _runs_below(folder: epath.Path, depth: int = 0) -> Iterator[epath.Path]:
    is_run = (folder / "config.json").exists()
    if is_run or holds(folder) is not None:
        yield folder
    if depth == _MAX_DEPTH:
        return
    for child in _children(folder):
        if not (is_run and child.name in _INSIDE):
            yield from _runs_below(child, depth + 1)


def _children(folder: epath.Path) -> list[epath.Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:  # not ours to read
        return []


def summarize(folder: epath.Path, now: float | None = None) -> RunSummary:
    """What a folder says about itself.

    Args:
      folder: a run, or anything.
      now: Unix seconds, to tell a running training from an interrupted one; None takes the clock.
    """
    if not (folder / "config.json").exists():
        kind = "language model bundle" if holds(folder) == LANGUAGE_MODEL else "model bundle"
        return RunSummary(folder, f"{kind}, no run" if holds(folder) else "no run (no config.json)")
    saved = _read_json(folder / "config.json")
    if not isinstance(saved, dict):
        return RunSummary(folder, "config.json is damaged")
    clock = time.time() if now is None else now
    if kind_of(saved) is LanguageModelExperiment:
        lines = _read_log(folder / "log.jsonl")
        epochs = flatten(saved).get("training.epochs")
        return RunSummary(
            folder,
            state=f"language model, {_state(folder, lines, epochs, clock)}",
            epochs_done=_last(lines, "epoch", largest=True),
            epochs=epochs if isinstance(epochs, int) else None,
            seconds=_training_seconds(folder, lines),
        )
    config, settings = None, flatten(saved)
    try:
        config = from_dict(saved)
        settings = flatten(to_dict(config))  # with the defaults of keys that did not exist then
    except ValueError:
        if "training.epochs" not in settings:
            return RunSummary(folder, "no run (config.json is of something else)")
    if config is not None and config.family.size > 1:
        folders = [member.folder for member in members(config, folder)]
        finished = sum((member / "model" / RECOGNIZER).exists() for member in folders)
        return RunSummary(folder, f"family of {len(folders)}, {finished} of them finished")
    epochs = settings["training.epochs"] if isinstance(settings["training.epochs"], int) else None
    lines = _read_log(folder / "log.jsonl")
    train, dev = ([line for line in lines if line.get("kind") == kind] for kind in ("train", "dev"))
    wers = [wer for line in dev if (wer := _number(line, "wer")) is not None]
    evaluations = tuple(_evaluations(folder))
    summary = RunSummary(
        folder,
        state=_state(folder, lines, epochs, clock),
        epochs_done=_last([*train, *dev], "epoch", largest=True),
        epochs=epochs,
        train_loss=_last(train, "loss"),
        best_dev_wer=min(wers, default=None),
        dev_wer=_last(dev, "wer"),
        dev_layers=_last(dev, "executed_layers"),
        seconds=_training_seconds(folder, lines),
        parameters=_count_parameters(folder, config),
        settings=settings,
        evaluations=evaluations,
    )
    test = summary.evaluation("test")
    wer, layers = (test.wer, test.executed_layers) if test else (None, None)
    return RunSummary(**{**vars(summary), "test_wer": wer, "test_layers": layers})


def different_settings(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Dotted key -> value in each run that has settings, where they are not all equal; absent ones are None.

    ``name`` is left out: it names, and sets nothing.
    """
    settings = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for one in settings for key in one if key != "name")
    table = {key: [one.get(key) for one in settings] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _state(folder: epath.Path, lines: list[dict[str, Any]], epochs: int | None, now: float) -> str:
    if holds(folder / "model") is not None:
        return "finished"
    step = _last(lines, "step", largest=True)
    if not step:
        return "no steps yet"
    seen = _last(lines, "time", largest=True)
    total = ""
    for line in reversed(lines):
        if (epoch := _number(line, "epoch")) and (done := _number(line, "step")) and epochs:
            total = f" of about {round(done / epoch * epochs)}"  # epochs differ by a few steps
            break
    progress = f"at step {step:g}{total}"
    return f"running? {progress}" if seen and now - seen < _SILENT_SECONDS else f"interrupted {progress}"


def _training_seconds(folder: epath.Path, lines: list[dict[str, Any]]) -> float | None:
    """From the start of each process to its last line; the pauses between processes do not count."""
    times = sorted(moment for line in lines if (moment := _number(line, "time")) is not None)
    if not times:
        return None
    names = [file.name for file in (folder / "tensorboard").glob("events.out.tfevents.*")]
    starts = sorted({float(match[1]) for name in names if (match := re.match(r"events\.out\.tfevents\.(\d+)", name))})
    # Names of event files hold whole seconds, and a log that was copied alone has none.
    starts = [start for start in starts if start <= times[-1]]
    if not starts or starts[0] > times[0]:
        starts.insert(0, times[0])
    total = 0.0
    for start, end in zip(starts, [*starts[1:], float("inf")], strict=True):
        own = [moment for moment in times if start <= moment < end]
        total += own[-1] - start if own else 0.0
    return total


def _count_parameters(folder: epath.Path, config: Any) -> int | None:
    try:
        vocab_size = Tokenizer.load(folder / "tokenizer.model").vocab_size
        model = ASRModel(config.model, config.frontend.num_mels, vocab_size)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))
    except (ValueError, OSError, AttributeError, RuntimeError):  # no tokenizer yet, or one that cannot be read
        return None


def _evaluations(folder: epath.Path) -> Iterator[EvaluationSummary]:
    for path in sorted((folder / "eval").glob("*/report.json")):
        report = _read_json(path)
        try:
            (row,) = report["rows"]
            split, execution = str(row["split"]), str(row["execution"])
            numbers = {key: float(row[key]) for key in ("wer", "executed_layers")}
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if execution in EXECUTIONS and all(map(math.isfinite, numbers.values())):
            is_plain = path.parent.name == f"{split.replace('/', '_')}-{execution}"
            yield EvaluationSummary(path.parent, split, execution, **numbers, is_plain=is_plain)


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _read_log(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a log that are whole; the last one may be half-written."""
    lines = []
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            lines.append(record)
    return lines


def _number(line: dict[str, Any], key: str) -> float | None:
    value = line.get(key)
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _last(lines: list[dict[str, Any]], key: str, *, largest: bool = False) -> float | None:
    numbers = [number for line in lines if (number := _number(line, key)) is not None]
    return (max(numbers) if largest else numbers[-1]) if numbers else None
