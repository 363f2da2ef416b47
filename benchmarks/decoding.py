"""Time of prefix beam search beside flashlight-text's decoder without a lexicon or language model, and greedy decoding.

Command: ``python benchmarks/decoding.py --json docs/benchmarks/decoding.json``; about two minutes on two cores. Needs
``pip install flashlight-text`` (Python 3.11 or 3.12).

Posteriors are drawn: two frames of three are a clear blank, of the others half hold one token and half are torn between
several. The first text of both searches is compared, and their share of equal ones is among the figures.
"""

import argparse
import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions, ZeroLM
from measure import finish, milliseconds, paired, parse, ratio

from i3d_jax.inference.decoding import greedy_decode
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME, prefix_beam_search

FRAMES_PER_SECOND = 25


def posteriors(rows: int, frames: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Log probabilities [B, T, V] as of a trained model."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((rows, frames, vocabulary))
    kind = generator.random((rows, frames))
    scores[..., 0] += np.where(kind < 2 / 3, 18.0, 4.0)
    for _ in range(4):
        favoured = generator.integers(1, vocabulary, (rows, frames, 1))
        torn = (kind > 5 / 6)[..., None] * generator.uniform(8.0, 14.0, (rows, frames, 1))
        np.put_along_axis(scores, favoured, np.take_along_axis(scores, favoured, 2) + torn, 2)
    clear = generator.integers(1, vocabulary, (rows, frames, 1))
    bonus = ((kind > 2 / 3) & (kind <= 5 / 6))[..., None] * 18.0
    np.put_along_axis(scores, clear, np.take_along_axis(scores, clear, 2) + bonus, 2)
    return np.asarray(jax.nn.log_softmax(scores.astype(np.float32)))


def flashlight(log_probs: np.ndarray, beam: int) -> list[tuple[int, ...]]:
    """The best tokens of each row."""
    # Kept by name: the decoder holds only what it is in C++.
    language = ZeroLM()
    tokens = min(TOKENS_PER_FRAME, log_probs.shape[2])
    options = LexiconFreeDecoderOptions(beam, tokens, 1e4, 0.0, 0.0, True, CriterionType.CTC)
    decoder = LexiconFreeDecoder(options, language, 0, 0, [])
    found = []
    for row in log_probs:
        path = decoder.decode(row.ctypes.data, *row.shape)[0].tokens
        found.append(tuple(token for token, _ in itertools.groupby(path) if token))
    return found


def compare(rows: int, seconds: float, vocabulary: int, beam: int, rounds: int) -> dict[str, Any]:
    """Times and ratios for one size of batch."""
    log_probs = posteriors(rows, round(seconds * FRAMES_PER_SECOND), vocabulary)
    on_device, mask = jax.device_put((log_probs, np.ones(log_probs.shape[:2], bool)))
    ours = jax.device_get(prefix_beam_search(on_device, mask, beam=beam))
    theirs = flashlight(log_probs, beam)
    equal = [tuple(ours.tokens[r, 0, : ours.num_tokens[r, 0]].tolist()) == theirs[r] for r in range(rows)]
    times = paired(
        {
            "prefix beam": partial(prefix_beam_search, on_device, mask, beam=beam),
            "flashlight-text": lambda: flashlight(log_probs, beam),
            "greedy": partial(jax.jit(greedy_decode), on_device, mask),
        },
        rounds,
        again=True,
    )
    return {
        "rows": rows,
        "seconds": seconds,
        "vocabulary": vocabulary,
        "beam": beam,
        "equal_texts": float(np.mean(equal)),
        "milliseconds": {name: milliseconds(own) for name, own in times.items()},
        "real_time_factor": milliseconds(times["prefix beam"]) / 1e3 / (rows * seconds),
        "over_flashlight": ratio(times["prefix beam"], times["flashlight-text"]),
        "over_greedy": ratio(times["prefix beam"], times["greedy"]),
    }


def main() -> None:
    """Measure, print and write."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--beam", type=int, default=10)
        parser.add_argument("--seconds", type=float, default=12.0, help="of audio a row")
        parser.add_argument("--vocabularies", type=int, nargs="+", default=[300, 5000])
        parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])

    flags = parse(__doc__ or "", 15, add)
    rows = []
    for vocabulary, batch in itertools.product(flags.vocabularies, flags.batches):
        rows.append(compare(batch, flags.seconds, vocabulary, flags.beam, flags.rounds))
        print(rows[-1], flush=True)
    names = {f"V{row['vocabulary']}_batch{row['rows']}": row["over_flashlight"]["median"] for row in rows}
    finish(flags, {"rows": rows}, names)


if __name__ == "__main__":
    main()
