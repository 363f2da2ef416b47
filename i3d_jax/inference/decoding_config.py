"""Which decoder, with which options; checked before anything is recognised."""

import math
import os
from dataclasses import dataclass, fields, replace
from typing import Literal

from etils import epath

from i3d_jax import files
from i3d_jax.inference.joint_decoding import JointDecodingConfig
from i3d_jax.inference.prefix_beam import TOKENS_PER_FRAME
from i3d_jax.manifest import contents_digest

DecoderName = Literal["greedy", "prefix_beam", "attention", "joint"]
DECODERS: tuple[DecoderName, ...] = ("greedy", "prefix_beam", "attention", "joint")

MAX_BEAM = 1000

_WEIGHTS = ("ctc_weight", "length_bonus", "lm_weight", "word_score")
_BEAM, _ATTENDS = ("beam", "n_best", "lm", "lm_weight", "word_score"), ("length_bonus", "max_length_ratio")
_OPTIONS: dict[DecoderName, tuple[str, ...]] = {
    "greedy": (),
    "prefix_beam": (*_BEAM, "tokens_per_frame", "lexicon"),
    "attention": (*_BEAM, *_ATTENDS),
    "joint": (*_BEAM, *_ATTENDS, "ctc_weight"),
}


@dataclass(frozen=True)
class DecodingConfig:
    """How encoder states become tokens. Paths are made absolute.

    Raises:
      ValueError: a value that no decoder has, or an option that this one has not.
      FileNotFoundError: there is no such language model or lexicon.
    """

    decoder: DecoderName = "greedy"
    """``greedy``; ``prefix_beam``, which sums over alignments; ``attention`` and ``joint``: by an attention decoder."""
    beam: int = 10
    """Prefixes that are kept from frame to frame, or hypotheses from token to token."""
    n_best: int = 1
    """Texts that a beam search gives with their scores, at most ``beam``."""
    tokens_per_frame: int = TOKENS_PER_FRAME
    """Tokens of a frame by which a prefix may be extended, its most probable ones."""
    lm: str = ""
    """ARPA file of words or of the tokenizer's pieces, for ``prefix_beam``, or the folder of a neural language model,
    for any beam search; empty for none."""
    lm_weight: float = 0.5
    """Weight of the language model's natural log probabilities."""
    word_score: float = 0.0
    """Added for each word, with a language model or a lexicon: language models prefer short texts."""
    ctc_weight: float = 0.3
    """Weight of the CTC prefix score in ``joint``."""
    length_bonus: float = 0.0
    """Added for each token of ``attention`` and ``joint``."""
    max_length_ratio: float = 1.0
    """Greatest number of tokens of ``attention`` and ``joint`` for each encoder frame (40 ms); memory grows with it."""
    lexicon: str = ""
    """Text file of the only words that ``prefix_beam`` may give, one a line; empty for any word."""

    def __post_init__(self) -> None:
        """See the class."""
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r} is unknown: choose one of {', '.join(DECODERS)}")
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                self.check_option(field.name)
        for name in ("lm", "lexicon"):
            if path := getattr(self, name):
                object.__setattr__(self, name, _existing(name, path))
        for name, value, most in (("beam", self.beam, MAX_BEAM), ("tokens_per_frame", self.tokens_per_frame, math.inf)):
            if not 1 <= value <= most:
                raise ValueError(
                    f"{name}={value}: expected at least 1" + (f", at most {most}" if most < math.inf else "")
                )
        if not 0 <= self.lm_weight < math.inf:
            raise ValueError(f"lm_weight={self.lm_weight}: expected a number from 0 on")
        if not math.isfinite(self.word_score):
            raise ValueError(f"word_score={self.word_score}: expected a finite number")
        if not 1 <= self.n_best <= self.beam:
            raise ValueError(f"n_best={self.n_best}: expected 1 to {self.beam}, the beam")
        if self.lexicon and self.neural:
            raise ValueError(f"lexicon={self.lexicon}: with the neural language model {self.lm} there is none")
        if self.joint and self.lm and not self.neural:
            raise ValueError(
                f"lm={self.lm}: decoder {self.decoder!r} takes the folder of a neural language model; n-gram models "
                "are for 'prefix_beam'"
            )

    def check_option(self, name: str) -> None:
        """Raises ValueError for an option, the name of a field, that this decoder has not."""
        if name != "decoder" and name not in _OPTIONS[self.decoder]:
            others = " or ".join(repr(other) for other in DECODERS if name in _OPTIONS[other])
            raise ValueError(
                f"{name}={getattr(self, name)}: decoder {self.decoder!r} has no such option; take decoder {others}"
            )
        if (name == "lm_weight" and not self.lm) or (name == "word_score" and not (self.lm or self.lexicon)):
            raise ValueError(f"{name}={getattr(self, name)} weighs a language model: give one, lm=...")

    @property
    def neural(self) -> bool:
        """Whether there is a neural language model: a folder, not an ARPA file."""
        return bool(self.lm) and epath.Path(self.lm).is_dir()

    @property
    def joint(self) -> JointDecodingConfig | None:
        """The search of an attention decoder; None for decoders of CTC scores."""
        if self.decoder not in ("attention", "joint"):
            return None
        weight = self.ctc_weight if self.decoder == "joint" else 0.0
        return JointDecodingConfig(
            self.beam, weight, self.length_bonus, self.max_length_ratio, n_best=min(self.n_best, self.beam)
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weights that this decoder has."""
        there = (self.decoder == "joint", self.joint is not None, bool(self.lm), bool(self.lm or self.lexicon))
        return {name: getattr(self, name) for name, has in zip(_WEIGHTS, there, strict=True) if has}

    def same_search(self, other: "DecodingConfig") -> bool:
        """Whether another one differs in weights alone."""
        names = (field.name for field in fields(self) if field.name not in _WEIGHTS)
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the contents of what is read, by its field.

        Raises:
          FileNotFoundError: it is not there any more.
        """
        return {name: contents_digest(path) for name in ("lm", "lexicon") if (path := getattr(self, name))}

    @property
    def search_label(self) -> str:
        """Short name of the search without its weights, for files and folders."""
        if self.decoder == "greedy":
            return self.decoder
        parts = [f"{self.decoder}{self.beam}"]
        parts += [f"tokens{self.tokens_per_frame}"] if self.tokens_per_frame != TOKENS_PER_FRAME else []
        parts += [f"max{self.max_length_ratio:g}"] if self.max_length_ratio != 1.0 else []
        return "-".join([*parts, *(name + digest[:6] for name, digest in self.digests.items())])

    @property
    def label(self) -> str:
        """Short name for reports and folders: that of the search, and the weights in the order of `weights`."""
        return "-".join([self.search_label, *(f"{value:g}" for value in self.weights.values())])


def _existing(name: str, path: str) -> str:
    found = files.expanded(path)
    if not found.exists():
        what = "no such file or folder" if name == "lm" else "no such file"
        maker = "python -m i3d_jax.cli.ngram and configs/lm_*.py make" if name == "lm" else "cli.ngram --lexicon writes"
        raise FileNotFoundError(f"{name}={path}: {what}; {maker} one")
    return os.fspath(found)


GREEDY = DecodingConfig()


def decoder_config(
    decoder: DecoderName | DecodingConfig | None, beam: int | None = None, own: DecodingConfig = GREEDY
) -> DecodingConfig:
    """The settings of a decoder.

    Args:
      decoder: its name, which gives the defaults of all options; all its settings; or None for ``own``.
      beam: replaces that of a decoder given by its name, or that of ``own``.
      own: what None means.

    Raises:
      ValueError: unknown decoder, bad beam, or a beam for what has none or states its own.
    """
    if isinstance(decoder, DecodingConfig):
        if beam is not None:
            raise ValueError(f"beam={beam}: the DecodingConfig has its own, {decoder.beam}")
        return decoder
    found = own if decoder is None else DecodingConfig(decoder)
    if beam is None:
        return found
    if found.decoder == "greedy":
        raise ValueError(f'beam={beam}: greedy decoding has none; take decoder="prefix_beam", "attention" or "joint"')
    return replace(found, beam=beam)
