"""Tedlium2: a dense encoder of 20 layers with CTC, trained from scratch.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_transformer20.py`

Paper: a 20-layer Transformer for Fig. 4: what a gated encoder that executes 20 of 36 layers has to beat.
Time: 56 % of that of `tedlium2_transformer`. Expected, from the paper: nothing, Fig. 4 has no point at 20 layers.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=20)
    return replace(dense, name="tedlium2_transformer20", model=replace(dense.model, encoder=encoder))
