"""Sentences for language models: where they come from, as token ids, and in batches."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from etils import epath

from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.data.token_sequences import TokenSequences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.types import SentenceBatch

MOST_UNKNOWN = 0.1
"""Largest share of ``<unk>`` in the tokens of one source: with more, its text is not spelt as the pieces are."""


@dataclass(frozen=True)
class TextConfig:
    """Where the sentences come from."""

    run: str = "runs/demo"
    """Run directory of the recogniser, finished or begun: its pieces are the language model's tokens. Without
    ``text.transcripts`` a bundle will do."""
    transcripts: bool = True
    """Whether its train and dev transcripts are sentences."""
    train: tuple[str, ...] = ()
    """Further training text: files in UTF-8 with one sentence a line."""
    dev: tuple[str, ...] = ()
    """Further dev text."""
    max_tokens: int = 500
    """Longer training sentences are left out and counted."""


@dataclass(frozen=True)
class SentenceBatchingConfig:
    """Length-bucketed batches of few static shapes."""

    tokens_per_batch: int = 2000
    """Budget of padded tokens of a batch, the end of each sentence included."""
    num_buckets: int = 4
    """Static lengths; each costs one compilation of the training step."""
    batch_multiple: int = 8
    """Batch sizes are multiples of this; filler rows are masked out."""


def read_sentences(path: epath.PathLike) -> Iterator[str]:
    """The lines of a text file without the spaces around them, one after another; empty ones too.

    Raises:
      ValueError: the file is not UTF-8.
    """
    with epath.Path(path).open("rb") as file:
        for number, line in enumerate(file):
            try:
                yield line.decode("utf-8-sig" if number == 0 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not a text file in UTF-8: line {number + 1}: {error}") from None


@dataclass(frozen=True)
class Source:
    """Sentences of one origin.

    Attributes:
      name: for people.
      sentences: the texts, as often as they are asked for.
    """

    name: str
    sentences: Callable[[], Iterator[str]]


class Sentences:
    """The sentences of several sources as token ids, in order.

    In memory are 4 bytes of a token and 8 of a sentence (twice that while they are read), not the texts.

    Args:
      sources: where they come from.
      encode: text to token ids, `Tokenizer.unk_id` for what it cannot spell.
      max_tokens: longer sentences are left out; None keeps all.

    Attributes:
      tokens: ids of each sentence, without begin and end.
      words: how many they have, separated by spaces.
      unknown: how many of their tokens are ``<unk>``.
      too_long: sentences left out.
      empty: lines without any token, left out.

    Raises:
      ValueError: there is none, or more than `MOST_UNKNOWN` of the tokens of a source are ``<unk>``.
    """

    def __init__(self, sources: list[Source], encode: Callable[[str], list[int]], max_tokens: int | None = None):
        self.words = self.unknown = self.too_long = self.empty = 0
        self._names, self._starts = [source.name for source in sources], [0]
        self._count = 0
        self.tokens = TokenSequences(ids for source in sources for ids in self._read(source, encode, max_tokens))
        if not self._count:
            most = f"={max_tokens}"
            raise ValueError(f"{', '.join(self._names)}: no sentences{''.join(f', {x}' for x in self._left_out(most))}")

    def _read(self, source: Source, encode: Callable[[str], list[int]], most: int | None) -> Iterator[list[int]]:
        tokens, unknown, example = 0, 0, ""
        for text in source.sentences():
            ids = encode(text)
            if not ids:
                self.empty += 1
            elif most is not None and len(ids) > most:
                self.too_long += 1
            else:
                self.words += len(text.split())
                self._count += 1
                tokens += len(ids)
                if missing := ids.count(Tokenizer.unk_id):
                    unknown += missing
                    example = example or text
                yield ids
        if unknown > MOST_UNKNOWN * tokens:
            raise ValueError(
                f"{source.name}: {100 * unknown / tokens:.0f} % of its tokens are <unk>, expected at most "
                f"{100 * MOST_UNKNOWN:.0f} %: the pieces cannot spell lines such as {example[:80]!r}; write this text "
                "as the transcripts are written that the pieces were made from (in upper case, for example)"
            )
        self.unknown += unknown
        self._starts.append(self._count)

    def _left_out(self, most: str = "") -> list[str]:
        counts = {f"longer than text.max_tokens{most}": self.too_long, "without any token": self.empty}
        return [f"{count} {reason}" for reason, count in counts.items() if count]

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Which sentence of which source it is, for messages."""
        source = bisect.bisect_right(self._starts, index) - 1
        return f"sentence {index - self._starts[source] + 1} of {self._names[source]}"

    def describe(self) -> str:
        """One line: size, what the pieces cannot spell, and what was left out."""
        line = (
            f"{' + '.join(self._names)}: {len(self)} sentences, {self.tokens.counts.sum()} tokens, {self.words} words, "
            f"{self.unknown} <unk>"
        )
        left_out = self._left_out()
        return f"{line}; left out: {', '.join(left_out)}" if left_out else line

    def planner(self, config: SentenceBatchingConfig, seed: int = 0, shuffle: bool = True) -> BatchPlanner:
        """The plan of their batches, whose lengths are tokens with the end."""
        counts = self.tokens.counts
        budget = BatchingConfig(float(config.tokens_per_batch), config.num_buckets, config.batch_multiple)
        return BatchPlanner(counts + 1, counts, budget, seed=seed, shuffle=shuffle, sample_rate=1)

    def batch(self, planned: PlannedBatch) -> SentenceBatch:
        """The sentences of a planned batch; filler rows hold none."""
        rows = planned.bucket.batch_size
        tokens = np.zeros((rows, planned.bucket.num_samples - 1), np.int32)
        num_tokens = np.zeros(rows, np.int32)
        for row, index in enumerate(planned.indices.tolist()):
            ids = self.tokens[index]
            tokens[row, : len(ids)], num_tokens[row] = ids, len(ids)
        return SentenceBatch(tokens, num_tokens, np.arange(rows) < len(planned.indices))


def iterate_sentences(
    sentences: Sentences, planner: BatchPlanner, steps: range, place: Callable[[SentenceBatch], SentenceBatch]
) -> Iterator[tuple[int, PlannedBatch, SentenceBatch]]:
    """Iterates over steps of the plan, from any on: a resumed run gets exactly the batches that it has not seen.

    Yields:
      (step, planned batch, batch as ``place`` puts it on the devices).
    """
    for step in steps:
        epoch, position = planner.locate(step)
        planned = planner.epoch(epoch)[position]
        yield step, planned, place(sentences.batch(planned))
