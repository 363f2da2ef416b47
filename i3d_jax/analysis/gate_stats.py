"""Statistics of gates over utterances: the paper's Figs. 5 to 7, and whether gates depend on the input."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GateStats:
    """Gates of a model on a set of utterances. Standard deviations are over utterances (population).

    Attributes:
      gate_names: names of the M branches of a layer.
      num_utterances: utterances B.
      probability_mean: [N, M] mean of p(execute).
      probability_std: [N, M] its standard deviation.
      decision_mean: [N, M] share of the utterances that executed the branch.
      decision_std: [N, M] standard deviation of the decision.
      executed_layers_mean: executed branches / M, averaged over utterances; the paper's "number of layers".
      executed_layers_std: its standard deviation.
      executed_blocks: branch name -> executed blocks of that kind, averaged over utterances.
      distinct_patterns: different gate patterns among the utterances.
    """

    gate_names: tuple[str, ...]
    num_utterances: int
    probability_mean: np.ndarray
    probability_std: np.ndarray
    decision_mean: np.ndarray
    decision_std: np.ndarray
    executed_layers_mean: float
    executed_layers_std: float
    executed_blocks: dict[str, float]
    distinct_patterns: int

    @property
    def is_static(self) -> bool:
        """Every utterance got the same gates: the model does not choose by its input."""
        return self.distinct_patterns == 1

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values, ``is_static`` under the key ``static``."""
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {**plain, "gate_names": list(self.gate_names), "static": self.is_static}


def gate_statistics(gates: np.ndarray, probabilities: np.ndarray, gate_names: tuple[str, ...]) -> GateStats:
    """Summarises the gates of a set of utterances.

    Args:
      gates: [B, N, M] boolean decisions, filler rows left out.
      probabilities: [B, N, M] p(execute).
      gate_names: names of the M branches, for instance ``("mha", "ffn")``.

    Raises:
      ValueError: no utterances, gates that are not decisions, or shapes that do not fit together.
    """
    gates, probabilities = np.asarray(gates), np.asarray(probabilities, np.float64)
    if gates.dtype != bool:
        raise ValueError(f"gates have dtype {gates.dtype}; expected boolean decisions: threshold the probabilities")
    if gates.ndim != 3 or gates.shape != probabilities.shape or gates.shape[2] != len(gate_names):
        raise ValueError(
            f"gates {gates.shape}, probabilities {probabilities.shape} and gate_names {gate_names} do not fit; "
            "expected [B, N, M] twice and M names"
        )
    if not len(gates):
        raise ValueError("no utterances; expected gates of at least one")
    executed_layers = gates.sum(axis=(1, 2)) / gates.shape[2]
    blocks = gates.sum(axis=1).mean(axis=0)
    patterns = np.unique(np.packbits(gates.reshape(len(gates), -1), axis=1), axis=0)
    return GateStats(
        gate_names=tuple(gate_names),
        num_utterances=len(gates),
        probability_mean=probabilities.mean(axis=0),
        probability_std=probabilities.std(axis=0),
        decision_mean=gates.mean(axis=0),
        decision_std=gates.std(axis=0),
        executed_layers_mean=float(executed_layers.mean()),
        executed_layers_std=float(executed_layers.std()),
        executed_blocks={name: float(n) for name, n in zip(gate_names, blocks, strict=True)},
        distinct_patterns=len(patterns),
    )
