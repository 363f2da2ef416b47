"""AN4: the dense encoder of `an4_transformer` trained with LayerDrop, from scratch, to be pruned afterwards.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/an4_layerdrop.py`

Paper: the LayerDrop model behind the pruned baseline of Fig. 2, sized for AN4; the rate is fairseq's for pruning
(arXiv 1909.11556). Time: that of `an4_transformer`, since training computes dropped layers too. Measured numbers: see
RESULTS.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig, LayerDropConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("an4_transformer.py"))
    gates = GateConfig(layer_drop=LayerDropConfig(rate=0.2))
    return replace(dense, name="an4_layerdrop", model=replace(dense.model, gates=gates))
