"""LibriSpeech-100: I3D with a global gate predictor and InterCTC, warm-started from `librispeech100_interctc`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_interctc_i3d_global.py`

Paper: I3D-GlobalGP of Figs. 3 and 6 (Eq. 12). Takes the dense model from runs/librispeech100_interctc, and trains it
first when there is none. `--family.lambdas=1,3,5,9,13` trains the points of the curve in one program.
Time: that of `librispeech100_i3d_global`. Expected, from the paper: test-clean 12.3 % WER at 20.4 layers, 11.7 % at
21.5, 11.5 % at 23.3; test-other 27.2 % at 20.4, 26.2 % at 22.1, 25.7 % at 23.2.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_interctc.py"))
    gated = load_config(Path(__file__).with_name("librispeech100_i3d_global.py"))
    return replace(
        gated,
        name="librispeech100_interctc_i3d_global",
        loss=replace(dense.loss, utility_weight=gated.loss.utility_weight),
        warm_start=WarmStartConfig(run="runs/librispeech100_interctc", config="configs/librispeech100_interctc.py"),
    )
