"""LibriSpeech-100: the paper's dense encoder (36 layers) with CTC, the baseline of `librispeech100_i3d_*`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_transformer.py`

Paper: the 36-layer Transformer of Fig. 2, with the hyper-parameters of ESPnet's librispeech_100 CTC recipe.
`$LIBRISPEECH_DIR` is the folder of the OpenSLR download (SLR12) that holds train-clean-100, dev-clean and test-clean.
An epoch of ESPnet holds three copies of the data (speeds 0.9, 1.0, 1.1) and its 70 epochs are 210 here, where one speed
is drawn for each utterance and epoch; evaluation stays as frequent. A batch is 1600 s, about that of the recipe
(numel 16 M, accumulation over 4): lower `--batching.seconds-per-batch` where memory is short.
Time: an accelerator's job (about 50,000 updates of 1600 s). Expected, from the paper: 11.7 % WER on test-clean, greedy.
For test-other add `--data.test=test-other` (26.7 %).
"""

from i3d_jax.audio.augment import AugmentConfig
from i3d_jax.audio.frontend import FrontendConfig
from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import DataConfig
from i3d_jax.data.tokenizer import TokenizerConfig
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.model.asr import ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.training.loop import TrainingConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    return ExperimentConfig(
        name="librispeech100_transformer",
        data=DataConfig(source="${LIBRISPEECH_DIR}", train="train-clean-100", dev="dev-clean", test="test-clean"),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=5000),
        batching=BatchingConfig(seconds_per_batch=1600.0, num_buckets=8, num_threads=8),
        frontend=FrontendConfig(preset="espnet", num_mels=80, normalization="utterance"),
        augment=AugmentConfig(
            speeds=(0.9, 1.0, 1.1),
            time_warp=5,
            num_frequency_masks=2,
            frequency_mask_width=27,
            num_time_masks=5,
            time_mask_ratio=0.05,
        ),
        model=ModelConfig(encoder=EncoderConfig(num_layers=36, d_model=256, num_heads=4, ffn_dim=1024)),
        # The optimiser is PyTorch's Adam with its own betas and epsilon; its weight decay is added to the gradient.
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=15000,
            schedule="inverse_sqrt",
            weight_decay=1e-6,
            decoupled=False,
            beta2=0.999,
            epsilon=1e-8,
            clip_norm=5.0,
        ),
        training=TrainingConfig(epochs=210, eval_every_epochs=3, average_best=10),
    )
