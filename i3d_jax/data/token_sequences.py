"""Token ids of many utterances in flat arrays."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class TokenSequences(Sequence[list[int]]):
    """Token ids of each utterance, as a list when they are asked for.

    A list of lists takes about 40 bytes of a token id, this takes 4, and 8 of an utterance.

    Args:
      sequences: token ids of each utterance, gone through once.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]):
        ids, ends = array("i"), array("q", [0])
        for sequence in sequences:
            ids.extend(sequence)
            ends.append(len(ids))
        self._ids, self._ends = np.array(ids), np.array(ends)

    @property
    def counts(self) -> np.ndarray:
        """[utterances] int64 ids of each."""
        return np.diff(self._ends)

    @property
    def digest(self) -> str:
        """SHA-256 of all ids, in hexadecimal."""
        digest = hashlib.sha256(self._ends.tobytes())
        digest.update(self._ids.astype(np.int32, copy=False).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        ids: list[int] = self._ids[self._ends[chosen] : self._ends[chosen + 1]].tolist()
        return ids
