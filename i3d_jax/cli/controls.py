"""Controls of a gated run: ``python -m i3d_jax.cli.controls RUN --control=all --split=test``.

The gates of the model are replaced, and nothing else: ``frozen`` at their majority over the dev set, ``permuted`` among
the utterances, ``random`` with as many open blocks for each utterance. Each is compared with the model itself on the
same utterances, by paired bootstrap. Writes ``RUN/controls/<split>/``. See docs/controls.md.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro
from etils import epath

from i3d_jax import files, schema
from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.data.corpora import Corpus
from i3d_jax.experiment import ExperimentConfig, load_saved_config, parse_flags, run_program
from i3d_jax.inference.controls import majority, permuted, random_places
from i3d_jax.inference.evaluation import Evaluation, evaluate
from i3d_jax.inference.pattern import Decisions, Pattern, PerUtterance, write_pattern
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.report import align_columns, report_meta
from i3d_jax.inference.scoring import paired_bootstrap
from i3d_jax.progress import log
from i3d_jax.split_evaluation import load_split, split_name, spread

Control = Literal["frozen", "permuted", "random"]
CONTROLS: tuple[Control, ...] = ("frozen", "permuted", "random")


@dataclass(frozen=True)
class ControlFlags:
    """Flags of the controls command."""

    run: Annotated[str, tyro.conf.Positional]
    """Finished gated run."""
    control: Literal["frozen", "permuted", "random", "all"] = "all"
    """Which one."""
    split: str = "test"
    """``dev``, ``test``, or any split written as in ``data.test``."""
    threshold: float | None = None
    """beta: a block is executed where p(execute) > beta; default: the model's own."""
    seeds: int = 5
    """Draws of ``permuted`` and ``random``, with the seeds 0, 1, ..."""


@dataclass(frozen=True)
class ControlRow:
    """One evaluation, or the mean over several seeds.

    Attributes:
      name: ``model``, or control and seed.
      wer: percent.
      cer: percent.
      executed_layers: executed blocks / M, averaged over utterances.
      gflops_per_second: GFLOP per second of audio.
      distinct_patterns: different gate patterns among the utterances; of a mean None.
      changed_gates: share of all gates that differ from those of the model.
      wer_difference: WER minus that of the model, in points; None for the model.
      wer_difference_interval: its 95 % paired-bootstrap interval over utterances, the seeds being given.
    """

    name: str
    wer: float
    cer: float
    executed_layers: float
    gflops_per_second: float
    distinct_patterns: int | None
    changed_gates: float
    wer_difference: float | None
    wer_difference_interval: tuple[float, ...] | None


def main(argv: list[str]) -> None:
    """Run controls and print a table of each."""
    flags = parse_flags(argv, ControlFlags, description=__doc__ or "")
    run = epath.Path(flags.run).expanduser()
    recognizer, config = spread(load(run)), load_saved_config(run / "config.json")
    controls = CONTROLS if flags.control == "all" else (flags.control,)
    split = split_name(config, flags.split)
    tables = run_controls(recognizer, config, run, controls, split, flags.threshold, flags.seeds)
    for rows in tables.values():
        log(f"\n{format_rows(rows)}")
    log(f"\nwritten: {controls_folder(run, split, flags.threshold)}")


def controls_folder(run: epath.Path, split: str, threshold: float | None) -> epath.Path:
    """Where the controls of a split are written."""
    return run / "controls" / (split.replace("/", "_") + ("" if threshold is None else f"-{threshold!r}"))


def run_controls(
    recognizer: Recognizer,
    config: ExperimentConfig,
    run: epath.Path,
    controls: Sequence[Control],
    split: str,
    threshold: float | None = None,
    seeds: int = 5,
) -> dict[Control, list[ControlRow]]:
    """Evaluates the model and its controls, and writes tables, texts and patterns to `controls_folder`.

    Args:
      recognizer: the model.
      config: of the run.
      run: its folder.
      controls: which ones.
      split: what to evaluate on; ``frozen`` counts its majority on dev.
      threshold: beta; None takes the model's own.
      seeds: draws of the random controls.

    Returns:
      Rows of each control: the model, then one row a seed and the mean of these.

    Raises:
      ValueError: the model has no gates, or a bad threshold or number of seeds.
    """
    if config.model.gates.predictor == "none":
        raise ValueError(f"{run}: {recognizer.config.name} has no gates to control; give a gated run")
    if seeds < 1:
        raise ValueError(f"--seeds={seeds}: expected at least 1")
    decide = recognizer.decision(threshold)
    corpus = load_split(config, split)
    if "permuted" in controls and len(corpus) < 2:
        raise ValueError(f"--control=permuted: {corpus.name} has {len(corpus)} utterance: expected at least 2")
    dev = load_split(config, "dev") if "frozen" in controls and split != "dev" else corpus
    folder = controls_folder(run, split, threshold)
    beta = config.model.gates.threshold if threshold is None else threshold

    def evaluated(corpus: Corpus, decide: Decisions, name: str) -> Evaluation:
        result = evaluate(recognizer, corpus, decide, "compacted", config.evaluation, config.batching)
        log(f"{name} on {corpus.name}: WER {result.score.wer:.2f}, {result.executed_layers:.2f} layers")
        return result

    model = evaluated(corpus, decide, "model")
    model.write(folder / "model", recognizer.gate_names)

    def compared(name: str, decide: Decisions) -> tuple[Evaluation, ControlRow]:
        result = evaluated(corpus, decide, name)
        result.write(folder / name, recognizer.gate_names)
        return result, control_row(name, [result], model, recognizer.gate_names)

    def drawn(control: str, draw: Callable[[np.ndarray, int], np.ndarray]) -> list[ControlRow]:
        done = [compared(f"{control}-seed{s}", PerUtterance(draw(model.gates, s))) for s in range(seeds)]
        mean = control_row(f"{control}, mean", [result for result, _ in done], model, recognizer.gate_names)
        return [*(row for _, row in done), mean]

    tables: dict[Control, list[ControlRow]] = {}
    for control in controls:
        match control:
            case "frozen":
                observed = model if dev is corpus else evaluated(dev, decide, "model")
                origin = f"{recognizer.config.name}: majority of its gates at beta {beta:g} over {dev.name}"
                pattern = Pattern(majority(observed.gates), recognizer.gate_names, origin)
                write_pattern(folder / "frozen-pattern.json", pattern)
                rows = [compared(control, pattern.decision)[1]]
            case "permuted":
                rows = drawn(control, permuted)
            case "random":
                rows = drawn(control, random_places)
        tables[control] = [control_row("model", [model], model, recognizer.gate_names), *rows]
        meta = report_meta(seed=config.seed) | {"split": split, "threshold": beta, "utterances": len(corpus)}
        data = {"rows": [schema.to_dict(row) for row in tables[control]], "meta": meta}
        files.write_text(folder / f"{control}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
        files.write_text(folder / f"{control}.txt", format_rows(tables[control]) + "\n")
    return tables


def control_row(name: str, results: Sequence[Evaluation], model: Evaluation, gate_names: tuple[str, ...]) -> ControlRow:
    """The row of an evaluation, or of the mean of several, compared with the model on the same utterances.

    Of several, the bootstrap resamples utterances together with all their results.
    """
    count, words = len(results), model.score.utterance_words
    difference = None
    if results[0] is not model:
        errors = np.sum([result.score.utterance_errors for result in results], axis=0)
        difference = paired_bootstrap(errors, count * words, count * model.score.utterance_errors, count * words)
    patterns = None
    if count == 1:
        (result,) = results
        patterns = gate_statistics(result.gates, result.gate_probabilities, gate_names).distinct_patterns
    return ControlRow(
        name=name,
        wer=float(np.mean([result.score.wer for result in results])),
        cer=float(np.mean([result.score.cer for result in results])),
        executed_layers=float(np.mean([result.executed_layers for result in results])),
        gflops_per_second=float(np.mean([result.gflops_per_second for result in results])),
        distinct_patterns=patterns,
        changed_gates=float(np.mean([result.gates != model.gates for result in results])),
        wer_difference=difference.difference if difference else None,
        wer_difference_interval=difference.interval if difference else None,
    )


def format_rows(rows: Sequence[ControlRow]) -> str:
    """The rows as aligned plain text."""
    header = [
        "",
        "WER",
        "CER",
        "executed layers",
        "GFLOP per s",
        "patterns",
        "changed gates",
        "WER - model",
        "95 % interval",
    ]
    body = [
        [
            row.name,
            f"{row.wer:.2f}",
            f"{row.cer:.2f}",
            f"{row.executed_layers:.2f}",
            f"{row.gflops_per_second:.3f}",
            "-" if row.distinct_patterns is None else str(row.distinct_patterns),
            f"{row.changed_gates:.3f}",
            "-" if row.wer_difference is None else f"{row.wer_difference:+.2f}",
            "-" if (bounds := row.wer_difference_interval) is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}",
        ]
        for row in rows
    ]
    return align_columns(header, body, [title == "" for title in header])


if __name__ == "__main__":
    run_program(main)
