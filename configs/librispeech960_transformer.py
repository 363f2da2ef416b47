"""LibriSpeech-960: the dense encoder (36 layers) with CTC on all 960 hours, the baseline of `librispeech960_i3d_*`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech960_transformer.py`

Paper: Section 3.1 says that 960 hours agree with 100 and gives no figure; the model and its hyper-parameters are
those of `librispeech100_transformer`. Ours: half as many epochs (about five times the updates), a warm-up of 25,000
steps. For test-other add `--data.test=test-other`.
Time: an accelerator's job (about 230,000 updates of 1600 s). Expected, from the paper: the paper gives no numbers for
960 hours, it says that they agree with those of 100.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    small = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    return replace(
        small,
        name="librispeech960_transformer",
        data=replace(small.data, train="train-clean-100+train-clean-360+train-other-500"),
        optimizer=replace(small.optimizer, warmup_steps=25000),
        training=replace(small.training, epochs=105, eval_every_epochs=1),
    )
