"""Evaluating a model on a split of a run, with everything that is kept of it."""

import jax
from etils import epath

from i3d_jax import schema
from i3d_jax.analysis.gate_stats import GateStats, gate_statistics
from i3d_jax.analysis.plots import plot_gate_probabilities
from i3d_jax.data.corpora import Corpus, load_corpus
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.decoding_config import GREEDY, DecodingConfig
from i3d_jax.inference.evaluation import Evaluation, check_lengths, evaluate, real_time_factor
from i3d_jax.inference.execution import Execution
from i3d_jax.inference.pattern import Pattern
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.report import Report, ReportRow, report_meta, write_report
from i3d_jax.inference.scoring import UtteranceErrors, read_errors
from i3d_jax.progress import log


def split_name(config: ExperimentConfig, split: str) -> str:
    """``train``, ``dev`` or ``test`` for what the configuration calls so; any other split is its own name."""
    data = config.data
    return {data.test: "test", data.train: "train", data.dev: "dev"}.get(split, split)


def load_split(config: ExperimentConfig, split: str) -> Corpus:
    """The corpus of a split, announced; an utterance that is too long to evaluate is an error.

    Raises:
      FileNotFoundError: no such split.
      ValueError: it cannot be evaluated.
    """
    corpus = load_corpus(config.data, split)
    log(corpus.describe())
    check_lengths(corpus, config.evaluation)
    return corpus


def check_against(corpus: Corpus, folder: epath.Path) -> UtteranceErrors:
    """Errors of an earlier evaluation, in the order of the corpus.

    Raises:
      FileNotFoundError: the folder holds no evaluation.
      ValueError: it is one of other utterances or transcripts than the corpus has.
    """
    ids, references = [u.id for u in corpus.utterances], [u.text for u in corpus.utterances]
    return read_errors(folder).ordered_as(ids, references, corpus.name)


def _file_name(stem: str, threshold: float | None, budget: float | None = None) -> str:
    name = stem.replace("/", "_")
    for label, value in (("", threshold), ("budget", budget)):
        if value is not None:
            short = f"{value:g}"
            name += f"-{label}{short if float(short) == value else value}"
    return name


def evaluation_folder(
    workdir: epath.Path,
    split: str,
    execution: Execution,
    threshold: float | None = None,
    budget: float | None = None,
    tag: str = "",
    pattern: Pattern | None = None,
    decoder: DecodingConfig = GREEDY,
) -> epath.Path:
    """Where ``evaluate_run`` writes one evaluation."""
    fixed = f"-pattern{pattern.digest}" if pattern else ""
    decoded = "" if decoder == GREEDY else f"-{decoder.label}"
    return workdir / "eval" / (_file_name(f"{tag}{split}-{execution}", threshold, budget) + fixed + decoded)


def spread(recognizer: Recognizer) -> Recognizer:
    """The same model on all devices of this process, if it has several."""
    devices = jax.local_devices()
    return recognizer.over_devices(devices) if len(devices) > 1 else recognizer


def evaluate_run(
    recognizer: Recognizer,
    config: ExperimentConfig,
    workdir: epath.Path,
    split: str,
    executions: tuple[Execution, ...],
    threshold: float | None = None,
    budget: float | None = None,
    tag: str = "",
    against: epath.Path | None = None,
    pattern: Pattern | None = None,
) -> tuple[list[ReportRow], GateStats]:
    """Evaluate on one split; hypotheses, gates and scores go below ``<workdir>/eval/``, ``tag`` leading their names.

    A ``pattern`` replaces the decision of the model; it excludes threshold and budget. The decoder is the recogniser's.

    Raises:
      FileNotFoundError: no such split, or no evaluation in the folder ``against``.
      ValueError: a bad threshold or budget, or ``against`` holds other utterances; nothing has been evaluated then.
    """
    if pattern is not None and (threshold is not None or budget is not None):
        raise ValueError("a pattern says which blocks are executed: give no threshold or budget with it")
    # First: it may be refused.
    decide = pattern.decision if pattern else recognizer.decision(threshold, budget)
    corpus = load_split(config, split)
    if against is not None:
        check_against(corpus, against)
    decoder = recognizer.decoder.config
    label = decoder.label  # before: the files that were read may change meanwhile
    folders = [
        evaluation_folder(workdir, split, execution, threshold, budget, tag, pattern, decoder)
        for execution in executions
    ]
    rows: list[ReportRow] = []
    stats: GateStats | None = None
    for execution, folder in zip(executions, folders, strict=True):
        result = evaluate(recognizer, corpus, decide, execution, config.evaluation, config.batching)
        factor = real_time_factor(recognizer, corpus, decide, execution, config.evaluation.timed_utterances)
        row = result.row(recognizer.config.name, execution, label, split, factor)
        stats = gate_statistics(result.gates, result.gate_probabilities, recognizer.gate_names)
        _write_evaluation(folder, result, row, stats, config, recognizer, pattern)
        rows.append(row)
    assert stats is not None
    if config.model.gates.predictor != "none" and pattern is None:
        beta = config.model.gates.threshold if threshold is None else threshold
        title = f"{recognizer.config.name}, {split}" + ("" if budget is None else f", budget {budget:g}")
        picture = workdir / f"{_file_name(f'gates-{tag}{split}', threshold, budget)}.png"
        plot_gate_probabilities(stats, picture, title, threshold=beta)
    return rows, stats


def _write_evaluation(
    folder: epath.Path,
    result: Evaluation,
    row: ReportRow,
    stats: GateStats,
    config: ExperimentConfig,
    recognizer: Recognizer,
    pattern: Pattern | None,
) -> None:
    result.write(folder, recognizer.gate_names)
    key = f"{row['model']}/{row['split']}"
    meta = report_meta(seed=config.seed) | {"score": result.score.to_dict()}
    if recognizer.decoder.config != GREEDY:
        meta["decoder"] = schema.to_dict(recognizer.decoder.config) | {"digests": recognizer.decoder.digests}
    if pattern is not None:
        meta["pattern"] = pattern.to_dict()
    write_report(folder / "report.json", Report(rows=[row], gates={key: stats.to_dict()}, meta=meta))
