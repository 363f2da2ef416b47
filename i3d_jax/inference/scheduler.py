"""Batches of a model with a global gate predictor, regrouped by gate pattern before their layers are run.

::

    batches of one shape, up to `pool` of them     start: front end, subsampling, gates
    all their rows, sorted by gate pattern         those that want the same blocks become neighbours
    batches of these rows                          rest: the layers, compacted

A compacted batch computes a block for a few rows at a time, so that rows which want different blocks fill up each
other's parts. Where a part is one row, or gates are not known before the first layer, batches run as they come.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.inference.execution import Execution
from i3d_jax.inference.pattern import Decisions, decision_of
from i3d_jax.inference.recognition import Recognition, Start
from i3d_jax.model.encoder import check_boolean
from i3d_jax.model.gates import Fixed

if TYPE_CHECKING:
    from i3d_jax.inference.recognizer import Recognizer

POOL = 8
"""Batches of one shape that are regrouped together: their encoder inputs are held meanwhile."""


class Work(NamedTuple):
    """One batch: row r is utterance ``indices[r]``; rows beyond them only fill it.

    ``waveform`` is [B, S] and ``num_samples`` [B].
    """

    indices: np.ndarray
    waveform: Any
    num_samples: Any


def recognize_batches(
    recognizer: "Recognizer",
    batches: Iterable[Work],
    decide: Decisions,
    execution: Execution,
    *,
    fetch: Callable[[Any], Any] = jax.device_get,
    pool: int = POOL,
) -> Iterator[tuple[np.ndarray, Recognition]]:
    """Recognise batches, in groups of rows that need not be those of the batches.

    Patterns of single utterances are looked up by ``indices``, and stay with their rows.

    Yields:
      (indices, recognition): row r of the recognition is utterance ``indices[r]``, rows beyond them are fillers. Every
      utterance comes once, in no particular order.

    Raises:
      TypeError: float gates in an execution other than ``masked``.
    """
    waiting: dict[tuple[int, ...], list[tuple[np.ndarray, Start]]] = {}
    for work in batches:
        own = decision_of(decide, work.indices, len(work.waveform))
        if not recognizer.regroups(work.waveform.shape, execution):
            yield work.indices, recognizer.recognize(work.waveform, work.num_samples, own, execution, fetch)
            continue
        start = recognizer.pipeline.start(recognizer.params, work.waveform, work.num_samples, own)
        begun = waiting.setdefault(work.waveform.shape, [])
        begun.append((work.indices, start))
        if len(begun) == pool:
            yield from _regrouped(recognizer, waiting.pop(work.waveform.shape), fetch)
    for begun in waiting.values():
        yield from _regrouped(recognizer, begun, fetch)


def _regrouped(
    recognizer: "Recognizer", begun: list[tuple[np.ndarray, Start]], fetch: Callable[[Any], Any]
) -> Iterator[tuple[np.ndarray, Recognition]]:
    size = len(begun[0][1].num_frames)
    indices = np.concatenate([own for own, _ in begun])
    rows = np.concatenate([size * batch + np.arange(len(own)) for batch, (own, _) in enumerate(begun)])
    x, mask, num_frames = (
        jnp.concatenate([getattr(start, name) for _, start in begun]) for name in ("x", "mask", "num_frames")
    )
    gates, probabilities = (
        np.concatenate([np.asarray(getattr(start, name)) for _, start in begun], axis=1)
        for name in ("gates", "probabilities")
    )
    check_boolean(gates, "compacted")
    order = by_pattern(np.swapaxes(gates[:, rows], 0, 1))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        own = np.resize(rows[chosen], size)
        real = np.arange(size) < len(chosen)
        start = Start(
            x=x[own],
            mask=mask[own] & real[:, None],
            gates=jnp.asarray(gates[:, own]),
            probabilities=jnp.asarray(probabilities[:, own]),
            num_frames=num_frames[own],
        )
        decide = Fixed(np.swapaxes(gates[:, own], 0, 1))
        yield indices[chosen], recognizer.finish(recognizer.pipeline.rest(recognizer.params, start, decide), fetch)


def by_pattern(gates: np.ndarray) -> np.ndarray:
    """The order of the rows of gates [B, N, M] in which like patterns are neighbours: [B] indices.

    They are sorted as words whose first letters are the gates that divide the rows most evenly.
    """
    flat = gates.reshape(len(gates), -1)
    letters = np.argsort(np.abs(flat.mean(axis=0) - 0.5), kind="stable")
    return np.lexsort(flat[:, letters[::-1]].T)
