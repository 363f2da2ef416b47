"""LibriSpeech-100: a dense encoder of 27 layers with an attention decoder, trained from scratch.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_aed27.py`

Paper: Transformer-27 of Table 1: what a gated encoder that executes 27 of 36 layers has to beat.
Time: 75 % of the encoder's share of `librispeech100_aed`. Expected, from the paper, joint decoding: 8.2 % WER on
dev-clean, 8.5 % on test-clean.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_aed.py"))
    encoder = replace(dense.model.encoder, num_layers=27)
    return replace(dense, name="librispeech100_aed27", model=replace(dense.model, encoder=encoder))
