"""Bundles of language models. A finished run holds one in ``<run>/model``.

language_model.json  size
params.npz           parameters
tokenizer.model      SentencePiece, that of the recogniser whose tokens they are
manifest.json        digests of these
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from etils import epath

from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference import bundle_files
from i3d_jax.inference.bundle_files import LANGUAGE_MODEL
from i3d_jax.model.encoder import Params
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig


@dataclass(frozen=True)
class LanguageModelInfo:
    """What a bundle states about itself."""

    name: str = "language_model"
    """Name of the model in tables."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """Size."""


class LanguageModelBundle(NamedTuple):
    """A trained language model.

    Attributes:
      config: its name and size.
      params: of the model.
      tokenizer: of its tokens.
    """

    config: LanguageModelInfo
    params: Params
    tokenizer: Tokenizer

    @property
    def model(self) -> LanguageModel:
        """The functions of the parameters."""
        return LanguageModel(self.config.model, self.tokenizer.vocab_size)


def save_language_model(bundle: LanguageModelBundle, path: str | epath.PathLike, dtype: str = "float32") -> None:
    """Write a bundle, aside and renamed; an existing one is replaced. ``dtype="float16"`` halves it.

    Raises:
      ValueError: the folder holds something else than a language model's bundle, or the type is another one.
    """
    bundle_files.write(path, LANGUAGE_MODEL, bundle.config, {"params": bundle.params}, bundle.tokenizer, dtype)


def load_language_model(path: str | epath.PathLike) -> LanguageModelBundle:
    """Read the bundle in a folder, or of a run; parameters are float32, however they are stored.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: it is of something else, a file is damaged or missing, or the parameters do not fit the stated size.
    """
    folder, config, arrays, tokenizer = bundle_files.read(path, LANGUAGE_MODEL, LanguageModelInfo)
    bundle = LanguageModelBundle(config, arrays.get("params", {}), tokenizer)
    expected = jax.eval_shape(bundle.model.init, jax.random.key(0))
    bundle_files.check_shapes(folder, LANGUAGE_MODEL, bundle.params, expected, tokenizer)
    return bundle
