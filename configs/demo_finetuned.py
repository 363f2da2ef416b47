"""Demo: the dense encoder, fine-tuned as the gated one of `demo.py` is: the control for the extra training.

Command: `python train.py --config=configs/demo_finetuned.py`

Paper: none; what a gated model gains or loses against this one is due to its gates, against `demo_transformer.py` also
to three more epochs. Takes the dense model from runs/demo/dense, and trains it first when there is none. Time: a
few minutes on two CPU cores after the dense model, as for the gated one. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config


def get_config() -> ExperimentConfig:
    """The experiment."""
    gated = load_config(Path(__file__).with_name("demo.py"))
    return replace(
        gated,
        name="demo_finetuned",
        model=replace(gated.model, gates=replace(gated.model.gates, predictor="none")),
        loss=replace(gated.loss, utility_weight=0.0),
        warm_start=replace(gated.warm_start, run="runs/demo/dense"),
    )
