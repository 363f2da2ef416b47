"""LibriSpeech-100: I3D with a local gate predictor and an attention decoder, warm-started from `librispeech100_aed`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_aed_i3d_local.py`

Paper: I3D-LocalGP-36 of Table 1 (Eq. 9, one gate predictor a layer). Only the encoder is gated; the
decoder is fine-tuned with it. Takes the dense model from runs/librispeech100_aed, and trains it first when there is
none.
The paper does not give lambda for Table 1: `--loss.utility-weight` (1 to 13 elsewhere) is to be chosen on dev for about
27 layers. Fine-tuning is that of `librispeech100_i3d_local`: learning rate 1e-3, 50 of the paper's epochs.
Time: an accelerator's job; about 70 % of the dense model's. Expected, from the paper, joint decoding:
7.9 % WER on dev-clean at 27.3 layers, 8.3 % on test-clean at 27.1.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_aed.py"))
    return replace(
        dense,
        name="librispeech100_aed_i3d_local",
        model=replace(dense.model, gates=GateConfig(predictor="local")),
        loss=replace(dense.loss, utility_weight=2.0),
        optimizer=replace(dense.optimizer, learning_rate=1e-3),
        training=replace(dense.training, epochs=150, best_by="latest"),
        warm_start=WarmStartConfig(run="runs/librispeech100_aed", config="configs/librispeech100_aed.py"),
    )
