"""Tedlium2: a dense encoder of 27 layers with CTC, trained from scratch.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_transformer27.py`

Paper: the 27-layer Transformer of Fig. 4: what a gated encoder that executes 27 of 36 layers has to beat.
Time: 75 % of that of `tedlium2_transformer`. Expected, from the paper: 11.4 % WER on test.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=27)
    return replace(dense, name="tedlium2_transformer27", model=replace(dense.model, encoder=encoder))
