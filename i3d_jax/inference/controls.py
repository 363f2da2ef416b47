"""Gate patterns for the controls of a gated model: what remains of it when its gates no longer depend on the input.

Patterns are made on the host, before anything is recognised, from gates [U, N, M] and a seed: how batches are formed
changes nothing.
"""

import numpy as np


def majority(gates: np.ndarray) -> np.ndarray:
    """The pattern [N, M] of the gates that more than half of the utterances open, of gates [U, N, M]."""
    return np.asarray(gates, bool).mean(axis=0) > 0.5


def derangement(count: int, seed: int) -> np.ndarray:
    """A random permutation [count] without a fixed point, each equally likely.

    Raises:
      ValueError: fewer than two elements, of which there is none.
    """
    if count < 2:
        raise ValueError(f"{count} utterances: to give each the gates of another one takes at least 2")
    rng = np.random.default_rng(seed)
    while True:  # e times on average
        order = rng.permutation(count)
        if not np.any(order == np.arange(count)):
            return order


def permuted(gates: np.ndarray, seed: int) -> np.ndarray:
    """Each utterance gets the gates of another one: [U, N, M] -> [U, N, M]."""
    return np.asarray(gates, bool)[derangement(len(gates), seed)]


def random_places(gates: np.ndarray, seed: int) -> np.ndarray:
    """As many open gates of each branch for each utterance, in layers drawn at random: [U, N, M] -> [U, N, M]."""
    return np.random.default_rng(seed).permuted(np.asarray(gates, bool), axis=1)
