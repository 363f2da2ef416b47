"""Transcripts to token ids and back: SentencePiece with the project's reserved ids.

Ids: 0 ``<blank>`` (of CTC), 1 ``<unk>``, then the pieces, last ``<sos/eos>`` (not in the SentencePiece model).
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import sentencepiece
from etils import epath

from i3d_jax import files

SPACE = "\u2581"
"""SentencePiece's mark of a space, with which the first piece of a word begins."""

# The C++ library writes to stderr, below any Python logging: keep only what is fatal.
_QUIET = 2


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece model, trained from the training transcripts."""

    kind: Literal["unigram", "bpe", "char"] = "unigram"
    """SentencePiece model type. For a small vocabulary of words take ``bpe``: it makes any repeated word one piece,
    ``unigram`` only words that are part of another word as well."""
    vocab_size: int = 200
    """Pieces wanted; fewer are made when the transcripts do not hold as many. Ignored by ``char``. A ``bpe`` of whole
    words needs about three times the number of words, for the intermediate merges."""


class Tokenizer:
    """A trained SentencePiece model.

    Args:
      model: serialised SentencePiece model with ``<blank>`` at 0, ``<unk>`` at 1, and no sentence marks.

    Raises:
      ValueError: not such a model.
    """

    blank_id = 0
    unk_id = 1

    def __init__(self, model: bytes):
        self._model = model
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        reserved = (self._pieces.pad_id(), self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        if reserved != (self.blank_id, self.unk_id, -1, -1):
            raise ValueError(
                f"SentencePiece model with (pad, unk, bos, eos) = {reserved}, expected (0, 1, -1, -1): train it with "
                "Tokenizer.train"
            )

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """Trains a model; the same texts in the same order give the same bytes.

        Raises:
          ValueError: the texts are empty, or hold more different characters than `config.vocab_size`.
        """
        lines = [text for text in texts if text.strip()]
        if not lines:
            raise ValueError("no transcripts to train a tokenizer from")
        characters = len(set("".join(lines)))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=config.kind,
                vocab_size=characters + 3 if config.kind == "char" else config.vocab_size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=10 + max(len(line.encode()) for line in lines),
                pad_id=cls.blank_id,
                unk_id=cls.unk_id,
                bos_id=-1,
                eos_id=-1,
                pad_piece="<blank>",
                num_threads=1,
                minloglevel=_QUIET,
            )
        except RuntimeError as error:
            raise ValueError(
                f"cannot train a {config.kind} tokenizer with tokenizer.vocab_size = {config.vocab_size} from "
                f"{len(lines)} transcripts with {characters} different characters: {error}"
            ) from None
        return cls(model.getvalue())

    def save(self, path: epath.PathLike) -> None:
        """Writes the model to a file, atomically."""
        files.write_bytes(path, self._model)

    @classmethod
    def load(cls, path: epath.PathLike) -> "Tokenizer":
        """Reads a model that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not a model of this project.
        """
        file = epath.Path(path)
        if not file.exists():
            raise FileNotFoundError(f"tokenizer model {file} does not exist; a run holds it once training has started")
        try:
            return cls(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @property
    def digest(self) -> str:
        """SHA-256 of the model, in hexadecimal."""
        return hashlib.sha256(self._model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """V: number of ids, reserved ones included."""
        return int(self._pieces.vocab_size()) + 1

    @property
    def sos_eos_id(self) -> int:
        """Id of ``<sos/eos>``: the last one, V - 1."""
        return self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a transcript; characters never seen in training become `unk_id`."""
        return [int(i) for i in self._pieces.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; reserved ids are skipped.

        Raises:
          ValueError: an id is outside [0, V).
        """
        return str(self._pieces.decode([i for i in map(int, ids) if self._is_piece(i)]))

    def words(self, ids: Iterable[int]) -> list[tuple[str, list[int]]]:
        """The words of token ids, as `decode` spells them, each with the positions of its tokens.

        Raises:
          ValueError: an id is outside [0, V).
        """
        words: list[tuple[str, list[int]]] = []
        for position, i in enumerate(map(int, ids)):
            if not self._is_piece(i):
                continue
            first, *rest = self.piece(i).split(SPACE)
            if not words:
                words.append(("", []))
            words[-1] = (words[-1][0] + first, [*words[-1][1], position] if first else words[-1][1])
            words += [(part, [position]) for part in rest]
        return [(word, positions) for word, positions in words if word]

    def piece(self, id: int) -> str:
        """How a token is written, `SPACE` being the space before a word; ``<sos/eos>`` for the last one."""
        return "<sos/eos>" if id == self.sos_eos_id else str(self._pieces.id_to_piece(id))

    @property
    def pieces(self) -> list[str]:
        """How every token is written, by id."""
        return [self.piece(i) for i in range(self.vocab_size)]

    def _is_piece(self, id: int) -> bool:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside [0, {self.vocab_size})")
        return id not in (self.blank_id, self.unk_id, self.sos_eos_id)
