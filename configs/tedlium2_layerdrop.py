"""Tedlium2: the dense encoder trained with LayerDrop, to be pruned afterwards.

Command: `TEDLIUM2_DIR=path/to/tedlium2 python train.py --config=configs/tedlium2_layerdrop.py`

Paper: LayerDrop for Fig. 4, where the paper has no pruned curve;
`python -m i3d_jax.cli.prune runs/tedlium2_layerdrop` gives one. The rate is that of `librispeech100_layerdrop`.
Time: that of `tedlium2_transformer`: dropped layers are computed too. Expected, from the paper: nothing for this
corpus.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig, LayerDropConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("tedlium2_transformer.py"))
    gates = GateConfig(layer_drop=LayerDropConfig(rate=0.2))
    return replace(dense, name="tedlium2_layerdrop", model=replace(dense.model, gates=gates))
