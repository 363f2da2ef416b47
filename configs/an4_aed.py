"""AN4: the dense encoder of `an4_transformer` with an attention decoder, the baseline of `an4_aed_i3d_global`.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_aed.py`

Paper: the attention encoder-decoder of Table 1, sized for AN4: three decoder layers, intermediate CTC losses as in
`an4_transformer`, token embeddings that start as small as positions.
Time: 35 minutes on two CPU cores beside other jobs. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.decoder import DecoderConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    ctc = load_config(Path(__file__).with_name("an4_transformer.py"))
    return replace(
        ctc,
        name="an4_aed",
        model=replace(ctc.model, decoder=DecoderConfig(num_layers=3, num_heads=4, ffn_dim=576, embedding_std=0.08)),
        loss=replace(ctc.loss, ctc_weight=0.3, label_smoothing=0.1),
    )
