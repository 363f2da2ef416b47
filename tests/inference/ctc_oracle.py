"""CTC by enumeration: every path of a tiny lattice."""

import itertools

import numpy as np


def collapse(path):
    """Tokens of a path: repeats merged, blanks (0) dropped."""
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def sequences(log_probs):
    """Log probability of every token sequence of [T, V], summed over its paths: a dictionary."""
    found = {}
    for path, score in paths(log_probs):
        found[collapse(path)] = np.logaddexp(found.get(collapse(path), -np.inf), score)
    return found


def best_path(log_probs, tokens):
    """The most probable path of a token sequence, and its score; (None, -inf) if it has none."""
    own = [(path, score) for path, score in paths(log_probs) if collapse(path) == tuple(tokens)]
    return max(own, key=lambda one: one[1], default=(None, -np.inf))


def paths(log_probs):
    """Every path of [T, V] with its log probability."""
    frames, vocabulary = log_probs.shape
    for path in itertools.product(range(vocabulary), repeat=frames):
        yield path, sum(float(log_probs[frame, token]) for frame, token in enumerate(path))
