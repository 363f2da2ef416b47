"""Tedlium2: a dense encoder of 18 layers with CTC, trained from scratch.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_transformer18.py`

Paper: the 18-layer Transformer of Fig. 4: what a gated encoder that executes 18 of 36 layers has to beat.
Time: 50 % of that of `tedlium2_transformer`. Expected, from the paper: 12.7 % WER on test.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=18)
    return replace(dense, name="tedlium2_transformer18", model=replace(dense.model, encoder=encoder))
