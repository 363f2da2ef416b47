"""The sweep of a run over thresholds: evaluated on a split, written as a table and a figure."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from etils import epath

from i3d_jax.analysis.plots import plot_sweeps
from i3d_jax.analysis.sweep import Baseline, Sweep, SweepPoint, read_baseline, read_sweep, sweep_points, write_sweep
from i3d_jax.data.corpora import Corpus
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.evaluation import Evaluation, evaluate
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.report import report_meta
from i3d_jax.inference.scoring import UtteranceErrors
from i3d_jax.model.gates import Decision
from i3d_jax.progress import log
from i3d_jax.split_evaluation import check_against, load_split


def sweep_file(workdir: epath.Path, split: str, tag: str = "", kind: str = "sweep") -> epath.Path:
    """Where a sweep writes its table, one over budgets with the kind ``budget``; the figure lies beside it."""
    return workdir / "eval" / f"{kind}-{tag}{split.replace('/', '_')}.json"


class BegunSweep(NamedTuple):
    """What every sweep begins with.

    Attributes:
      corpus: of the split.
      evaluate: a decision to its evaluation there, with the execution ``compacted``.
      errors: of the evaluation that is compared with, if any, in the order of the corpus.
      baseline: its row.
    """

    corpus: Corpus
    evaluate: Callable[[Decision], Evaluation]
    errors: UtteranceErrors | None
    baseline: Baseline | None


def begin_sweep(recognizer: Recognizer, config: ExperimentConfig, split: str, against: epath.Path | None) -> BegunSweep:
    """Load the split, and what is compared with.

    Raises:
      FileNotFoundError: no such split, or no evaluation in ``against``.
      ValueError: it cannot be evaluated, or ``against`` holds other utterances.
    """
    corpus = load_split(config, split)

    def run(decide: Decision) -> Evaluation:
        return evaluate(recognizer, corpus, decide, "compacted", config.evaluation, config.batching)

    if against is None:
        return BegunSweep(corpus, run, None, None)
    return BegunSweep(corpus, run, check_against(corpus, against), read_baseline(against))


def sweep_run(
    recognizer: Recognizer,
    config: ExperimentConfig,
    workdir: epath.Path,
    split: str,
    thresholds: Sequence[float] = (),
    against: epath.Path | None = None,
    tag: str = "",
) -> Sweep:
    """Evaluate a gated model over thresholds, with the execution ``compacted``, and write the table and the figure.

    A threshold is an argument of the compiled program: only the first one compiles.

    Args:
      recognizer: the model.
      config: of the run.
      workdir: run directory; the files go below ``<workdir>/eval/``.
      split: what to evaluate on.
      thresholds: empty chooses them: on the dev and training splits from the observed gate probabilities, on others
        those of the dev sweep.
      against: evaluation folder of a dense model on the same utterances.
      tag: leads the name of the files.

    Raises:
      FileNotFoundError: no evaluation in ``against``, or no dev sweep to take the thresholds from.
      ValueError: the model has no gates, a threshold is no probability, or ``against`` holds other utterances.
    """
    gates = config.model.gates
    if gates.predictor == "none":
        raise ValueError(f"{workdir}: {recognizer.config.name} has no gates, so no threshold; sweep a gated run")
    for threshold in thresholds:
        recognizer.decision(threshold)
    if not thresholds and split not in ("dev", "train"):
        thresholds = _thresholds_of_dev(sweep_file(workdir, "dev"), split)
    begun = begin_sweep(recognizer, config, split, against)

    def evaluate_at(threshold: float) -> Evaluation:
        result = begun.evaluate(recognizer.decision(threshold))
        log(f"beta {threshold:g}: WER {result.score.wer:.2f}, {result.executed_layers:.2f} layers")
        return result

    points = sweep_points(
        evaluate_at,
        recognizer.gate_names,
        thresholds=thresholds,
        beta=gates.threshold,
        local=gates.predictor == "local",
        against=begun.errors,
    )
    return write_points(recognizer, config, split, points, begun.baseline, sweep_file(workdir, split, tag), tag)


def write_points(
    recognizer: Recognizer,
    config: ExperimentConfig,
    split: str,
    points: Iterable[SweepPoint],
    baseline: Baseline | None,
    path: epath.Path,
    tag: str,
) -> Sweep:
    """Write the points of a run as a table at ``path``, and as a figure beside it."""
    sweep = Sweep(
        model=recognizer.config.name,
        split=split,
        beta=config.model.gates.threshold,
        num_layers=config.model.encoder.num_layers,
        points=tuple(sorted(points, key=lambda point: point.setting)),
        baseline=baseline,
    )
    write_sweep(path, sweep, report_meta(seed=config.seed))
    plot_sweeps({sweep.model: sweep}, path.with_suffix(".png"), f"{sweep.model}, {tag}{split}")
    return sweep


def _thresholds_of_dev(path: epath.Path, split: str) -> list[float]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no sweep of the dev split yet, and thresholds are not chosen on {split}: run "
            "--split=dev --sweep-threshold first, or name them: --sweep-threshold=0.3,0.5"
        )
    log(f"thresholds are those of {path}")
    return [point.setting for point in read_sweep(path).points]
