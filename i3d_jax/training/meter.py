"""What the steps between two log lines did, and how well they used the machine."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from i3d_jax.audio.frontend import FrontendConfig, num_frames
from i3d_jax.audio.io import num_samples_after_speed
from i3d_jax.data.corpora import Corpus
from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.flops import count_flops_by_part, decoder_flops
from i3d_jax.training.compiled import compilations
from i3d_jax.training.hardware import peak_memory
from i3d_jax.training.optimizer import Trainable
from i3d_jax.training.step import StepMetrics

_Item = TypeVar("_Item")

_BACKWARD = 2.0  # FLOPs of the gradients of a product, in its own


def step_flops(
    model: ASRModel,
    frontend: FrontendConfig,
    corpus: Corpus,
    num_labels: np.ndarray,
    heads: int = 1,
    trainable: Trainable = "all",
) -> Callable[[PlannedBatch], float]:
    """Model FLOPs of training on a batch: forward and backward of every branch, on the frames that are no padding.

    ``num_labels`` [utterances] are the lengths of the transcripts, which an attention decoder reads. ``heads`` counts
    how often the CTC head is computed: once, and for each intermediate loss. With only the predictor trained, the
    backward pass has the gradients of inputs alone, and ends at the first layer; that both operands of attention's own
    products are inputs, and the predictor itself, are left out.

    What is computed again to save memory is not counted (the convention of MFU, arXiv 2204.02311, appendix B).
    """
    lengths = np.array([u.num_samples for u in corpus.utterances], np.int64)

    def flops(planned: PlannedBatch) -> float:
        samples = np.zeros(planned.rows[-1] + 1, np.int64)
        for speed in np.unique(planned.speeds):
            own = planned.speeds == speed
            after = num_samples_after_speed(lengths[planned.indices[own]], float(speed))
            np.add.at(samples, planned.rows[own], after)
        forward = count_flops_by_part(
            model.config,
            num_mels=model.num_mels,
            vocab_size=model.vocab_size,
            num_frames=num_frames(frontend, samples),
            executed=None,
        )
        tokens = np.zeros(len(samples), np.int64)
        np.add.at(tokens, planned.rows, num_labels[planned.indices])
        decoder = decoder_flops(
            model.config, vocab_size=model.vocab_size, num_frames=num_frames(frontend, samples), tokens=tokens + 1
        )
        total = forward.total + (heads - 1) * forward.ctc_head + decoder
        if trainable == "all":
            return (1 + _BACKWARD) * float(total.sum())
        passed = sum(forward.branches.values()) + forward.self_conditioning + heads * forward.ctc_head + decoder
        return float((total + _BACKWARD / 2 * passed).sum())

    return flops


class StepMeter:
    """Totals of any training since the last log line, and how its steps used the time."""

    def __init__(self) -> None:
        self._compiled_before = compilations()
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._totals: Any = None
        self._grad_norms: list[float] = []
        self._waited = 0.0
        self._start = time.monotonic()

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def pause(self, seconds: float) -> None:
        """So much of the time was not spent on training: a program was compiled."""
        self._start += seconds

    def waiting(self, batches: Iterable[_Item]) -> Iterator[_Item]:
        """The same batches; how long each was waited for is noted."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def add(self, metrics: StepMetrics, planned: PlannedBatch) -> None:
        """Add a step that is done."""
        totals = metrics.totals
        self._totals = totals if self._totals is None else jax.tree.map(lambda a, b: a + b, self._totals, totals)
        self._grad_norms.append(float(metrics.grad_norm))

    def summary(self) -> dict[str, float]:
        """Figures of the machine.

        ``input_wait`` is the share of the time that the host waited for the next batch while the device was still at
        work on the last one or idle, so at least the share in which it was idle for want of data; ``memory_gb`` the
        peak of the fullest device of this process, or of the process on CPU; ``compilations`` counts programs compiled
        since the training began: it should soon stay as it is.
        """
        return {
            "grad_norm": float(np.mean(self._grad_norms)),
            "input_wait": self._waited / self._seconds,
            "memory_gb": peak_memory() / 1e9,
            "compilations": compilations() - self._compiled_before,
        }


class Meter(StepMeter):
    """Of a recogniser.

    Args:
      corpus: the training corpus, for lengths.
      flops: of the training step on a batch.
      peak: FLOP/s of all devices; None leaves the MFU out.
    """

    def __init__(
        self, corpus: Corpus, flops: Callable[[PlannedBatch], float] | None = None, peak: float | None = None
    ) -> None:
        self._corpus, self._flops_of, self._peak = corpus, flops, peak
        super().__init__()

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._audio_seconds = self._flops = 0.0

    def add(self, metrics: StepMetrics, planned: PlannedBatch) -> None:
        """Add a step that is done."""
        super().add(metrics, planned)
        samples = sum(self._corpus.utterances[i].num_samples for i in planned.indices)
        self._audio_seconds += samples / self._corpus.sample_rate
        self._flops += self._flops_of(planned) if self._flops_of else 0.0

    def _of_the_decoder(self, count: float) -> dict[str, float]:
        totals = self._totals
        if not totals.tokens:
            return {}
        accuracy = float(totals.correct_tokens) / float(totals.tokens)
        return {"attention": float(totals.attention) / count, "attention_accuracy": accuracy}

    def summary(self) -> dict[str, float]:
        """Means of the losses over utterances, and figures of the machine, those of `StepMeter` included.

        ``attention_accuracy`` is the share of the tokens, ends included, that the decoder held for the most probable
        with the true ones before them.

        ``audio_per_second`` is seconds of audio a second, or hours an hour; ``mfu`` the share of the devices' peak
        FLOP/s that went into the model.
        """
        totals = self._totals
        count = max(float(totals.utterances), 1.0)
        seconds = self._seconds
        return {
            "loss": float(totals.loss) / count,
            "ctc": float(totals.ctc) / count,
            **({"interctc": float(totals.interctc) / count} if totals.interctc else {}),
            **self._of_the_decoder(count),
            "utility": float(totals.utility) / count,
            "layers": float(totals.executed_layers) / count,
            "audio_per_second": self._audio_seconds / seconds,
            **({"mfu": self._flops / seconds / self._peak} if self._peak else {}),
            **super().summary(),
        }
