"""Tedlium2: I3D with a local gate predictor, warm-started from `tedlium2_transformer`.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_i3d_local.py`

Paper: I3D-LocalGP with CTC (Eq. 9, one gate predictor a layer), Fig. 4. Takes the dense model from
runs/tedlium2_transformer, and trains it first when there is none. `--loss.utility-weight` (lambda, 1 to 13 in the
paper) sweeps the curve; `--family.lambdas=1,3,5,9,13` trains its points in one program. The paper fine-tunes for 35
epochs over three copies of the data, hence 105 epochs here.
Time: an accelerator's job; about 70 % of the dense model's. Expected, from the paper: 12.2 % WER at 20.2 layers,
11.4 % at 22.0, 10.6 % at 29.4.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    return replace(
        dense,
        name="tedlium2_i3d_local",
        model=replace(dense.model, gates=GateConfig(predictor="local")),
        loss=LossConfig(utility_weight=5.0),
        optimizer=replace(dense.optimizer, learning_rate=1e-3),
        training=replace(dense.training, epochs=105, best_by="latest"),
        warm_start=WarmStartConfig(run="runs/tedlium2_transformer", config="configs/tedlium2_transformer.py"),
    )
