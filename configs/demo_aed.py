"""Demo: the dense encoder (6 layers) with an attention decoder on generated speech.

Command: `python train.py --config=configs/demo_aed.py`

Paper: the attention encoder-decoder of Table 1, made small: the encoder of `demo_transformer`, two decoder layers.
Time: about 6 minutes on two CPU cores beside other jobs. Test WER: 16.7 greedily, 2.7 by joint decoding (RESULTS.md).
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.decoder import DecoderConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    ctc = load_config(Path(__file__).with_name("demo_transformer.py"))
    return replace(
        ctc,
        name="demo_aed",
        model=replace(ctc.model, decoder=DecoderConfig(num_layers=2, num_heads=4, ffn_dim=384, embedding_std=0.1)),
        loss=replace(ctc.loss, ctc_weight=0.3, label_smoothing=0.1),
    )
