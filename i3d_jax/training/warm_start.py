"""Initialise a gated model from a trained dense one, naming everything that does not fit."""

from dataclasses import dataclass

from etils import epath

from i3d_jax.model.encoder import Params
from i3d_jax.model.params import flatten, unflatten


@dataclass(frozen=True)
class WarmStartConfig:
    """Initialisation of a gated model from a trained dense one."""

    run: str = ""
    """Run directory of the dense model; empty with ``config`` set means ``<workdir>/dense``."""
    config: str = ""
    """Experiment file that trains the dense model first when ``run`` does not hold a finished one. Seed, data,
    tokenizer and front end are taken from this experiment."""

    def folder(self, workdir: epath.Path) -> epath.Path | None:
        """Run directory of the dense model, for a run in ``workdir``; None without a warm start."""
        if not self.run and not self.config:
            return None
        return epath.Path(self.run).expanduser() if self.run else workdir / "dense"


def warm_start(params: Params, source: Params) -> Params:
    """Copy every parameter of ``source`` into ``params``; the gate predictor keeps its fresh initialisation.

    Args:
      params: freshly initialised parameters of the gated model.
      source: parameters of the trained model.

    Raises:
      ValueError: a parameter is missing on either side or has another shape; all of them are named.
    """
    target, given = flatten(params), flatten(source)
    problems = [f"{name}: not in the trained model" for name in target.keys() - given.keys()]
    problems = [p for p in problems if not p.startswith("predictor/")]
    problems += [f"{name}: only in the trained model" for name in given.keys() - target.keys()]
    problems += [
        f"{name}: {given[name].shape} in the trained model, {target[name].shape} here"
        for name in target.keys() & given.keys()
        if given[name].shape != target[name].shape
    ]
    if problems:
        raise ValueError("the trained model does not fit this one:\n  " + "\n  ".join(sorted(problems)))
    return unflatten({**target, **given})
