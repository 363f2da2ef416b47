"""AN4: I3D with a local gate predictor, warm-started from `an4_transformer`.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_i3d_local.py`

Paper: I3D-LocalGP with CTC (Eq. 9, one gate predictor a layer; the method of Fig. 2), on AN4.
Takes the dense model from runs/an4_transformer, and trains it first when there is none.
Time: about ten minutes on two CPU cores after the dense model. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("an4_transformer.py"))
    return replace(
        dense,
        name="an4_i3d_local",
        model=replace(dense.model, gates=GateConfig(predictor="local")),
        loss=LossConfig(utility_weight=3.5),
        optimizer=replace(dense.optimizer, learning_rate=5e-4, warmup_steps=100),
        training=replace(dense.training, epochs=6, eval_every_epochs=1, average_best=3, best_by="latest"),
        warm_start=WarmStartConfig(run="runs/an4_transformer", config="configs/an4_transformer.py"),
    )
