"""AN4: the dense encoder, fine-tuned as that of `an4_i3d_global.py` is: the control for the extra training.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_finetuned.py`

Paper: none; what a gated model gains or loses against this one is due to its gates, against `an4_transformer.py` also
to six more epochs. Takes the dense model from runs/an4_transformer, and trains it first when there is none. Time:
about ten minutes on two CPU cores after the dense model, as for the gated one. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    gated = load_config(Path(__file__).with_name("an4_i3d_global.py"))
    return replace(
        gated,
        name="an4_finetuned",
        model=replace(gated.model, gates=replace(gated.model.gates, predictor="none")),
        loss=replace(gated.loss, utility_weight=0.0),
    )
