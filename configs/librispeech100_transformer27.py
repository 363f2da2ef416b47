"""LibriSpeech-100: a dense encoder of 27 layers with CTC, trained from scratch.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_transformer27.py`

Paper: the 27-layer Transformer of Fig. 2: what a gated encoder that executes 27 of 36 layers has to beat.
Time: 75 % of that of `librispeech100_transformer`. Expected, from the paper: 12.5 % WER on test-clean, 27.9 % on
test-other.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    encoder = replace(dense.model.encoder, num_layers=27)
    return replace(dense, name="librispeech100_transformer27", model=replace(dense.model, encoder=encoder))
