"""Choose the weights of a decoder on dev: ``python -m i3d_jax.cli.tune_decoder RUN --lm=OUT.arpa``.

The dev set is encoded once and decoded with every combination of weights: of a language model and its word score, of
the CTC prefix score of ``--decoder=joint``, of the length bonus of ``attention`` and ``joint``. Writes
``RUN/eval/tuned-<search>.json`` and prints the command that evaluates with the best ones. See docs/decoding.md.
"""

import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import tyro
from etils import epath

from i3d_jax import files, schema
from i3d_jax.experiment import ExperimentConfig, load_saved_config, parse_flags, run_program
from i3d_jax.inference.decoding_config import DecoderName, DecodingConfig
from i3d_jax.inference.evaluation import evaluation_batches
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.report import align_columns, report_meta
from i3d_jax.inference.scoring import score
from i3d_jax.progress import log, progress
from i3d_jax.split_evaluation import load_split, spread

LM_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WORD_SCORES = (0.0, 1.0, 2.0)
CTC_WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
LENGTH_BONUSES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class TuneFlags:
    """Flags of the tuning command. Lists: ``--lm-weights=0,0.5``."""

    run: Annotated[str, tyro.conf.Positional]
    """Finished run."""
    decoder: DecoderName = "prefix_beam"
    """``prefix_beam``, ``attention`` or ``joint``."""
    lm: str = ""
    """ARPA file, for ``prefix_beam``, or the folder of a neural language model."""
    lexicon: str = ""
    """Text file of the only words that ``prefix_beam`` may give, one a line."""
    beam: int | None = None
    """Prefixes or hypotheses that are kept; default: 10."""
    tokens_per_frame: int | None = None
    """Most probable tokens of a frame by which ``prefix_beam`` extends a prefix; default: 40."""
    max_length_ratio: float | None = None
    """Greatest number of tokens of ``attention`` and ``joint`` for each encoder frame; default: 1."""
    threshold: float | None = None
    """beta of a gated run, with which it is evaluated then; default: its own."""
    lm_weights: tuple[float, ...] | None = None
    """Weights of the language model to try; default: 0, 0.2, ..., 1."""
    word_scores: tuple[float, ...] | None = None
    """Word scores to try, with a language model or lexicon; default: 0, 1, 2, of ``attention`` and ``joint`` 0."""
    ctc_weights: tuple[float, ...] | None = None
    """CTC weights of ``joint`` to try; default: 0.1, 0.3, 0.5, 0.7, 0.9; with a language model 0.3, 0.7."""
    length_bonuses: tuple[float, ...] | None = None
    """Length bonuses of ``attention`` and ``joint`` to try; default: 0, 0.5, 1."""


@dataclass(frozen=True)
class TunedPoint:
    """Error rates on dev with one combination of weights, in percent; weights that the decoder has not are left out."""

    weights: dict[str, float]
    wer: float
    cer: float


def main(argv: list[str]) -> None:
    """Try every combination, print a table and write it."""
    flags = parse_flags(argv, TuneFlags, description=__doc__ or "")
    run = epath.Path(flags.run).expanduser()
    fields = ("beam", "tokens_per_frame", "max_length_ratio", "lm", "lexicon")
    options: dict[str, Any] = {name: value for name in fields if (value := getattr(flags, name)) not in (None, "")}
    base = DecodingConfig(flags.decoder, **options)
    grid = weights_to_try(base, flags)
    recognizer, config = spread(load(run)), load_saved_config(run / "config.json")
    search, digests = base.search_label, base.digests
    points = tune(recognizer, config, base, grid, flags.threshold)
    best = best_point(points)
    data = {
        "decoder": schema.to_dict(base) | {"digests": digests},
        "threshold": flags.threshold,
        "best": schema.to_dict(best),
        "rows": [schema.to_dict(point) for point in points],
        "meta": report_meta(seed=config.seed),
    }
    at = "" if flags.threshold is None else f"-{flags.threshold:g}"
    table = run / "eval" / f"tuned{at}-{search}.json"
    files.write_text(table, json.dumps(data, indent=1, allow_nan=False) + "\n")
    body = [[*(f"{value:g}" for value in p.weights.values()), f"{p.wer:.2f}", f"{p.cer:.2f}"] for p in points]
    names = [name.replace("_", " ") for name in best.weights]
    log("\n" + align_columns([*names, "WER", "CER"], body, [False] * (len(names) + 2)))
    given = options | ({} if flags.threshold is None else {"threshold": flags.threshold}) | best.weights
    flagged = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = shlex.join(["python", "eval.py", flags.run, "--split=test", f"--decoder={base.decoder}", *flagged])
    log(f"\nwritten: {table}\nbest on dev: {command}")


def weights_to_try(base: DecodingConfig, flags: TuneFlags) -> list[dict[str, Any]]:
    """Every combination of the weights that a decoder has.

    Raises:
      ValueError: values for a weight that it has not, or none at all to try.
    """
    lists: dict[str, tuple[str, Sequence[float]]] = {
        "ctc_weight": ("ctc_weights", (0.3, 0.7) if base.lm else CTC_WEIGHTS),
        "length_bonus": ("length_bonuses", LENGTH_BONUSES),
        "lm_weight": ("lm_weights", LM_WEIGHTS),
        "word_score": ("word_scores", (0.0,) if base.joint else WORD_SCORES),
    }
    chosen: dict[str, Sequence[float]] = {}
    for name, (option, default) in lists.items():
        given = getattr(flags, option)
        if name in base.weights:
            chosen[name] = default if given is None else given
        elif given is not None:
            raise ValueError(f"--{option.replace('_', '-')}: this decoder has no {name.replace('_', ' ')} to weigh")
    if not all(chosen.values()) or not chosen:
        raise ValueError(f"decoder {base.decoder!r}: no weights to try; give --lm=... or --decoder=joint")
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]


def tune(
    recognizer: Recognizer,
    config: ExperimentConfig,
    base: DecodingConfig,
    grid: Sequence[dict[str, Any]],
    threshold: float | None = None,
) -> list[TunedPoint]:
    """Error rates on dev for every combination of weights, in the order given.

    Args:
      recognizer: the model.
      config: of its run.
      base: the decoder.
      grid: fields of it and their values.
      threshold: beta; None takes the model's own.

    Raises:
      ModuleNotFoundError: flashlight-text is not installed, and wanted.
      FileNotFoundError: no such language model or lexicon.
      ValueError: a bad beam or weight, or a decoder, language model or lexicon that does not fit.
    """
    configs = [replace(base, **values) for values in grid]  # raises for bad values
    scoring = recognizer.with_decoder(base)
    decoders = [scoring.decoder.reweighted(own) for own in configs]
    corpus = load_split(config, "dev")
    execution, decide = recognizer.best_execution(rows=2), recognizer.decision(threshold)
    texts = [[""] * len(corpus) for _ in configs]
    batches, total = evaluation_batches(recognizer, corpus, config.evaluation, config.batching)
    for planned, batch in progress(batches, f"{corpus.name}, {len(configs)} combinations", total=total):
        scored = scoring.run(batch.waveform, batch.num_samples, decide, execution)
        for own, decoder in zip(texts, decoders, strict=True):
            found = jax.device_get(decoder(scored, scoring.params)._replace(n_best=None))
            for row, index in enumerate(planned.indices):
                own[index] = recognizer.text(found, row)
    references = [utterance.text for utterance in corpus.utterances]
    results = [score(references, own, bootstrap_samples=0) for own in texts]
    return [TunedPoint(values, found.wer, found.cer) for values, found in zip(grid, results, strict=True)]


def best_point(points: Sequence[TunedPoint]) -> TunedPoint:
    """The lowest WER; of equal ones the lowest CER, then the smallest weights."""
    return min(points, key=lambda point: (point.wer, point.cer, [abs(value) for value in point.weights.values()]))


if __name__ == "__main__":
    run_program(main)
