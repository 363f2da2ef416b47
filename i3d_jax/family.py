"""The members of a family: what each would be as a run of its own, and the table over them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from etils import epath

from i3d_jax import files
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.report import ReportRow, align_columns
from i3d_jax.training.family import FamilyConfig
from i3d_jax.training.warm_start import WarmStartConfig


class FamilyMember(NamedTuple):
    """One training of a family.

    Attributes:
      name: ``seed0-lambda2``; empty for a run alone.
      folder: of its run; that of the family for a run alone.
      config: what makes the same run alone.
    """

    name: str
    folder: epath.Path
    config: ExperimentConfig


def members(config: ExperimentConfig, workdir: epath.Path) -> list[FamilyMember]:
    """Every seed with every lambda, lambdas in the outer order; the run itself where there is only one.

    Args:
      config: of the family.
      workdir: its run directory.
    """
    family, source = config.family, config.warm_start
    weights = family.lambdas or (config.loss.utility_weight,)
    alone = replace(config, family=FamilyConfig(), loss=replace(config.loss, utility_weight=weights[0]))
    if family.size == 1:
        return [FamilyMember("", workdir, alone)]
    dense = source.folder(workdir)
    alone = replace(
        alone,
        batching=replace(config.batching, seed=config.data_seed),
        warm_start=WarmStartConfig() if dense is None else replace(source, run=str(files.absolute(dense)), config=""),
    )
    found = []
    for weight in weights:
        for seed in range(config.seed, config.seed + family.seeds):
            name = f"seed{seed}-lambda{_short(weight)}"
            own = replace(
                alone, name=f"{config.name}-{name}", seed=seed, loss=replace(config.loss, utility_weight=weight)
            )
            found.append(FamilyMember(name, workdir / name, own))
    return found


def _short(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def format_family(family: Sequence[FamilyMember], rows: Sequence[ReportRow]) -> str:
    """WER and executed layers of every model that has rows, one line each; a split is taken in its first execution.

    Args:
      family: the members.
      rows: of their reports, and of the dense model's.
    """
    splits = list(dict.fromkeys(row["split"] for row in rows))
    columns = [f"{split} {what}" for split in splits for what in ("WER", "layers")]
    of_model = {member.config.name: member for member in family}
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = of_model.get(model)
        line = [model, "-", "-"]
        if own is not None:
            line = [own.name, str(own.config.seed), _short(own.config.loss.utility_weight)]
        for split in splits:
            row = next((row for row in rows if (row["model"], row["split"]) == (model, split)), None)
            line += ["-", "-"] if row is None else [f"{row['wer']:.2f}", f"{row['executed_layers']:.2f}"]
        body.append(line)
    return align_columns(["member", "seed", "lambda", *columns], body, [True, *[False] * (2 + len(columns))])
