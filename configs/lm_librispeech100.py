"""LibriSpeech-100: an LSTM language model of the recogniser's 5000 pieces, from the transcripts of its 100 hours.

Command: `LIBRISPEECH_DIR=path/to/LibriSpeech python train.py --config=configs/lm_librispeech100.py`

Paper: none; the paper decodes without a language model, and so does ESPnet's librispeech_100 recipe (`--use_lm false`).
It is made for shallow fusion, see docs/language_models.md. Layers and width are the defaults of ESPnet's
`SequentialRNNLM` (espnet2/lm/seq_rnn_lm.py); dropout, rate, batch and epochs are ours, tried on no corpus of this size.
Wants the run of `configs/librispeech100_transformer.py` in `runs/librispeech100_transformer`, finished or begun.
Of the 800 M words of LibriSpeech's own text (OpenSLR SLR11, unpacked) add
`--text.train=librispeech-lm-norm.txt --training.epochs=1`: token ids are kept in memory, 4 bytes each and twice that
while they are read, which is about 10 GB; encoding takes one process an hour or so. Neither was measured.
Time: an accelerator's job: some 80 TFLOP an epoch of the transcripts (28,539 sentences), by count; not measured.
"""

from i3d_jax.data.sentences import SentenceBatchingConfig, TextConfig
from i3d_jax.language_model_experiment import LanguageModelExperiment, LanguageModelTrainingConfig
from i3d_jax.model.language_model import LanguageModelConfig
from i3d_jax.training.optimizer import OptimizerConfig


def get_config() -> LanguageModelExperiment:
    """The experiment."""
    return LanguageModelExperiment(
        name="lm_librispeech100",
        text=TextConfig(run="runs/librispeech100_transformer"),
        batching=SentenceBatchingConfig(tokens_per_batch=8000, num_buckets=6),
        model=LanguageModelConfig(num_layers=2, width=650, dropout=0.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=500, schedule="cosine", weight_decay=0.0),
        training=LanguageModelTrainingConfig(epochs=20, average_best=3),
    )
