"""What the analyses read: utterances with their errors, lengths and gates, from an evaluation or from its folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from i3d_jax.inference.evaluation import Evaluation


@dataclass(frozen=True)
class UtteranceTable:
    """One evaluation, utterance by utterance.

    Attributes:
      ids: utterance ids, B of them.
      speakers: [B] str, the part of an id before its first ``-``.
      errors: [B] int64 word errors.
      words: [B] int64 reference words.
      audio_seconds: [B] length of the audio.
      gates: [B, N, M] bool.
      probabilities: [B, N, M] p(execute).
      gate_names: names of the M branches.
    """

    ids: tuple[str, ...]
    speakers: np.ndarray
    errors: np.ndarray
    words: np.ndarray
    audio_seconds: np.ndarray
    gates: np.ndarray
    probabilities: np.ndarray
    gate_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def executed_layers(self) -> np.ndarray:
        """[B] open gates / M, as the paper counts layers."""
        return np.asarray(self.gates.sum(axis=(1, 2)) / self.gates.shape[2])

    @property
    def expected_layers(self) -> np.ndarray:
        """[B] sum of p(execute) / M: the depth that the predictor asks for, before a threshold rounds it."""
        return np.asarray(self.probabilities.sum(axis=(1, 2)) / self.probabilities.shape[2])

    @property
    def executed_blocks(self) -> dict[str, np.ndarray]:
        """Branch name -> [B] executed blocks of that kind."""
        return {name: self.gates[:, :, m].sum(axis=1) for m, name in enumerate(self.gate_names)}

    @property
    def wer(self) -> np.ndarray:
        """[B] word error rate of each utterance, percent; of a reference without words, of one word."""
        return np.asarray(100.0 * self.errors / np.maximum(self.words, 1))

    def rows(self, indices: Sequence[int] | np.ndarray) -> "UtteranceTable":
        """The utterances at these places, in this order."""
        picked = np.asarray(indices, int)
        arrays = {k: v[picked] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return UtteranceTable(ids=tuple(self.ids[i] for i in picked), gate_names=self.gate_names, **arrays)


def speaker_of(utterance_id: str) -> str:
    """The part of an id before its first ``-``, as corpora name speakers."""
    return utterance_id.split("-")[0]


def from_evaluation(result: Evaluation, gate_names: tuple[str, ...]) -> UtteranceTable:
    """The utterances of an evaluation that was just made."""
    return UtteranceTable(
        ids=tuple(result.ids),
        speakers=np.array([speaker_of(key) for key in result.ids]),
        errors=result.score.utterance_errors,
        words=result.score.utterance_words,
        audio_seconds=np.asarray(result.audio_seconds),
        gates=np.asarray(result.gates, bool),
        probabilities=np.asarray(result.gate_probabilities, np.float64),
        gate_names=tuple(gate_names),
    )


def read_evaluation(folder: epath.PathLike) -> UtteranceTable:
    """Reads the ``utterances.jsonl`` of an evaluation folder.

    Raises:
      FileNotFoundError: the folder holds no evaluation.
      ValueError: the file is damaged, or utterances differ in their gates' shape.
    """
    path = epath.Path(folder) / "utterances.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no evaluation there; make it with eval.py")
    try:
        rows = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
        names = tuple(rows[0]["gates"])
        if not names:
            raise ValueError("no gates")
        gates, probabilities = (
            np.stack([np.array([row[key][name] for name in names]).T for row in rows])
            for key in ("gates", "gate_probabilities")
        )
        if gates.ndim != 3 or gates.shape != probabilities.shape:
            raise ValueError(f"gates {gates.shape} and probabilities {probabilities.shape} do not fit")
        ids = tuple(str(row["id"]) for row in rows)
        return UtteranceTable(
            ids=ids,
            speakers=np.array([speaker_of(key) for key in ids]),
            errors=np.array([row["errors"] for row in rows], np.int64),
            words=np.array([row["words"] for row in rows], np.int64),
            audio_seconds=np.array([row["audio_seconds"] for row in rows], np.float64),
            gates=gates.astype(bool),
            probabilities=probabilities.astype(np.float64),
            gate_names=names,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); make it again with eval.py") from error
