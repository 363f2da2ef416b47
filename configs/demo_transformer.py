"""Demo: the dense encoder (6 layers) on generated speech, the baseline that `demo.py` starts from.

Command: `python train.py --config=configs/demo_transformer.py`

Paper: the standard Transformer with CTC (Eqs. 1 and 2), made small. `demo.py` trains this model by itself; run this
file alone to see the dense half. Time: minutes on two CPU cores. Measured numbers: see RESULTS.md.
"""

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import DataConfig
from i3d_jax.data.tokenizer import TokenizerConfig
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.model.asr import ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from i3d_jax.training.loop import TrainingConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    return ExperimentConfig(
        name="demo_transformer",
        data=DataConfig(source="demo", max_seconds=10.0),
        # Pieces that make the frequent words one unit: single characters learn far slower from an hour of speech.
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=350),
        batching=BatchingConfig(seconds_per_batch=30.0, num_buckets=3),
        augment=AugmentConfig(
            time_warp=0, num_frequency_masks=2, frequency_mask_width=10, num_time_masks=2, time_mask_ratio=0.03
        ),
        model=ModelConfig(
            subsampling=SubsamplingConfig(channels=48),
            encoder=EncoderConfig(num_layers=6, d_model=96, num_heads=4, ffn_dim=384),
        ),
        optimizer=OptimizerConfig(learning_rate=2.5e-3, warmup_steps=200, schedule="cosine", weight_decay=1e-2),
        training=TrainingConfig(epochs=8, average_best=3, checkpoint_every_steps=500),
    )
