"""LibriSpeech-960: I3D with a global gate predictor and InterCTC, warm-started from `librispeech960_interctc`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech960_interctc_i3d_global.py`

Paper: I3D-GlobalGP of Fig. 3 on this corpus (Eq. 12). Takes the dense model from runs/librispeech960_interctc, and
trains it first when there is none. `--family.lambdas=1,3,5,9,13` trains the points of the curve in one program.
Time: that of `librispeech960_i3d_global`. Expected, from the paper: nothing for this corpus.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech960_interctc.py"))
    gated = load_config(Path(__file__).with_name("librispeech960_i3d_global.py"))
    return replace(
        gated,
        name="librispeech960_interctc_i3d_global",
        loss=replace(dense.loss, utility_weight=gated.loss.utility_weight),
        warm_start=WarmStartConfig(run="runs/librispeech960_interctc", config="configs/librispeech960_interctc.py"),
    )
