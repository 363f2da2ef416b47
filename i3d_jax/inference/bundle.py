"""Bundles: recognisers in folders of their own. A finished run holds one in ``<run>/model``.

recognizer.json  front end and architecture
params.npz       parameters, and feature statistics where they are global
tokenizer.model  SentencePiece
manifest.json    digests of these
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from i3d_jax.audio.frontend import SAMPLE_RATE, FrontendConfig, GlobalStats
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.inference import bundle_files
from i3d_jax.inference.bundle_files import RECOGNIZER
from i3d_jax.manifest import Damaged
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import Params


@dataclass(frozen=True)
class Calibration:
    """What thresholds cost on average, measured on a set of utterances; for models with local predictors."""

    thresholds: tuple[float, ...] = ()
    """Values of beta, ascending."""
    shares: tuple[float, ...] = ()
    """FLOPs of the executed blocks at each of them as a share of those of all blocks, over all utterances."""

    def threshold(self, budget: float) -> float:
        """The smallest threshold whose share, and that of all larger ones, is within the budget.

        Raises:
          ValueError: there is no calibration.
        """
        if not self.thresholds:
            raise ValueError(
                "a budget for local gate predictors needs a calibration: run eval.py RUN --split=dev --sweep-budget, "
                "which writes it into the model of the run"
            )
        within = 1.0  # closes everything
        for threshold, share in zip(reversed(self.thresholds), reversed(self.shares), strict=True):
            if share > budget:
                break
            within = threshold
        return within


@dataclass(frozen=True)
class RecognizerConfig:
    """What a bundle states about itself."""

    name: str = "model"
    """Name of the model in tables."""
    sample_rate: int = 16000
    """Sampling rate in Hz."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    """Log-mel features."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    window_seconds: float = 30.0
    """Longest audio that is recognised as a whole, and the length of the windows of anything longer: what the model
    heard at most in training (within 5 to 30 s), because it knows no positions beyond that."""
    calibration: Calibration = field(default_factory=Calibration)
    """Cost of thresholds."""


class Bundle(NamedTuple):
    """What makes a `Recognizer`.

    Attributes:
      config: front end and architecture.
      params: of the model.
      tokenizer: of its tokens.
      stats: global feature statistics, where the front end uses them.
    """

    config: RecognizerConfig
    params: Params
    tokenizer: Tokenizer
    stats: GlobalStats | None


def save_bundle(bundle: Bundle, path: str | epath.Path, dtype: str = "float32") -> None:
    """Write a bundle; ``dtype="float16"`` halves it.

    The folder is written aside and renamed, so that it is whole or absent; an existing bundle is replaced.

    Raises:
      ValueError: the folder holds something else than a bundle, or the type is another one.
    """
    stats = {} if bundle.stats is None else {k: np.asarray(v, np.float32) for k, v in bundle.stats._asdict().items()}
    bundle_files.write(
        path, RECOGNIZER, bundle.config, {"params": bundle.params, "stats": stats}, bundle.tokenizer, dtype
    )


def load_bundle(path: str | epath.PathLike) -> Bundle:
    """Read the bundle in a folder, or of a run.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: it is of something else, a file is damaged or missing, or the parameters do not fit the stated
        architecture.
    """
    folder, config, arrays, tokenizer = bundle_files.read(path, RECOGNIZER, RecognizerConfig)
    if config.sample_rate != SAMPLE_RATE:
        raise ValueError(f"{folder}/{RECOGNIZER}: sample_rate={config.sample_rate}: expected {SAMPLE_RATE}")
    model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
    params, stats = arrays.get("params", {}), arrays.get("stats")
    if stats is not None and set(stats) != set(GlobalStats._fields):
        raise Damaged(f"{folder}/params.npz: stats of {sorted(stats)}, expected {sorted(GlobalStats._fields)}")
    bundle_files.check_shapes(folder, RECOGNIZER, params, jax.eval_shape(model.init, jax.random.key(0)), tokenizer)
    return Bundle(config, params, tokenizer, None if stats is None else GlobalStats(**stats))
