"""The experiment configuration of a language model's training; see ``experiment.py`` for how it is loaded and saved."""

from dataclasses import dataclass, field
from typing import Literal

from i3d_jax.data.sentences import SentenceBatchingConfig, TextConfig
from i3d_jax.model.language_model import LanguageModelConfig
from i3d_jax.training.loop import LoopConfig
from i3d_jax.training.optimizer import OptimizerConfig
from i3d_jax.training.sharding import ParallelConfig


@dataclass(frozen=True)
class LanguageModelTrainingConfig(LoopConfig):
    """Training of a language model."""

    best_by: Literal["perplexity", "latest"] = "perplexity"
    """What makes a checkpoint best: the lowest dev perplexity, or being the latest."""


@dataclass(frozen=True)
class LanguageModelExperiment:
    """Everything that defines the training of a language model."""

    name: str = "language_model"
    """Name of the model in tables; the default run directory is ``runs/<name>``."""
    seed: int = 0
    """Seed of parameters, data order and dropout."""
    text: TextConfig = field(default_factory=TextConfig)
    batching: SentenceBatchingConfig = field(default_factory=SentenceBatchingConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: LanguageModelTrainingConfig = field(default_factory=LanguageModelTrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
