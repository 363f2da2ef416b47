"""LibriSpeech-100: the dense encoder trained with LayerDrop, to be pruned afterwards.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/librispeech100_layerdrop.py`

Paper: the LayerDrop model behind the pruned baseline of Fig. 2;
`python -m i3d_jax.cli.prune runs/librispeech100_layerdrop` gives its curve on dev, the same with `--evaluate=test`
that on test. The paper does not give the rate: 0.2 is what fairseq trains with for pruning (arXiv 1909.11556).
Time: that of `librispeech100_transformer`: dropped layers are computed too. Expected, from the paper: test-clean
11.9 % WER at 36 layers, 12.8 % at 27, 15.2 % at 20, 16.5 % at 18; test-other 26.8, 28.6, 32.6 and 34.3 %.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.model.gates import GateConfig, LayerDropConfig


def get_config() -> ExperimentConfig:
    """The experiment."""
    dense = load_config(Path(__file__).with_name("librispeech100_transformer.py"))
    gates = GateConfig(layer_drop=LayerDropConfig(rate=0.2))
    return replace(dense, name="librispeech100_layerdrop", model=replace(dense.model, gates=gates))
