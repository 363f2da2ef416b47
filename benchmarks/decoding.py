"""Time of prefix beam search beside flashlight-text, pyctcdecode and greedy decoding, and of language models in both.

Command: ``python benchmarks/decoding.py --peer-python=PATH --json docs/benchmarks/decoding.json``; about ten minutes on
two cores. Needs ``pip install flashlight-text`` (Python 3.11 or 3.12); PATH is the interpreter of an environment with
``pip install numpy hypothesis kenlm`` and ``pip install --no-deps pyctcdecode pygtrie``: pyctcdecode's own requirements
exclude NumPy 2.

Posteriors are drawn: two frames of three are a clear blank, of the others half hold one token and half are torn between
several. The first texts of all searches are compared, and their shares of equal ones are among the figures. pyctcdecode
is measured twice: with equal work, which is the same tokens of every frame and no other pruning than the beam, and with
the pruning that is its own. It adds up the pieces that spell one text; the others tell token sequences apart.

With a language model the clear tokens are those of sentences, and the language model is of their words. Measured are
the decoder of this project, which is flashlight-text with words scored in Python, the same with a lexicon, and
pyctcdecode with the same language model and weights.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions, ZeroLM
from measure import finish, milliseconds, paired, parse, ratio
from peers import Worker, save

from i3d_jax.data.demo_corpus import sentences
from i3d_jax.data.ngram_training import train_ngrams, write_ngrams
from i3d_jax.data.tokenizer import SPACE, Tokenizer, TokenizerConfig
from i3d_jax.inference.decoding import greedy_decode
from i3d_jax.inference.execution import CTCScores
from i3d_jax.inference.lexicon import Lexicon
from i3d_jax.inference.ngram import NGramModel, NGramSearch
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME, NBest, prefix_beam_search

FRAMES_PER_SECOND = 25
LM_WEIGHT, WORD_SCORE = 0.5, 1.0


def posteriors(
    rows: int, frames: int, vocabulary: int, spoken: list[int] | None = None, never: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """Log probabilities [B, T, V] as of a trained model; ``spoken`` tokens, one after the other, or any."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((rows, frames, vocabulary))
    kind = generator.random((rows, frames))
    scores[..., 0] += np.where(kind < 2 / 3, 18.0, 4.0)
    said = generator.integers(1, vocabulary, (rows, frames, 1))
    if spoken is not None:
        begun = generator.integers(0, len(spoken), (rows, 1))
        said = np.take(spoken, begun + np.cumsum(kind > 2 / 3, axis=1), mode="wrap")[..., None]
    for n in range(4):
        favoured = generator.integers(1, vocabulary, (rows, frames, 1)) if n or spoken is None else said
        bounds = (8.0, 14.0) if n or spoken is None else (12.0, 16.0)  # what was said is heard best, mostly
        torn = (kind > 5 / 6)[..., None] * generator.uniform(*bounds, (rows, frames, 1))
        np.put_along_axis(scores, favoured, np.take_along_axis(scores, favoured, 2) + torn, 2)
    bonus = ((kind > 2 / 3) & (kind <= 5 / 6))[..., None] * 18.0
    np.put_along_axis(scores, said, np.take_along_axis(scores, said, 2) + bonus, 2)
    scores[..., list(never)] = -20.0
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


def first(found: NBest) -> list[tuple[int, ...]]:
    """The best tokens of each row."""
    tokens, counts = np.asarray(found.tokens)[:, 0], np.asarray(found.num_tokens)[:, 0]
    return [tuple(own[:count].tolist()) for own, count in zip(tokens, counts, strict=True)]


def share(ours: list[str], theirs: list[str]) -> float:
    """Of equal texts."""
    return float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))


def peer(worker: Worker) -> dict[str, Any]:
    """What is timed in the process of pyctcdecode, which measures itself."""
    return {f"pyctcdecode, {how}": partial(worker.call, "seconds", how=how) for how in ("equal", "own")}


def compare(worker: Worker, folder: Path, flags: Any, rows: int, vocabulary: int) -> dict[str, Any]:
    """Times and ratios for one size of batch, without a language model."""
    log_probs = posteriors(rows, round(flags.seconds * FRAMES_PER_SECOND), vocabulary)
    on_device, mask = jax.device_put((log_probs, np.ones(log_probs.shape[:2], bool)))
    ours = first(prefix_beam_search(on_device, mask, beam=flags.beam))
    # A character for each token, every other one the beginning of a word.
    labels = ["", *((SPACE * (i % 2)) + chr(0x4E00 + i) for i in range(1, vocabulary))]
    written = ["".join(labels[i] for i in ids).replace(SPACE, " ").strip() for ids in ours]
    common = {"labels": labels, "beam": flags.beam, "tokens": TOKENS_PER_FRAME, "lm": None, "weights": [0.0, 0.0]}
    worker.call("load", path=save(folder / "rows.npz", {"log_probs": log_probs}), **common)
    times = paired(
        {
            "prefix beam": partial(prefix_beam_search, on_device, mask, beam=flags.beam),
            "flashlight-text": lambda: flashlight(log_probs, flags.beam),
            "greedy": partial(jax.jit(greedy_decode), on_device, mask),
            **peer(worker),
        },
        flags.rounds,
        again=True,
    )
    return {
        "rows": rows,
        "vocabulary": vocabulary,
        "equal_texts": {
            "flashlight-text": float(
                np.mean([a == b for a, b in zip(ours, flashlight(log_probs, flags.beam), strict=True)])
            ),
            **{f"pyctcdecode, {how}": share(written, worker.call("texts", how=how)) for how in ("equal", "own")},
        },
        "milliseconds": {name: milliseconds(own) for name, own in times.items()},
        "real_time_factor": milliseconds(times["prefix beam"]) / 1e3 / (rows * flags.seconds),
        "over": {name: ratio(times["prefix beam"], own) for name, own in times.items() if name != "prefix beam"},
    }


def with_language_model(worker: Worker, folder: Path, flags: Any) -> dict[str, Any]:
    """Times and ratios with a trigram model of words, with and without a lexicon of its words."""
    texts = sentences(2000, seed=1)
    tokenizer = Tokenizer.train(texts, TokenizerConfig("unigram", 300))
    lm, words = folder / "words.arpa", folder / "words.txt"
    write_ngrams(lm, train_ngrams([text.split() for text in texts], 3))
    words.write_text("\n".join(sorted({word for text in texts for word in text.split()})))
    spoken = [token for text in texts[:200] for token in tokenizer.encode(text)]
    frames, vocabulary = round(flags.seconds * FRAMES_PER_SECOND), tokenizer.vocab_size
    # Of <unk> and the mark of a space alone, pyctcdecode breaks words of other prefixes of the beam, too.
    never = [i for i in range(1, vocabulary) if tokenizer.piece(i) in ("<unk>", SPACE, "<sos/eos>")]
    log_probs = posteriors(flags.lm_rows, frames, vocabulary, spoken, never)
    scores = CTCScores(log_probs, np.ones((flags.lm_rows, frames), bool))
    model, lexicon = NGramModel(tokenizer, lm), Lexicon(tokenizer, words)
    weights: dict[str, Any] = {"lm_weight": LM_WEIGHT, "word_score": WORD_SCORE, "beam": flags.beam}
    search, constrained = NGramSearch(model, **weights), NGramSearch(model, lexicon=lexicon, **weights)
    labels = ["", *(tokenizer.piece(i) for i in range(1, vocabulary))]
    common = {"labels": labels, "beam": flags.beam, "tokens": TOKENS_PER_FRAME, "lm": str(lm)}
    path = save(folder / "spoken.npz", {"log_probs": log_probs})
    worker.call("load", path=path, weights=[LM_WEIGHT, WORD_SCORE], **common)
    ours = [tokenizer.decode(ids) for ids in first(search(scores))]
    times = paired(
        {"ours": partial(search, scores), "ours, lexicon": partial(constrained, scores), **peer(worker)},
        flags.rounds,
        again=True,
    )
    return {
        "rows": flags.lm_rows,
        "vocabulary": vocabulary,
        "words": len(words.read_text().split()),
        "equal_texts": {f"pyctcdecode, {how}": share(ours, worker.call("texts", how=how)) for how in ("equal", "own")},
        "milliseconds": {name: milliseconds(own) for name, own in times.items()},
        "over": {name: ratio(times["ours"], own) for name, own in times.items() if name != "ours"},
    }


def main() -> None:
    """Measure, print and write."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--peer-python", required=True, help="interpreter of the environment of pyctcdecode")
        parser.add_argument("--beam", type=int, default=10)
        parser.add_argument("--seconds", type=float, default=12.0, help="of audio a row")
        parser.add_argument("--vocabularies", type=int, nargs="+", default=[300, 5000])
        parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
        parser.add_argument("--lm-rows", type=int, default=4, help="with a language model")

    flags = parse(__doc__ or "", 15, add)
    rows = []
    with (
        tempfile.TemporaryDirectory() as name,
        Worker(flags.peer_python, Path(name), "pyctcdecode_worker.py") as worker,
    ):
        versions = worker.call("versions")
        for vocabulary, batch in itertools.product(flags.vocabularies, flags.batches):
            rows.append(compare(worker, Path(name), flags, batch, vocabulary))
            print(rows[-1], flush=True)
        lm = with_language_model(worker, Path(name), flags)
        print(lm, flush=True)
    ratios = {
        f"V{row['vocabulary']}_batch{row['rows']}_over_{peer}": row["over"][name]["median"]
        for row in rows
        for peer, name in (("flashlight", "flashlight-text"), ("pyctcdecode", "pyctcdecode, equal"))
    }
    ratios["lm_over_pyctcdecode"] = lm["over"]["pyctcdecode, equal"]["median"]
    finish(flags, {"peers": versions, "rows": rows, "language_model": lm}, ratios)


if __name__ == "__main__":
    main()
