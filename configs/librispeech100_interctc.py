"""LibriSpeech-100: the dense encoder of 36 layers with intermediate CTC losses.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_interctc.py`

Paper: the 36-layer Transformer of Fig. 3, trained with InterCTC (arXiv 2102.03216) after layers 12 and 24, which have
0.66 of the loss together, as in ESPnet. Pruned with `python -m i3d_jax.cli.prune runs/librispeech100_interctc` it is
the second baseline of Fig. 3.
Time: a few percent more than `librispeech100_transformer`. Expected, from the paper: 11.6 % WER on test-clean, 26.3 %
on test-other; pruned to 24 layers 11.7 and 26.3 %.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.training.losses import LossConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    return replace(dense, name="librispeech100_interctc", loss=LossConfig(interctc_layers=(12, 24)))
