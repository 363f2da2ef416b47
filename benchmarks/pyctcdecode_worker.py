"""pyctcdecode, measured in a process of its own for ``benchmarks/decoding.py``, which starts it.

It answers calls of the methods of ``Peers`` (``benchmarks/serve.py``) and knows nothing of this project. The
environment that runs it has ``pyctcdecode``, ``pygtrie``, ``hypothesis``, ``numpy`` and ``kenlm``.
"""

import time
from importlib import metadata
from typing import Any

import numpy as np
from pyctcdecode import build_ctcdecoder
from serve import serve

_LEAST = -30.0
"""A log probability below those of all tokens that are offered; pyctcdecode raises smaller ones than -34.5 to that."""


class Peers:
    """Decoders by name, each of one array of log probabilities."""

    def versions(self) -> dict[str, str]:
        """Of what is measured."""
        return {name: metadata.version(name) for name in ("pyctcdecode", "kenlm", "numpy")}

    def load(self, path: str, labels: list[str], beam: int, tokens: int, lm: str | None, weights: list[float]) -> None:
        """Prepare for ``log_probs`` [B, T, V] of a file and a beam.

        Equal work: the most probable ``tokens`` of every frame, beams that are dropped by their rank alone, and of a
        language model with these weights, of its probabilities and of words, no further penalty of unknown words.
        """
        with np.load(path) as arrays:
            self._rows = arrays["log_probs"]
        self._beam = beam
        self._decoder = build_ctcdecoder(labels, lm, alpha=weights[0], beta=weights[1], unk_score_offset=0.0)
        least = np.sort(self._rows, axis=2)[..., -tokens, None] if tokens < self._rows.shape[2] else _LEAST
        assert self._rows[self._rows >= least].min() > _LEAST
        self._offered = np.where(self._rows >= least, self._rows, 2 * _LEAST).astype(np.float32)

    def _equal(self, row: int) -> str:
        options: dict[str, Any] = {"beam_prune_logp": -1e4, "token_min_logp": _LEAST, "prune_history": False}
        return str(self._decoder.decode_beams(self._offered[row], beam_width=self._beam, **options)[0][0])

    def _own(self, row: int) -> str:
        return str(self._decoder.decode(self._rows[row], beam_width=self._beam))

    def texts(self, how: str) -> list[str]:
        """The best text of each row: ``equal`` work, or with the pruning that is its ``own``."""
        decode = {"equal": self._equal, "own": self._own}[how]
        return [decode(row) for row in range(len(self._rows))]

    def seconds(self, how: str) -> float:
        """Wall time of all rows."""
        begun = time.perf_counter()
        self.texts(how)
        return time.perf_counter() - begun


if __name__ == "__main__":
    serve(Peers())
