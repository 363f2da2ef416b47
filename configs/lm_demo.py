"""Demo: a small LSTM language model of the pieces of the demo recogniser, from its training transcripts.

Command: `python train.py --config=configs/lm_demo.py`

Paper: none; the paper decodes without a language model. It is made for shallow fusion, see docs/language_models.md.
Wants the run of `configs/demo.py` in `runs/demo`, finished or begun; `--text.run=RUN` takes another.
Time: about a minute on two CPU cores. Measured numbers: see docs/language_models.md.
"""

from i3d_jax.data.sentences import SentenceBatchingConfig, TextConfig
from i3d_jax.language_model_experiment import LanguageModelExperiment, LanguageModelTrainingConfig
from i3d_jax.model.language_model import LanguageModelConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> LanguageModelExperiment:
    """The experiment."""
    return LanguageModelExperiment(
        name="lm_demo",
        text=TextConfig(run="runs/demo"),
        batching=SentenceBatchingConfig(tokens_per_batch=1000, num_buckets=3),
        model=LanguageModelConfig(num_layers=1, width=128, dropout=0.5),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=50, schedule="cosine", weight_decay=0.0),
        training=LanguageModelTrainingConfig(epochs=30, average_best=3),
    )
