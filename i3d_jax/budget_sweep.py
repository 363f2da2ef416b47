"""The sweep of a run over compute budgets, and the calibration of local gate predictors that it needs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from etils import epath

from i3d_jax.analysis.sweep import Sweep, choose_thresholds, sweep_point
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.bundle import Calibration
from i3d_jax.inference.evaluation import Evaluation
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.gates import Threshold
from i3d_jax.progress import log
from i3d_jax.threshold_sweep import begin_sweep, sweep_file, write_points

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What is swept unasked."""
_THRESHOLDS = 24  # of a calibration


def sweep_budgets(
    recognizer: Recognizer,
    config: ExperimentConfig,
    workdir: epath.Path,
    split: str,
    budgets: Sequence[float] = (),
    against: epath.Path | None = None,
    tag: str = "",
) -> Sweep:
    """Evaluate a gated model over budgets, with the execution ``compacted``, and write the table and the figure.

    With local predictors the dev split of the run also calibrates: what thresholds cost on average there is measured
    and written into the model of the run, where every budget is looked up from then on.

    Args:
      recognizer: the model.
      config: of the run.
      workdir: run directory; the files go below ``<workdir>/eval/``.
      split: what to evaluate on.
      budgets: shares of the FLOPs of all gated blocks; empty takes `BUDGETS`.
      against: evaluation folder of a dense model on the same utterances.
      tag: leads the name of the files.

    Raises:
      FileNotFoundError: no evaluation in ``against``.
      ValueError: the model has no gates, or is local and neither calibrated nor evaluated on dev; a budget is no
        share; ``against`` holds other utterances.
    """
    calibrates = config.model.gates.predictor == "local" and split == "dev" and not tag
    for budget in (checked := tuple(budgets) or BUDGETS):
        if not (calibrates and 0.0 <= budget <= 1.0):
            recognizer.decision(budget=budget)
    begun = begin_sweep(recognizer, config, split, against)
    if calibrates:
        calibration = calibrate(lambda beta: begun.evaluate(recognizer.decision(beta)), config)
        recognizer.config = replace(recognizer.config, calibration=calibration)
        recognizer.save(workdir / "model")
        count, where = len(calibration.thresholds), workdir / "model"
        log(f"calibrated on {begun.corpus.name}: {count} thresholds, written to {where}")
    points = []
    for budget in sorted(set(map(float, checked))):
        decide = recognizer.decision(budget=budget)
        result = begun.evaluate(decide)
        beta = float(decide.beta) if isinstance(decide, Threshold) else None
        point = sweep_point(result, recognizer.gate_names, beta=beta, budget=budget, against=begun.errors)
        log(f"budget {budget:g}: WER {point.wer:.2f}, {point.encoder_share:.3f} of the encoder's FLOPs")
        points.append(point)
    return write_points(
        recognizer, config, split, points, begun.baseline, sweep_file(workdir, split, tag, "budget"), tag
    )


def calibrate(evaluate_at: Callable[[float], Evaluation], config: ExperimentConfig) -> Calibration:
    """What thresholds cost on average on the utterances that ``evaluate_at`` evaluates at one of them."""
    beta = config.model.gates.threshold
    done = {threshold: evaluate_at(threshold) for threshold in sorted({0.0, beta})}
    seen = np.concatenate([result.gate_probabilities for result in done.values()])
    for threshold in choose_thresholds(seen, beta, _THRESHOLDS):
        if threshold not in done:
            done[threshold] = evaluate_at(threshold)
    thresholds = tuple(sorted(done))
    return Calibration(thresholds, tuple(float(done[threshold].encoder_share.mean()) for threshold in thresholds))
