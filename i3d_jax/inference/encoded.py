"""The encoder inputs of a corpus, computed once, for evaluating one gate pattern after another."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np

from i3d_jax.data.batching import BatchingConfig
from i3d_jax.data.corpora import Corpus
from i3d_jax.inference.evaluation import Evaluation, EvaluationConfig, collect, evaluation_batches
from i3d_jax.inference.recognition import Recognition, Start
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.gates import Fixed, Open
from i3d_jax.progress import progress


class EncodedCorpus:
    """A corpus as X(0): audio is read and padded, features and subsampling are computed once for all patterns.

    They are held on the device: 4 D bytes for each encoder frame of 40 ms, 26 kB for a second of audio at D = 256.
    A pattern is an argument of the compiled program, which runs no block that it leaves out.
    """

    def __init__(self, recognizer: Recognizer, corpus: Corpus, config: EvaluationConfig, batching: BatchingConfig):
        """Compute the encoder inputs.

        Args:
          recognizer: the model.
          corpus: what to recognise.
          config: of decoding and scoring.
          batching: threads and batch multiple of the loader.

        Raises:
          ValueError: as `evaluate`.
        """
        self._recognizer, self._corpus, self._config = recognizer, corpus, config
        self._batches: list[tuple[np.ndarray, Start]] = []
        batches, total = evaluation_batches(recognizer, corpus, config, batching)
        for planned, batch in progress(batches, f"{corpus.name} encoder inputs", total=total):
            start = recognizer.pipeline.start(recognizer.params, batch.waveform, batch.num_samples, Open())
            self._batches.append((planned.indices, jax.block_until_ready(start)))

    def evaluate(self, gates: np.ndarray, bootstrap_samples: int = 0) -> Evaluation:
        """Recognise and score the corpus with the blocks of a pattern [N, M].

        The gate probabilities of the result are those known before the first layer: meaningless for local predictors.
        """
        config = replace(self._config, bootstrap_samples=bootstrap_samples)
        return collect(self._recognizer, self._corpus, self._results(Fixed(gates)), "compacted", config)

    def _results(self, decide: Fixed) -> Iterator[tuple[np.ndarray, Recognition]]:
        for indices, start in self._batches:
            recognition = self._recognizer.pipeline.rest(self._recognizer.params, start, decide)
            yield indices, self._recognizer.finish(recognition)
