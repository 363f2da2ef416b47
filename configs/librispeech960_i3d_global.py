"""LibriSpeech-960: I3D with a global gate predictor, warm-started from `librispeech960_transformer`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech960_i3d_global.py`

Paper: I3D-GlobalGP with CTC (Eq. 12, one gate predictor for the whole encoder), Section 3.1 (960 hours, no figure).
Takes the dense model from runs/librispeech960_transformer, and trains it first when there is none.
`--loss.utility-weight` (lambda, 1 to 13 in the paper) sweeps the curve; `--family.lambdas=1,3,5,9,13` trains its
points in one program. The paper does not give the epochs: as share of the dense training they are those of 100 hours.
Time: an accelerator's job; about 70 % of the dense model's. Expected, from the paper: the paper gives no numbers for
960 hours, it says that they agree with those of 100.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech960_transformer.py"))
    return replace(
        dense,
        name="librispeech960_i3d_global",
        model=replace(dense.model, gates=GateConfig(predictor="global")),
        loss=LossConfig(utility_weight=5.0),
        optimizer=replace(dense.optimizer, learning_rate=1e-3),
        training=replace(dense.training, epochs=75, best_by="latest"),
        warm_start=WarmStartConfig(
            run="runs/librispeech960_transformer", config="configs/librispeech960_transformer.py"
        ),
    )
