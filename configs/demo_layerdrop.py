"""Demo: the dense encoder of `demo_transformer.py` trained with LayerDrop, on generated speech.

Command: `python train.py --config=configs/demo_layerdrop.py`

Paper: the LayerDrop model behind the pruned baseline of Fig. 2, made small. Time: minutes on two CPU cores. Measured
numbers: see RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig, LayerDropConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("demo_transformer.py"))
    gates = GateConfig(layer_drop=LayerDropConfig(rate=0.2))
    return replace(dense, name="demo_layerdrop", model=replace(dense.model, gates=gates))
