"""The experiment configuration of a recogniser's training; see ``experiment.py`` for how it is loaded and saved."""

from dataclasses import dataclass, field

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import DataConfig
from i3d_jax.data.tokenizer import TokenizerConfig
from i3d_jax.inference.evaluation import EvaluationConfig
from i3d_jax.model.asr import ModelConfig
from i3d_jax.training.family import FamilyConfig
from i3d_jax.training.loop import TrainingConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig
from i3d_jax.training.sharding import ParallelConfig
from i3d_jax.training.warm_start import WarmStartConfig


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that defines a run."""

    name: str = "experiment"
    """Name of the model in tables; the default run directory is ``runs/<name>``."""
    seed: int = 0
    """Seed of parameters, data order, augmentation, dropout and Gumbel noise."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    family: FamilyConfig = field(default_factory=FamilyConfig)

    @property
    def data_seed(self) -> int:
        """Seed of the order, speeds and augmentation of the data."""
        return self.seed if self.batching.seed == -1 else self.batching.seed
