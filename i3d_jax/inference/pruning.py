"""Iterative pruning: the one layer, or block, whose removal costs the least is removed, again and again.

The paper's static baseline (its section on LayerDrop): from N layers down, each depth is chosen on the dev set. The
cost of a removal is the number of word errors, then that of character errors, then the place: of equal ones the lowest
layer goes, of its blocks the first.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from i3d_jax import files, schema
from i3d_jax.data.corpora import Corpus
from i3d_jax.inference.evaluation import Evaluation
from i3d_jax.inference.pattern import Pattern
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.params import flatten

Unit = Literal["layer", "block"]


@dataclass(frozen=True)
class Cost:
    """What a pattern costs on the selection set.

    Attributes:
      word_errors: what is minimised.
      character_errors: decides between equal word errors.
      wer: percent.
      cer: percent.
      gflops_per_second: GFLOP per second of audio.
    """

    word_errors: int
    character_errors: int
    wer: float
    cer: float
    gflops_per_second: float

    @property
    def order(self) -> tuple[int, int]:
        """The smaller, the better."""
        return self.word_errors, self.character_errors


def cost_of(result: Evaluation) -> Cost:
    """The cost of an evaluation."""
    score = result.score
    return Cost(
        word_errors=score.substitutions + score.deletions + score.insertions,
        character_errors=score.character_substitutions + score.character_deletions + score.character_insertions,
        wer=score.wer,
        cer=score.cer,
        gflops_per_second=result.gflops_per_second,
    )


class Removal(NamedTuple):
    """One step.

    Attributes:
      unit: index of what was removed; None for the whole model, the step before the first.
      cost: without it.
      candidates: the cost of each removal that was possible, by unit.
    """

    unit: int | None
    cost: Cost
    candidates: dict[int, Cost]


def prune(count: int, evaluate: Callable[[np.ndarray], Cost], done: Sequence[Removal] = ()) -> Iterator[Removal]:
    """Removes units one by one, until none is left.

    The whole model is evaluated first; there are 1 + count (count + 1) / 2 evaluations.

    Args:
      count: units.
      evaluate: the units that are kept, [count] bool, to their cost.
      done: steps of an interrupted pruning, which are not repeated.

    Yields:
      the steps that are not done, as soon as each is decided.
    """
    kept = np.ones(count, bool)
    kept[[step.unit for step in done if step.unit is not None]] = False
    if not done:
        yield Removal(None, evaluate(kept.copy()), {})
    while kept.any():
        candidates = {}
        for unit in np.flatnonzero(kept).tolist():
            without = kept.copy()
            without[unit] = False
            candidates[unit] = evaluate(without)
        best = min(candidates, key=lambda unit: (candidates[unit].order, unit))
        kept[best] = False
        yield Removal(best, candidates[best], candidates)


@dataclass(frozen=True)
class Pruning:
    """The pruning of a model, finished or not.

    Attributes:
      model: its name.
      unit: what is removed at a time.
      split: selection set.
      inputs: digest of parameters and selection set, with which alone it may be continued.
      num_layers: N.
      gate_names: names of the M gates of a layer.
      steps: so far.
    """

    model: str
    unit: Unit
    split: str
    inputs: str
    num_layers: int
    gate_names: tuple[str, ...]
    steps: tuple[Removal, ...] = ()

    @property
    def label(self) -> str:
        """Its name in figures."""
        return f"{self.model}, pruned {self.unit} by {self.unit}"

    @property
    def count(self) -> int:
        """Units of the whole model."""
        return self.num_layers * (1 if self.unit == "layer" else len(self.gate_names))

    @property
    def is_finished(self) -> bool:
        """Nothing is left to remove."""
        return len(self.steps) == self.count + 1

    @property
    def evaluations(self) -> tuple[int, int]:
        """How many are done, and how many there are in all."""
        return sum(max(len(step.candidates), 1) for step in self.steps), 1 + self.count * (self.count + 1) // 2

    def gates(self, kept: np.ndarray) -> np.ndarray:
        """Units that are kept, [count] bool, to gates [N, M]."""
        shape = (self.num_layers, len(self.gate_names))
        return np.array(np.broadcast_to(kept[:, None], shape) if self.unit == "layer" else kept.reshape(shape))

    def unit_name(self, unit: int) -> str:
        """``layer 3``, or ``ffn 3``: layers count from 1."""
        if self.unit == "layer":
            return f"layer {unit + 1}"
        layer, gate = divmod(unit, len(self.gate_names))
        return f"{self.gate_names[gate]} {layer + 1}"

    def patterns(self) -> list[Pattern]:
        """The pattern after each step."""
        kept, found = np.ones(self.count, bool), []
        for step in self.steps:
            if step.unit is not None:
                kept[step.unit] = False
            gates = self.gates(kept)
            depth = gates.sum() / len(self.gate_names)
            origin = f"{self.label} on {self.split} to {depth:g} layers"
            found.append(Pattern(gates, self.gate_names, origin))
        return found

    def with_step(self, step: Removal) -> "Pruning":
        """With one more step."""
        return replace(self, steps=(*self.steps, step))

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each depth, the whole model first."""
        return [
            {
                "executed_layers": pattern.executed_layers,
                "removed": "" if step.unit is None else self.unit_name(step.unit),
                "unit": step.unit,
                **schema.to_dict(step.cost),
                "candidates": {str(unit): schema.to_dict(cost) for unit, cost in step.candidates.items()},
            }
            for step, pattern in zip(self.steps, self.patterns(), strict=True)
        ]


def inputs_digest(recognizer: Recognizer, corpus: Corpus) -> str:
    """Digest of what the choices follow from: parameters, and ids, lengths and transcripts of the selection set."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(recognizer.params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    for u in corpus.utterances:
        digest.update(f"{u.id}\0{u.num_samples}\0{u.text}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_pruning(path: epath.PathLike, pruning: Pruning, meta: dict[str, Any]) -> None:
    """Writes the table, from which an interrupted pruning goes on, atomically."""
    data = {name: getattr(pruning, name) for name in ("model", "unit", "split", "inputs", "num_layers", "gate_names")}
    data |= {"label": pruning.label, "finished": pruning.is_finished, "rows": pruning.rows(), "meta": meta}
    files.write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_pruning(path: epath.PathLike) -> Pruning:
    """Reads what `write_pruning` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: nothing has been pruned there; run python -m i3d_jax.cli.prune RUN first")
    try:
        data = json.loads(path.read_text())
        if data["unit"] not in ("layer", "block"):
            raise ValueError(f"unit={data['unit']!r}")
        steps = []
        for row in data["rows"]:
            cost = schema.from_dict(Cost, {name: row[name] for name in schema.leaves(Cost)})
            candidates = {int(unit): schema.from_dict(Cost, each) for unit, each in row["candidates"].items()}
            steps.append(Removal(None if row["unit"] is None else int(row["unit"]), cost, candidates))
        pruning = Pruning(
            model=str(data["model"]),
            unit=data["unit"],
            split=str(data["split"]),
            inputs=str(data["inputs"]),
            num_layers=int(data["num_layers"]),
            gate_names=tuple(data["gate_names"]),
            steps=tuple(steps),
        )
        removed = [step.unit for step in steps[1:]]
        if any(step.unit is not None for step in steps[:1]) or not set(removed) <= set(range(pruning.count)):
            raise ValueError("its steps are no removals")
        if len(set(removed)) < len(removed):
            raise ValueError("something is removed twice")
        return pruning
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it and prune again") from error
