"""LibriSpeech-100: the dense encoder of 27 layers with intermediate CTC losses.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_interctc27.py`

Paper: the 27-layer Transformer of Fig. 3, trained with InterCTC (arXiv 2102.03216) after layers 9 and 18, which have
0.66 of the loss together, as in ESPnet.
Time: a few percent more than `librispeech100_transformer27`. Expected, from the paper: 11.7 % WER on test-clean,
26.6 % on test-other.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.training.losses import LossConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer27.py"))
    return replace(dense, name="librispeech100_interctc27", loss=LossConfig(interctc_layers=(9, 18)))
