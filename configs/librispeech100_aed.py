"""LibriSpeech-100: the paper's dense encoder (36 layers) with an attention decoder, the baseline of `.._aed_i3d_*`.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_aed.py`

Paper: Transformer-36 of Table 1 (attention encoder-decoder). Encoder, data and optimiser are those of
`librispeech100_transformer`; decoder (6 layers, 4 heads, feed-forward blocks of 2048), CTC weight 0.3 and label
smoothing 0.1 those of ESPnet's librispeech_100 recipes. Dev evaluations and the selection of checkpoints decode
greedily with the CTC head; ESPnet selects by the decoder's accuracy, which is logged as `attention_accuracy`.
Time: an accelerator's job, somewhat longer than that of `librispeech100_transformer`. Expected, from the paper, joint
decoding: 7.8 % WER on dev-clean, 8.0 % on test-clean. See docs/aed.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.training.losses import LossConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    ctc = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    return replace(
        ctc,
        name="librispeech100_aed",
        model=replace(ctc.model, decoder=DecoderConfig(num_layers=6, num_heads=4, ffn_dim=2048)),
        loss=LossConfig(ctc_weight=0.3, label_smoothing=0.1),
    )
