"""Choose the weights of a language model on dev: ``python -m i3d_jax.cli.tune_lm RUN --lm=OUT.arpa``.

The dev set is encoded once and decoded with every pair of weights. Writes ``RUN/eval/lm-dev.json`` and prints the
command that evaluates with the best pair. See docs/decoding.md.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from etils import epath

from i3d_jax import files, schema
from i3d_jax.experiment import ExperimentConfig, load_saved_config, parse_flags, run_program
from i3d_jax.inference.decoder import DecodingConfig
from i3d_jax.inference.evaluation import evaluation_batches
from i3d_jax.inference.lexicon import Lexicon
from i3d_jax.inference.ngram import LanguageModel, NGramSearch
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.report import align_columns, report_meta
from i3d_jax.inference.scoring import score
from i3d_jax.progress import log, progress
from i3d_jax.split_evaluation import load_split, spread

WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WORD_SCORES = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class TuneFlags:
    """Flags of the tuning command."""

    run: Annotated[str, tyro.conf.Positional]
    """Finished run."""
    lm: str
    """ARPA file."""
    lexicon: str = ""
    """Text file of the only words that may come out, one a line."""
    beam: int = 10
    """Prefixes that are kept from frame to frame."""
    lm_weights: tuple[float, ...] = WEIGHTS
    """Weights to try, ``--lm-weights=0,0.5``."""
    word_scores: tuple[float, ...] = WORD_SCORES
    """Word scores to try, ``--word-scores=0,1``."""


@dataclass(frozen=True)
class TunedPoint:
    """Error rates on dev with one pair of weights, in percent."""

    lm_weight: float
    word_score: float
    wer: float
    cer: float


def main(argv: list[str]) -> None:
    """Try every pair, print a table and write it."""
    flags = parse_flags(argv, TuneFlags, description=__doc__ or "")
    run = epath.Path(flags.run).expanduser()
    lm = os.path.abspath(os.path.expanduser(flags.lm))
    lexicon = os.path.abspath(os.path.expanduser(flags.lexicon)) if flags.lexicon else ""
    recognizer, config = spread(load(run)), load_saved_config(run / "config.json")
    points = tune(recognizer, config, lm, flags.beam, flags.lm_weights, flags.word_scores, lexicon)
    best = best_point(points)
    data = {
        "lm": lm,
        "lexicon": lexicon,
        "digests": DecodingConfig("prefix_beam", lm=lm, lexicon=lexicon).digests,
        "beam": flags.beam,
        "best": schema.to_dict(best),
        "rows": [schema.to_dict(point) for point in points],
        "meta": report_meta(seed=config.seed),
    }
    path = run / "eval" / "lm-dev.json"
    files.write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
    body = [[f"{p.lm_weight:g}", f"{p.word_score:g}", f"{p.wer:.2f}", f"{p.cer:.2f}"] for p in points]
    log("\n" + align_columns(["lm weight", "word score", "WER", "CER"], body, [False] * 4))
    options = ["--decoder=prefix_beam", f"--beam={flags.beam}", f"--lm={flags.lm}", f"--lm-weight={best.lm_weight:g}"]
    options += [f"--lexicon={flags.lexicon}"] if flags.lexicon else []
    options += [f"--word-score={best.word_score:g}"] if best.word_score else []
    command = shlex.join(["python", "eval.py", flags.run, "--split=test", *options])
    log(f"\nwritten: {path}\nbest on dev: {command}")


def tune(
    recognizer: Recognizer,
    config: ExperimentConfig,
    lm: str,
    beam: int,
    lm_weights: Sequence[float] = WEIGHTS,
    word_scores: Sequence[float] = WORD_SCORES,
    lexicon: str = "",
) -> list[TunedPoint]:
    """Error rates on dev for every pair of weights, in the order given.

    Raises:
      ModuleNotFoundError: flashlight-text is not installed.
      FileNotFoundError: no such language model or lexicon.
      ValueError: a bad beam or weight, or a language model or lexicon that does not fit.
    """
    model = LanguageModel(recognizer.tokenizer, lm)
    words = Lexicon(recognizer.tokenizer, lexicon) if lexicon else None
    pairs = [(weight, bonus) for weight in lm_weights for bonus in word_scores]
    if not pairs:
        raise ValueError("no weights to try: give --lm-weights and --word-scores")
    for weight, bonus in pairs:
        DecodingConfig("prefix_beam", beam, lm=lm, lm_weight=weight, word_score=bonus)  # raises for bad values
    searches = [
        NGramSearch(model, lexicon=words, lm_weight=weight, word_score=bonus, beam=beam) for weight, bonus in pairs
    ]
    corpus = load_split(config, "dev")
    scoring = recognizer.with_decoder(DecodingConfig("prefix_beam", beam))  # whose programs give scores
    execution, decide = recognizer.best_execution(rows=2), recognizer.decision()
    texts = [[""] * len(corpus) for _ in pairs]
    batches, total = evaluation_batches(recognizer, corpus, config.evaluation, config.batching)
    for planned, batch in progress(batches, f"{corpus.name}, {len(pairs)} pairs of weights", total=total):
        scored = scoring.run(batch.waveform, batch.num_samples, decide, execution)
        assert scored.scores is not None
        for own, search in zip(texts, searches, strict=True):
            found = search(scored.scores)
            for row, index in enumerate(planned.indices):
                own[index] = recognizer.tokenizer.decode(found.tokens[row, 0, : found.num_tokens[row, 0]].tolist())
    references = [utterance.text for utterance in corpus.utterances]
    points = []
    for (weight, bonus), own in zip(pairs, texts, strict=True):
        result = score(references, own, bootstrap_samples=0)
        points.append(TunedPoint(weight, bonus, result.wer, result.cer))
    return points


def best_point(points: Sequence[TunedPoint]) -> TunedPoint:
    """The lowest WER; of equal ones the lowest CER, then the smallest weights."""
    return min(points, key=lambda point: (point.wer, point.cer, point.lm_weight, abs(point.word_score)))


if __name__ == "__main__":
    run_program(main)
