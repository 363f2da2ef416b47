"""Tedlium2: the dense encoder (36 layers) with CTC on Tedlium2, the baseline of `tedlium2_i3d_*`.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_transformer.py`

Paper: the 36-layer Transformer of Fig. 4. `$TEDLIUM2_DIR` is what
`python -m i3d_jax.cli.segment TEDLIUM_release2 path/to/tedlium2` cuts from the OpenSLR download (SLR19). 500 BPE
pieces as in ESPnet's recipe; the rest is that of `librispeech100_transformer`. The paper gives the epochs of
fine-tuning, 35; 50 of training from scratch are ours, in proportion, and 150 here, where one speed is drawn for each
utterance and epoch.
Time: an accelerator's job (about 70,000 updates of 1600 s). Expected, from the paper: 10.9 % WER on test.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.data.tokenizer import TokenizerConfig
from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    librispeech = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    data = replace(librispeech.data, source="${TEDLIUM2_DIR}", train="train", dev="dev", test="test")
    return replace(
        librispeech,
        name="tedlium2_transformer",
        data=data,
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=500),
        training=replace(librispeech.training, epochs=150),
    )
