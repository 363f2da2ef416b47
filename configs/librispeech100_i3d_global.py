"""LibriSpeech-100: I3D with a global gate predictor, warm-started from `librispeech100_transformer`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_i3d_global.py`

Paper: I3D-GlobalGP with CTC (Eq. 12, one gate predictor for the whole encoder), Figs. 2 and 5.
Takes the dense model from runs/librispeech100_transformer, and trains it first when there is none.
`--loss.utility-weight` (lambda, 1 to 13 in the paper) sweeps the curve. The paper fine-tunes with learning rate 1e-3
for 50 epochs over three copies of the data (speeds 0.9, 1.0, 1.1), hence 150 epochs here, where one speed is drawn for
each utterance and epoch.
Time: an accelerator's job; about 70 % of the dense model's. Expected, from the paper (test-clean):
12.3 % WER at 20.5 layers, 11.8 % at 25.0, 11.5 % at 32.0.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    return replace(
        dense,
        name="librispeech100_i3d_global",
        model=replace(dense.model, gates=GateConfig(predictor="global")),
        loss=LossConfig(utility_weight=5.0),
        optimizer=replace(dense.optimizer, learning_rate=1e-3),
        training=replace(dense.training, epochs=150, best_by="latest"),
        warm_start=WarmStartConfig(
            run="runs/librispeech100_transformer", config="configs/librispeech100_transformer.py"
        ),
    )
