"""LibriSpeech-100: the dense encoder with self-conditioned CTC.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_selfconditioned.py`

Paper: none; self-conditioned CTC (arXiv 2104.02724) at the layers of `librispeech100_interctc`: what the CTC head
predicts there is added to the states that go on.
Time: a few percent more than `librispeech100_interctc`. Expected: not measured here.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_interctc.py"))
    return replace(
        dense,
        name="librispeech100_selfconditioned",
        model=replace(dense.model, self_conditioned_layers=dense.loss.interctc_layers),
    )
