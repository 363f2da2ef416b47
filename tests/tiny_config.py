"""A gated model on tone words that trains in seconds; used by the tests of whole runs."""

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import DataConfig
from i3d_jax.data.tokenizer import TokenizerConfig
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.evaluation import EvaluationConfig
from i3d_jax.model.asr import ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.gates import GateConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.loop import TrainingConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    return ExperimentConfig(
        name="tiny",
        data=DataConfig(source="synthetic", max_seconds=3.0),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=40),
        batching=BatchingConfig(seconds_per_batch=16.0, num_buckets=1),
        augment=AugmentConfig(speeds=(0.9, 1.0), time_warp=2, frequency_mask_width=5, time_mask_ratio=0.02),
        model=ModelConfig(
            subsampling=SubsamplingConfig(channels=8),
            encoder=EncoderConfig(num_layers=2, d_model=32, num_heads=2, ffn_dim=64),
            gates=GateConfig(predictor="global"),
        ),
        loss=LossConfig(utility_weight=1.0),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=20, schedule="cosine"),
        training=TrainingConfig(epochs=4, average_best=2, checkpoint_every_steps=3, log_every_steps=1),
        evaluation=EvaluationConfig(bootstrap_samples=100, timed_utterances=2),
    )
