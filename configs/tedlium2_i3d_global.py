"""Tedlium2: I3D with a global gate predictor, warm-started from `tedlium2_transformer`.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_i3d_global.py`

Paper: I3D-GlobalGP with CTC (Eq. 12, one gate predictor for the whole encoder), Fig. 4. Takes the dense model from
runs/tedlium2_transformer, and trains it first when there is none. `--loss.utility-weight` (lambda, 1 to 13 in the
paper) sweeps the curve; `--family.lambdas=1,3,5,9,13` trains its points in one program. The paper fine-tunes for 35
epochs over three copies of the data, hence 105 epochs here.
Time: an accelerator's job; about 70 % of the dense model's. Expected, from the paper: 11.2 % WER at 22.9 layers,
10.8 % at 25.3, 10.5 % at 32.9.
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
        name="tedlium2_i3d_global",
        model=replace(dense.model, gates=GateConfig(predictor="global")),
        loss=LossConfig(utility_weight=5.0),
        optimizer=replace(dense.optimizer, learning_rate=1e-3),
        training=replace(dense.training, epochs=105, best_by="latest"),
        warm_start=WarmStartConfig(run="runs/tedlium2_transformer", config="configs/tedlium2_transformer.py"),
    )
