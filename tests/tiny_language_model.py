"""A language model of a recogniser's pieces that trains in seconds; ``$TINY_RUN`` is the recogniser's run."""

from i3d_jax.data.sentences import SentenceBatchingConfig, TextConfig
from i3d_jax.language_model_experiment import LanguageModelExperiment, LanguageModelTrainingConfig
from i3d_jax.model.language_model import LanguageModelConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> LanguageModelExperiment:
    """The experiment."""
    return LanguageModelExperiment(
        name="tiny_lm",
        text=TextConfig(run="${TINY_RUN}"),
        batching=SentenceBatchingConfig(tokens_per_batch=150, num_buckets=1),
        model=LanguageModelConfig(width=16, dropout=0.1),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5, schedule="cosine"),
        training=LanguageModelTrainingConfig(
            epochs=6, average_best=2, checkpoint_every_steps=7, log_every_steps=1, eval_every_epochs=2
        ),
    )
