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
    new_decoder: bool = False
    """The attention decoder starts new, whether or not the dense model has one: for a dense model trained with CTC
    alone. Otherwise it is taken from the dense model, which must have one."""

    def folder(self, workdir: epath.Path) -> epath.Path | None:
        """Run directory of the dense model, for a run in ``workdir``; None without a warm start."""
        if not self.run and not self.config:
            return None
        return epath.Path(self.run).expanduser() if self.run else workdir / "dense"


def warm_start(params: Params, source: Params, new_decoder: bool = False) -> Params:
    """Copy every parameter of ``source`` into ``params``; the gate predictor keeps its fresh initialisation.

    So does the attention decoder with ``new_decoder``.

    Args:
      params: freshly initialised parameters of the gated model.
      source: parameters of the trained model.
      new_decoder: whether that of ``source``, if it has one, is left out.

    Raises:
      ValueError: a parameter is missing on either side or has another shape; all of them are named.
    """
    target, given = flatten(params), flatten(source)
    fresh = ("predictor/", "decoder/") if new_decoder else ("predictor/",)
    if new_decoder:
        given = {name: leaf for name, leaf in given.items() if not name.startswith("decoder/")}
    missing = target.keys() - given.keys()
    problems = [f"{name}: not in the trained model" for name in missing if not name.startswith(fresh)]
    problems += [f"{name}: only in the trained model" for name in given.keys() - target.keys()]
    problems += [
        f"{name}: {given[name].shape} in the trained model, {target[name].shape} here"
        for name in target.keys() & given.keys()
        if given[name].shape != target[name].shape
    ]
    if problems:
        raise ValueError("the trained model does not fit this one:\n  " + "\n  ".join(sorted(problems)))
    return unflatten({**target, **given})
