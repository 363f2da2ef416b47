"""LibriSpeech-960: a dense encoder of 27 layers with CTC, trained from scratch.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech960_transformer27.py`

Paper: a 27-layer Transformer for Section 3.1 (960 hours, no figure): what a gated encoder that executes 27 of 36
layers has to beat.
Time: 75 % of that of `librispeech960_transformer`. Expected, from the paper: the paper gives no numbers for 960
hours, it says that they agree with those of 100.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech960_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=27)
    return replace(dense, name="librispeech960_transformer27", model=replace(dense.model, encoder=encoder))
