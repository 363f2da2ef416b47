"""Tedlium2: the dense encoder of 36 layers with intermediate CTC losses.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_interctc.py`

Paper: the model of Fig. 3 on this corpus: InterCTC (arXiv 2102.03216) after layers 12 and 24, 0.66 of the loss
together.
Time: a few percent more than `tedlium2_transformer`. Expected, from the paper: nothing for this corpus.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.training.losses import LossConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    return replace(dense, name="tedlium2_interctc", loss=LossConfig(interctc_layers=(12, 24)))
