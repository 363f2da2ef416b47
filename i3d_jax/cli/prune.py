"""Prune a run iteratively: ``python -m i3d_jax.cli.prune RUN --unit=layer --split=dev``, then ``--evaluate=test``.

The layer (or block) whose removal costs the least on the dev set is removed, again and again; nothing is trained.
Writes ``RUN/pruning/<unit>/``: a pattern file ``depth-<layers>.json`` for every depth, the table ``pruning.json`` and
a figure. An interrupted pruning goes on when the command is given again. ``--evaluate=test`` evaluates what was chosen
on another split, where nothing is chosen. See docs/controls.md.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import tyro
from etils import epath

from i3d_jax.analysis.pruning import CurvePoint, format_curve, plot_pruning, selection_curve, write_curve
from i3d_jax.data.corpora import Corpus, load_corpus
from i3d_jax.experiment import ExperimentConfig, load_saved_config, parse_flags, run_program
from i3d_jax.folder_lock import FolderLock
from i3d_jax.inference.encoded import EncodedCorpus
from i3d_jax.inference.pattern import read_pattern, write_pattern
from i3d_jax.inference.pruning import (
    Cost,
    Pruning,
    Unit,
    cost_of,
    inputs_digest,
    prune,
    read_pruning,
    write_pruning,
)
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.report import report_meta
from i3d_jax.inference.scoring import paired_bootstrap
from i3d_jax.progress import ProgressMeter, log
from i3d_jax.split_evaluation import load_split, split_name


@dataclass(frozen=True)
class PruneFlags:
    """Flags of the prune command."""

    run: Annotated[str, tyro.conf.Positional]
    """Finished run, dense or gated."""
    unit: Unit = "layer"
    """What is removed at a time: a ``layer``, or a single ``block`` (self-attention or feed-forward)."""
    split: str | None = None
    """Selection set: ``dev``, which is the default, ``train``, or any split written as in ``data.dev``. The test split
    is refused."""
    evaluate: str = ""
    """Evaluate the chosen patterns on this split instead, after the pruning: ``--evaluate=test``."""


def main(argv: list[str]) -> None:
    """Prune, or evaluate what was pruned."""
    flags = parse_flags(argv, PruneFlags, description=__doc__ or "")
    run = epath.Path(flags.run).expanduser()
    if flags.evaluate and flags.split is not None:
        raise ValueError("--evaluate evaluates what was chosen and chooses nothing: leave out --split")
    recognizer, config = load(run), load_saved_config(run / "config.json")
    folder = run / "pruning" / flags.unit
    if flags.evaluate:
        split = split_name(config, flags.evaluate)
        points = evaluate_depths(recognizer, config, folder, split)
        written = folder / f"curve-{split.replace('/', '_')}.json"
    else:
        split = split_name(config, flags.split or "dev")
        points = selection_curve(prune_run(recognizer, config, folder, flags.unit, split))
        written = folder / "pruning.json"
    log(f"\n{format_curve(points)}\n\nwritten: {written}, {written.with_suffix('.png')}, {folder}/depth-*.json")


def prune_run(
    recognizer: Recognizer, config: ExperimentConfig, folder: epath.Path, unit: Unit, split: str = "dev"
) -> Pruning:
    """Prunes a model down to nothing, or goes on with it; patterns, table and figure are written to ``folder``.

    The table is written after each removal, with the cost of every candidate.

    Raises:
      ValueError: the split is the test split or shares utterances with it, or the folder holds the pruning of another
        model or selection set.
    """
    if split == "test":
        raise ValueError("--split: depths are chosen on dev, never on test; --evaluate=test evaluates them there")
    corpus = load_split(config, split)
    check_apart_from_test(config, corpus)
    digest = inputs_digest(recognizer, corpus)
    encoder, table = recognizer.model.encoder, folder / "pruning.json"
    new = Pruning(recognizer.config.name, unit, split, digest, encoder.config.num_layers, recognizer.gate_names)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, "pruned", "another run", say=log):
        pruning = read_pruning(table) if table.exists() else new
        if replace(pruning, steps=(), split=split) != new:
            raise ValueError(
                f"{table} is the pruning of another model or selection set (split {pruning.split}); "
                f"move or delete {folder} to prune again"
            )
        if not pruning.is_finished:
            if pruning.steps:
                log(f"going on after {len(pruning.steps) - 1} of {pruning.count} removals")
            encoded = EncodedCorpus(recognizer, corpus, config.evaluation, config.batching)
            pruning = _continue(pruning, encoded, table, report_meta(seed=config.seed))
        for pattern in pruning.patterns():
            write_pattern(folder / f"depth-{pattern.executed_layers:g}.json", pattern)
        title = f"{pruning.label} on {split}"
        plot_pruning({split: selection_curve(pruning)}, pruning.patterns(), table.with_suffix(".png"), title)
    return pruning


def _continue(pruning: Pruning, encoded: EncodedCorpus, table: epath.Path, meta: dict[str, Any]) -> Pruning:
    done, total = pruning.evaluations
    with ProgressMeter(total, f"pruning {pruning.unit}s", initial=done, unit="evaluations") as meter:

        def evaluate(kept: np.ndarray) -> Cost:
            cost = cost_of(encoded.evaluate(pruning.gates(kept)))
            meter.update_to(meter.done + 1, f"{kept.sum()} of {pruning.count} {pruning.unit}s")
            return cost

        for step in prune(pruning.count, evaluate, pruning.steps):
            pruning = pruning.with_step(step)
            write_pruning(table, pruning, meta)
            left = pruning.patterns()[-1].executed_layers
            what = "whole" if step.unit is None else f"without {pruning.unit_name(step.unit)}"
            meter.write(f"{left:g} layers, {what}: WER {step.cost.wer:.2f}, CER {step.cost.cer:.2f}")
    return pruning


def check_apart_from_test(config: ExperimentConfig, corpus: Corpus) -> None:
    """However the selection set is spelt, it has no utterance of the test split.

    Raises:
      ValueError: it has one: id, length and transcript are the same.
    """
    try:
        test = load_corpus(config.data, "test")
    except FileNotFoundError as error:
        log(f"the test split is not here ({error}), so nothing of it can be in {corpus.name}")
        return
    known = {(u.id, u.num_samples, u.text) for u in test.utterances}
    shared = [u.id for u in corpus.utterances if (u.id, u.num_samples, u.text) in known]
    if shared:
        raise ValueError(
            f"--split: {corpus.name} has {len(shared)} utterances of the test split {config.data.test}, {shared[0]} "
            "for one: depths are chosen on dev, never on test; --evaluate=test evaluates them there"
        )


def evaluate_depths(
    recognizer: Recognizer, config: ExperimentConfig, folder: epath.Path, split: str
) -> list[CurvePoint]:
    """Evaluates the pattern files of a finished pruning on a split; table and figure are written beside them.

    Raises:
      FileNotFoundError: nothing has been pruned, or a pattern file is missing.
      ValueError: the pruning is not finished, or was made with another model.
    """
    pruning = read_pruning(folder / "pruning.json")
    if not pruning.is_finished:
        raise ValueError(
            f"{folder}: {len(pruning.steps) - 1} of {pruning.count} removals are done; give the command without "
            "--evaluate to finish the pruning"
        )
    if pruning.inputs != inputs_digest(recognizer, load_corpus(config.data, pruning.split)):
        raise ValueError(f"{folder} is the pruning of another model or selection set; move or delete it, prune again")
    layers, names = pruning.num_layers, pruning.gate_names
    patterns = [
        read_pattern(folder / f"depth-{pattern.executed_layers:g}.json", layers, names)
        for pattern in pruning.patterns()
    ]
    corpus = load_split(config, split)
    encoded = EncodedCorpus(recognizer, corpus, config.evaluation, config.batching)
    samples = config.evaluation.bootstrap_samples
    points: list[CurvePoint] = []
    whole = None
    with ProgressMeter(len(patterns), f"depths on {corpus.name}", unit="depths") as meter:
        for step, pattern in zip(pruning.steps, patterns, strict=True):
            result = encoded.evaluate(pattern.gates, samples)
            score = result.score
            whole = whole or score
            difference = paired_bootstrap(
                score.utterance_errors, score.utterance_words, whole.utterance_errors, whole.utterance_words
            )
            points.append(
                CurvePoint(
                    executed_layers=result.executed_layers,
                    removed="" if step.unit is None else pruning.unit_name(step.unit),
                    wer=score.wer,
                    cer=score.cer,
                    gflops_per_second=result.gflops_per_second,
                    wer_interval=score.wer_interval if samples else None,
                    wer_difference=difference.difference,
                    wer_difference_interval=difference.interval,
                )
            )
            meter.update_to(len(points), f"{pattern.executed_layers:g} layers: WER {score.wer:.2f}")
    path = folder / f"curve-{split.replace('/', '_')}.json"
    write_curve(path, pruning, split, points, report_meta(seed=config.seed))
    curves = {pruning.split: selection_curve(pruning), split: points}
    title = f"{pruning.label} on {pruning.split}"
    plot_pruning(curves, patterns, path.with_suffix(".png"), title)
    return points


if __name__ == "__main__":
    run_program(main)
