"""AN4: the dense encoder (12 layers) on an hour of real speech, the baseline of the `an4_i3d_*` experiments.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_transformer.py`

Paper: the standard Transformer with CTC (Eqs. 1 and 2), sized for AN4. `$I3D_SPEECH_DIR/an4` is AN4 in LibriSpeech
layout with the split lists splits/{train,dev,test}.txt. Time: about 50 minutes on two CPU cores. Measured numbers: see
RESULTS.md.
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
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    return ExperimentConfig(
        name="an4_transformer",
        data=DataConfig(
            source="${I3D_SPEECH_DIR}/an4",
            train="splits/train.txt",
            dev="splits/dev.txt",
            test="splits/test.txt",
            max_seconds=10.0,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=250),
        batching=BatchingConfig(seconds_per_batch=32.0, num_buckets=4, batch_multiple=4),
        augment=AugmentConfig(
            speeds=(0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15),
            concatenate_seconds=8.0,
            time_warp=5,
            num_frequency_masks=2,
            frequency_mask_width=10,
            num_time_masks=0,
        ),
        model=ModelConfig(
            subsampling=SubsamplingConfig(channels=32),
            encoder=EncoderConfig(
                num_layers=12, d_model=144, num_heads=4, ffn_dim=576, attention_dropout=0.0, scale_input=False
            ),
        ),
        loss=LossConfig(interctc_layers=(4, 8)),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=500, schedule="cosine", weight_decay=1e-2),
        training=TrainingConfig(epochs=60, eval_every_epochs=4, average_best=10, checkpoint_every_steps=500),
    )
