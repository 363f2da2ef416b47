"""Gate patterns as files, and decisions that hold a pattern for each utterance of a corpus.

A pattern file is JSON::

    {"gate_names": ["mha", "ffn"],
     "gates": {"mha": [0, 1, 1], "ffn": [1, 1, 0]},     one entry a layer, 1 = executed
     "origin": "how it was made"}
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.model.gates import Decision, Fixed


@dataclass(frozen=True)
class Pattern:
    """Which blocks are executed, the same ones for every utterance.

    Attributes:
      gates: [N, M] bool.
      gate_names: names of the M gates of a layer.
      origin: how the pattern was made, for people.
    """

    gates: np.ndarray
    gate_names: tuple[str, ...]
    origin: str

    @property
    def decision(self) -> Fixed:
        """The decision that executes it."""
        return Fixed(self.gates)

    @property
    def executed_layers(self) -> float:
        """Open gates / M."""
        return float(self.gates.sum() / self.gates.shape[1])

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that differ between patterns, whatever their origin; part of folder names."""
        rows = "/".join("".join(map(str, row)) for row in self.gates.astype(int).tolist())
        return hashlib.sha256(f"{','.join(self.gate_names)}:{rows}".encode()).hexdigest()[:8]

    def to_dict(self) -> dict[str, Any]:
        """What its file holds."""
        columns = {name: self.gates[:, m].astype(int).tolist() for m, name in enumerate(self.gate_names)}
        return {"gate_names": list(self.gate_names), "gates": columns, "origin": self.origin}


def write_pattern(path: epath.PathLike, pattern: Pattern) -> None:
    """Writes a pattern file, atomically."""
    files.write_text(path, json.dumps(pattern.to_dict(), indent=1) + "\n")


def read_pattern(path: epath.PathLike, num_layers: int, gate_names: tuple[str, ...]) -> Pattern:
    """Reads a pattern for a model with so many layers and these gates.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a pattern file, a value other than 0 and 1, or a pattern of another model.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no pattern file there; python -m i3d_jax.cli.prune and python -m i3d_jax.cli.controls write some"
        )
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no pattern file: {error}; expected JSON") from error
    if not isinstance(data, dict) or set(data) != {"gate_names", "gates", "origin"}:
        raise ValueError(f"{path} is no pattern file: expected an object with gate_names, gates and origin")
    names, columns, origin = data["gate_names"], data["gates"], data["origin"]
    if names != list(gate_names):
        raise ValueError(f"{path}: gate_names={names}: the model has {list(gate_names)}; take a pattern of that model")
    if not isinstance(columns, dict) or sorted(columns) != sorted(names):
        raise ValueError(f"{path}: gates: expected one list for each of {', '.join(names)}")
    if not isinstance(origin, str):
        raise ValueError(f"{path}: origin={origin!r}: expected text")
    for name in names:
        column = columns[name]
        if not isinstance(column, list) or len(column) != num_layers:
            count = f"{len(column)} values" if isinstance(column, list) else repr(column)
            raise ValueError(f"{path}: gates.{name}: {count}: expected a list of {num_layers}, one for each layer")
        for layer, value in enumerate(column, start=1):
            if type(value) is not int or value not in (0, 1):
                raise ValueError(f"{path}: gates.{name}, layer {layer}: {value!r}: expected 0 or 1")
    return Pattern(np.array([columns[name] for name in names], bool).T, tuple(names), origin)


class PerUtterance(NamedTuple):
    """A pattern for each utterance of a corpus, in its order: [U, N, M] bool, on the host.

    Not a decision itself: batches regroup utterances, and each gets the decision of its own rows.
    """

    gates: np.ndarray

    def rows(self, indices: np.ndarray, size: int) -> Fixed:
        """The decision for a batch of ``size`` rows whose first ones are these utterances; fillers want nothing."""
        mask = np.zeros((size, *self.gates.shape[1:]), bool)
        mask[: len(indices)] = self.gates[indices]
        return Fixed(mask)


Decisions = Decision | PerUtterance
"""What a corpus is evaluated with: one decision for all batches, or a pattern for each utterance."""


def decision_of(decide: Decisions, indices: np.ndarray, size: int) -> Decision:
    """The decision for a batch of ``size`` rows: row r is utterance ``indices[r]`` of the corpus, others fill it."""
    return decide.rows(indices, size) if isinstance(decide, PerUtterance) else decide
