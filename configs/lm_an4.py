"""AN4: an LSTM language model of the recogniser's pieces, from its training transcripts alone.

Command: `I3D_SPEECH_DIR=path/to/speech python train.py --config=configs/lm_an4.py`

Paper: none; the paper decodes without a language model. It is made for shallow fusion, see docs/language_models.md.
Wants the run of `configs/an4_transformer.py` in `runs/an4_transformer`, finished or begun; `--text.run=RUN` takes
another. Time: about a minute on two CPU cores. Measured numbers: see docs/language_models.md.
"""

from dataclasses import replace
from pathlib import Path

from i3d_jax.experiment import load_config
from i3d_jax.language_model_experiment import LanguageModelExperiment


def get_config() -> LanguageModelExperiment:
    """The experiment."""
    demo = load_config(Path(__file__).with_name("lm_demo.py"), LanguageModelExperiment)
    return replace(
        demo,
        name="lm_an4",
        text=replace(demo.text, run="runs/an4_transformer"),
        batching=replace(demo.batching, tokens_per_batch=500),
        model=replace(demo.model, width=256),
        optimizer=replace(demo.optimizer, learning_rate=3e-3),
        training=replace(demo.training, epochs=40),
    )
