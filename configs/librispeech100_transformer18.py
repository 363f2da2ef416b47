"""LibriSpeech-100: a dense encoder of 18 layers with CTC, trained from scratch.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_transformer18.py`

Paper: the 18-layer Transformer of Fig. 2: what a gated encoder that executes 18 of 36 layers has to beat.
Time: 50 % of that of `librispeech100_transformer`. Expected, from the paper: 13.1 % WER on test-clean, 28.7 % on
test-other.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=18)
    return replace(dense, name="librispeech100_transformer18", model=replace(dense.model, encoder=encoder))
