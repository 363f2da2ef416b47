"""AN4: I3D with a global gate predictor and an attention decoder, warm-started from `an4_aed`.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_aed_i3d_global.py`

Paper: I3D-GlobalGP with an attention decoder (Eq. 12; the method of Table 1), on AN4. Only the encoder is gated.
Takes the dense model from runs/an4_aed, and trains it first when there is none.
Time: 6 minutes on two CPU cores beside other jobs. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("an4_aed.py"))
    return replace(
        dense,
        name="an4_aed_i3d_global",
        model=replace(dense.model, gates=GateConfig(predictor="global")),
        loss=replace(dense.loss, interctc_layers=(), utility_weight=2.0),
        optimizer=replace(dense.optimizer, learning_rate=5e-4, warmup_steps=100),
        training=replace(dense.training, epochs=6, eval_every_epochs=1, average_best=3, best_by="latest"),
        warm_start=WarmStartConfig(run="runs/an4_aed", config="configs/an4_aed.py"),
    )
