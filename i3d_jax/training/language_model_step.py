"""The training step of a language model: cross entropy of every next token, the end of the sentence included."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from i3d_jax.data.epoch_plan import PlannedBatch
from i3d_jax.inference.perplexity import exponential, sentence_nats
from i3d_jax.model.language_model import LanguageModel
from i3d_jax.training.meter import StepMeter
from i3d_jax.training.step import StepMetrics, TrainStep, guarded_step
from i3d_jax.types import Array, SentenceBatch


class TokenTotals(NamedTuple):
    """Sums over the valid sentences of a batch, each a scalar; divide by ``tokens`` after merging.

    ``loss`` is the negative log likelihood, in nats, of ``tokens`` tokens, the ends of the sentences included.
    """

    loss: jax.Array
    tokens: jax.Array


class Seeded(NamedTuple):
    """The argument of the step besides state and batch: ``seed``, uint32, of dropout."""

    seed: Array


def _tokens(batch: SentenceBatch) -> jax.Array:
    """[B] tokens of each sentence and its end, 0 of filler rows."""
    return jnp.where(jnp.asarray(batch.valid), jnp.asarray(batch.num_tokens) + 1, 0)


def make_language_model_step(
    model: LanguageModel, optimizer: optax.GradientTransformation, accumulate: int = 1
) -> TrainStep:
    """A pure function (state, batch, `Seeded`) -> (state, metrics), see `guarded_step`.

    The loss is the mean over the tokens of the batch.
    """

    def totals_of(own: Any, params: Any, batch: SentenceBatch, keys: jax.Array, member: Seeded) -> TokenTotals:
        loss = jnp.sum(sentence_nats(model, own, batch, keys))
        return TokenTotals(loss, jnp.sum(_tokens(batch), dtype=jnp.float32))

    return guarded_step(totals_of, _tokens, optimizer, accumulate)


class TokenMeter(StepMeter):
    """Of a language model."""

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._tokens = 0

    def add(self, metrics: StepMetrics, planned: PlannedBatch) -> None:
        """Add a step that is done."""
        super().add(metrics, planned)
        self._tokens += int(metrics.totals.tokens)

    def summary(self) -> dict[str, float]:
        """``loss``, nats a token; ``perplexity``, its exponential; ``tokens_per_second``; and those of `StepMeter`."""
        loss = float(self._totals.loss) / max(float(self._totals.tokens), 1.0)
        return {
            "loss": loss,
            "perplexity": exponential(loss),
            "tokens_per_second": self._tokens / self._seconds,
            **super().summary(),
        }
