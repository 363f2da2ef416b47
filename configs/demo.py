"""Demo: I3D with a global gate predictor on generated speech, the whole main job in minutes.

Command: `python train.py --config=configs/demo.py`

Paper: I3D-GlobalGP with CTC (Eq. 12; the method of Fig. 2), made small. Trains the dense encoder of
`demo_transformer.py` first, warm-starts the gated one from it, fine-tunes and evaluates both.
Time: under 10 minutes on two CPU cores. Expected: dense test WER under 15 %, the gated model within 3 points of it at
no more than 75 % of the layers. Measured numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("demo_transformer.py"))
    return replace(
        dense,
        name="demo",
        model=replace(dense.model, gates=GateConfig(predictor="global")),
        loss=LossConfig(utility_weight=1.7),
        optimizer=replace(dense.optimizer, learning_rate=5e-4, warmup_steps=100),
        training=replace(dense.training, epochs=3, average_best=1, best_by="latest"),
        warm_start=WarmStartConfig(config="configs/demo_transformer.py"),
    )
