"""The dev evaluation of a training: its metrics, and what TensorBoard shows of the gates and the texts."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.analysis.plots import draw_gate_heat_map
from i3d_jax.data.corpora import Corpus
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.evaluation import Evaluation, evaluate
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.gates import SoftMean
from i3d_jax.training.sharding import Parallel
from i3d_jax.training.summaries import RunLogger

_SAMPLES = 4  # utterances whose transcripts are logged


def dev_metrics(
    config: ExperimentConfig,
    dev: Corpus,
    candidate: Recognizer,
    parallel: Parallel,
    logger: RunLogger,
    step: int,
    params: Any,
) -> Mapping[str, float]:
    """WER of the dev set with thresholded gates; for gated models also executed layers, and WER with soft gates.

    Logs transcripts of a few utterances, the same at every step, and the gates of a gated model.
    """
    candidate.params = parallel.replicate(params)
    run = partial(
        evaluate,
        candidate,
        dev,
        execution="masked",
        config=replace(config.evaluation, bootstrap_samples=0),
        batching=config.batching,
        place=parallel.put_batch,
        fetch=parallel.fetch,
        share=parallel.share(),
        interactive=False,
    )
    gated = config.model.gates.predictor != "none"
    result = run(decide=candidate.decision())
    metrics = {"wer": result.score.wer, "cer": result.score.cer, "executed_layers": result.executed_layers}
    if gated:
        soft = run(decide=SoftMean())
        metrics |= {"soft_wer": soft.score.wer, "soft_layers": soft.executed_layers}
        _log_gates(logger, step, result, candidate.gate_names)
    _log_samples(logger, step, result, gated)
    candidate.params = {}  # else every device would keep this copy
    return metrics


def _log_gates(logger: RunLogger, step: int, result: Evaluation, gate_names: tuple[str, ...]) -> None:
    stats = gate_statistics(result.gates, result.gate_probabilities, gate_names)
    title = f"p(execute) on dev, step {step}: {stats.executed_layers_mean:.2f} layers"
    logger.image(step, "dev/gates", draw_gate_heat_map(stats, title))
    logger.histogram(step, "dev/executed_layers_of_utterances", result.gates.sum(axis=(1, 2)) / len(gate_names))


def _log_samples(logger: RunLogger, step: int, result: Evaluation, gated: bool) -> None:
    """Utterances evenly spread over the dev set, whose neighbours are often of one speaker."""
    count = len(result.ids)
    for index in np.unique(np.linspace(0, count - 1, min(_SAMPLES, count)).round().astype(int)):
        lines = [f"ref: {result.references[index]}", f"hyp: {result.hypotheses[index]}"]
        if gated:
            lines.append(f"executed layers: {result.gates[index].sum() / result.gates.shape[2]:g}")
        logger.text(step, f"sample/{result.ids[index]}", "\n".join(lines))
