"""Word and character error rates with bootstrap intervals, and the files other scorers read."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jiwer
import numpy as np
from etils import epath

from i3d_jax import files

_DRAWS_PER_CHUNK = 1 << 22


@dataclass(frozen=True)
class Score:
    """Errors of a set of hypotheses.

    Rates are percentages of the reference words (characters); when the references hold none, of one.

    Attributes:
      wer: word error rate, percent.
      cer: character error rate, percent; a space counts as a character.
      wer_interval: 95 % percentile bootstrap interval of ``wer`` over utterances; two NaN when it was not asked for.
      words: reference words.
      substitutions: of words, like the next two.
      deletions: reference words missing in the hypotheses.
      insertions: hypothesis words without a reference.
      characters: reference characters.
      character_substitutions: of characters, like the next two.
      character_deletions: reference characters missing in the hypotheses.
      character_insertions: hypothesis characters without a reference.
      utterance_errors: [B] int64 word errors.
      utterance_words: [B] int64 reference words.
    """

    wer: float
    cer: float
    wer_interval: tuple[float, float]
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_substitutions: int
    character_deletions: int
    character_insertions: int
    utterance_errors: np.ndarray
    utterance_words: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-utterance arrays, as JSON-able values; an interval not asked for is None."""
        fields = {k: v for k, v in vars(self).items() if not k.startswith("utterance_")}
        interval = None if np.isnan(self.wer_interval[0]) else list(self.wer_interval)
        return {**fields, "wer_interval": interval, "utterances": len(self.utterance_words)}


@dataclass(frozen=True)
class PairedDifference:
    """Comparison of systems a and b on the same utterances.

    Attributes:
      difference: WER of a minus WER of b, in points (percent of the reference words).
      interval: 95 % percentile bootstrap interval of ``difference``.
      probability_a_better: share of the resamples in which a has fewer errors; ties count half.
    """

    difference: float
    interval: tuple[float, float]
    probability_a_better: float


def score(
    references: Sequence[str], hypotheses: Sequence[str], *, bootstrap_samples: int = 1000, seed: int = 0
) -> Score:
    """Scores hypotheses against references, with jiwer.

    Words are separated by white space of any kind and length; nothing else is normalised. The words of a hypothesis
    whose reference is empty are insertions.

    Args:
      references: [B] transcripts.
      hypotheses: [B] recognised texts.
      bootstrap_samples: resamplings of the utterances behind ``wer_interval``; 0 leaves it out.
      seed: of the resampling.

    Raises:
      ValueError: no utterances, different numbers of them, or a negative number of bootstrap samples.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one hypothesis each")
    if not references:
        raise ValueError("no utterances to score; expected at least one reference")
    references = [" ".join(text.split()) for text in references]
    hypotheses = [" ".join(text.split()) for text in hypotheses]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    utterance_words = np.array([len(text) for text in words.references], np.int64)
    utterance_errors = np.array([_num_errors(alignment) for alignment in words.alignments], np.int64)
    num_characters = sum(len(text) for text in characters.references)
    character_errors = characters.substitutions + characters.deletions + characters.insertions
    interval = (math.nan, math.nan)
    if bootstrap_samples != 0:
        sums = _resampled_sums(bootstrap_samples, seed, utterance_errors, utterance_words)
        interval = _interval(np.concatenate([_percent(e, w) for e, w in sums]))
    return Score(
        wer=float(_percent(utterance_errors.sum(), utterance_words.sum())),
        cer=100.0 * character_errors / max(num_characters, 1),
        wer_interval=interval,
        words=int(utterance_words.sum()),
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        characters=num_characters,
        character_substitutions=characters.substitutions,
        character_deletions=characters.deletions,
        character_insertions=characters.insertions,
        utterance_errors=utterance_errors,
        utterance_words=utterance_words,
    )


def paired_bootstrap(
    errors_a: np.ndarray,
    words_a: np.ndarray,
    errors_b: np.ndarray,
    words_b: np.ndarray,
    *,
    samples: int = 10000,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap over utterances (Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR", 2004).

    Args:
      errors_a: [B] word errors of system a (``Score.utterance_errors``).
      words_a: [B] reference words (``Score.utterance_words``).
      errors_b: [B] word errors of system b, same utterances in the same order.
      words_b: [B], must equal ``words_a``.
      samples: resamplings.
      seed: of the resampling.

    Raises:
      ValueError: the systems were not scored on the same references, or there are no utterances or samples.
    """
    errors_a, words_a, errors_b, words_b = (np.asarray(x, np.int64) for x in (errors_a, words_a, errors_b, words_b))
    if not (errors_a.shape == errors_b.shape == words_a.shape and np.array_equal(words_a, words_b)):
        raise ValueError(
            "a and b must be scored on the same utterances in the same order, but their reference words differ "
            f"(shapes {errors_a.shape}, {words_a.shape}, {errors_b.shape}, {words_b.shape}); score both on one split"
        )
    if not words_a.size:
        raise ValueError("no utterances to compare; expected at least one")
    difference = errors_a - errors_b
    resampled = np.concatenate([_percent(e, w) for e, w in _resampled_sums(samples, seed, difference, words_a)])
    return PairedDifference(
        difference=float(_percent(difference.sum(), words_a.sum())),
        interval=_interval(resampled),
        probability_a_better=float(np.mean(resampled < 0) + 0.5 * np.mean(resampled == 0)),
    )


@dataclass(frozen=True)
class UtteranceErrors:
    """Word errors of one evaluation, utterance by utterance, as read from its folder.

    Attributes:
      folder: where they are from, for messages.
      ids: utterance ids, B of them.
      errors: [B] int64 word errors.
      words: [B] int64 reference words.
      references: transcripts, B of them.
    """

    folder: str
    ids: tuple[str, ...]
    errors: np.ndarray
    words: np.ndarray
    references: tuple[str, ...]

    def ordered_as(self, ids: Sequence[str], references: Sequence[str], name: str) -> "UtteranceErrors":
        """The same utterances in another order.

        Args:
          ids: utterance ids of what this is to be compared with.
          references: its transcripts, one for each id; only their words count.
          name: what it is called in messages.

        Raises:
          ValueError: other utterances, or other references.
        """
        place = {key: i for i, key in enumerate(self.ids)}
        if place.keys() != set(ids):
            extra, missing = len(place.keys() - set(ids)), len(set(ids) - place.keys())
            raise ValueError(
                f"{name} and {self.folder} are evaluations of different utterances ({missing} are missing in the "
                f"latter, {extra} are only there); score both on one split"
            )
        order = [place[key] for key in ids]
        pairs = zip(ids, order, references, strict=True)
        different = [key for key, i, text in pairs if self.references[i].split() != text.split()]
        if different:
            raise ValueError(
                f"{name} and {self.folder} have different references for {len(different)} utterances, {different[0]} "
                "for one; score both on the same transcripts"
            )
        return UtteranceErrors(self.folder, tuple(ids), self.errors[order], self.words[order], tuple(references))


def read_errors(folder: epath.PathLike) -> UtteranceErrors:
    """Reads the ``utterances.jsonl`` of an evaluation folder.

    Raises:
      FileNotFoundError: the folder holds no evaluation.
      ValueError: the file is damaged.
    """
    path = epath.Path(folder) / "utterances.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no evaluation there; make it with eval.py")
    try:
        rows = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
        ids = tuple(str(row["id"]) for row in rows)
        errors, words = (np.array([row[key] for row in rows], np.int64) for key in ("errors", "words"))
        references = tuple(str(row["reference"]) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); make it again with eval.py") from error
    return UtteranceErrors(os.fspath(folder), ids, errors, words, references)


def compare(a: epath.PathLike, b: epath.PathLike) -> PairedDifference:
    """Paired bootstrap of two evaluation folders (their ``utterances.jsonl``).

    Raises:
      FileNotFoundError: a folder holds no evaluation.
      ValueError: they are not evaluations of the same utterances.
    """
    first = read_errors(a)
    second = read_errors(b).ordered_as(first.ids, first.references, first.folder)
    return paired_bootstrap(first.errors, first.words, second.errors, second.words)


def write_trn(path: epath.PathLike, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Writes ``words (id)`` lines as NIST sclite reads them, atomically.

    What the format cannot hold in an id, blanks and parentheses, is written as ``%`` and two hexadecimal digits for
    each byte, and so is ``%``: ``take(1)`` becomes ``take%281%29``. Different ids stay different.

    Raises:
      ValueError: different numbers of ids and texts, or an empty id.
    """
    if len(ids) != len(texts):
        raise ValueError(f"{path}: {len(ids)} ids but {len(texts)} texts; give one text each")
    if not all(ids):
        raise ValueError(f"{path}: an utterance id is empty; name it")
    lines = (" ".join([*text.split(), f"({_trn_id(name)})"]) for name, text in zip(ids, texts, strict=True))
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _trn_id(name: str) -> str:
    special = re.compile(r"[\s()%\x00-\x1f\x7f-\x9f\ud800-\udfff]")
    return special.sub(lambda match: quote(match[0], safe="", errors="surrogatepass"), name)


def write_jsonl(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, atomically; numpy and jax values become numbers and lists.

    Raises:
      ValueError: a value is not finite.
    """
    lines = (json.dumps(dict(row), ensure_ascii=False, allow_nan=False, default=files.json_default) for row in rows)
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _num_errors(alignment: Sequence[jiwer.AlignmentChunk]) -> int:
    return sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in alignment
        if chunk.type != "equal"
    )


def _percent(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    return 100.0 * errors / np.maximum(words, 1)


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def _resampled_sums(samples: int, seed: int, *columns: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Sums of the columns over resampled utterances, in chunks of bounded memory."""
    if samples < 1:
        raise ValueError(f"{samples} bootstrap samples; expected at least 1")
    rng = np.random.default_rng(seed)
    utterances = len(columns[0])
    chunk = max(_DRAWS_PER_CHUNK // utterances, 1)
    for start in range(0, samples, chunk):
        picks = rng.integers(0, utterances, (min(chunk, samples - start), utterances))
        yield tuple(column[picks].sum(axis=1) for column in columns)
