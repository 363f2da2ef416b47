"""Train a recogniser or a language model, evaluate it, and report: ``python train.py --config=configs/demo.py``.

Run again with the same settings to resume; every field of the configuration can be set, ``--seed=1
--optimizer.learning-rate=1e-3``; ``--help`` explains them. ``--family.seeds=3 --family.lambdas=1.0,2.0`` trains six
models in one program, each with its folder in the run directory.
"""

from dataclasses import dataclass, replace

from etils import epath

from i3d_jax import hosts
from i3d_jax.allocator import keep_freed_memory_on_cpu
from i3d_jax.compilation_cache import keep_programs
from i3d_jax.experiment import ExperimentConfig, load_saved_config, parse_experiment, run_program
from i3d_jax.family import format_family, members
from i3d_jax.inference.execution import EXECUTIONS
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.inference.report import Report, format_table, report_meta, write_report
from i3d_jax.language_model_runner import format_language_model, train_language_model
from i3d_jax.progress import log
from i3d_jax.runner import find_dense_run, train, train_family
from i3d_jax.split_evaluation import evaluate_run, load_split, spread
from i3d_jax.training.profiling import parse_steps


@dataclass(frozen=True)
class TrainFlags:
    """Flags of train.py."""

    workdir: str = ""
    """Run directory; empty means ``runs/<name>``."""
    test: bool = True
    """Evaluate on the test split at the end, besides dev; of a language model nothing is tested."""
    accept_changes: bool = False
    """Resume a run with other settings than it began with; they are named. Without, that is an error."""
    profile_steps: str = ""
    """FIRST:LAST: steps, counted as in the log, of which a trace is written to ``<workdir>/profile``."""


def main(argv: list[str]) -> None:
    """Train, evaluate, report."""
    flags, config = parse_experiment(argv, TrainFlags, description=__doc__ or "")
    profile = parse_steps(flags.profile_steps)
    keep_freed_memory_on_cpu()
    hosts.start(config.parallel.coordinator, config.parallel.lost_after_seconds)
    keep_programs()
    workdir = epath.Path(flags.workdir or f"runs/{config.name}").expanduser()
    if not isinstance(config, ExperimentConfig):
        train_language_model(config, workdir, flags.accept_changes, profile)
        log(f"\n{format_language_model(workdir)}\n\nwritten: {workdir}/report.json, {workdir}/model")
        return
    if flags.test:
        with hosts.first_alone("test"):
            load_split(config, "test")  # what is wrong with it is told now, not after the training
    family = members(config, workdir)
    if len(family) > 1:
        models = train_family(config, workdir, flags.accept_changes, profile)
    else:
        models = [train(config, workdir, flags.accept_changes, profile)]
    first = hosts.is_first()
    hosts.finish()
    if not first:
        return
    splits = ("dev", "test") if flags.test else ("dev",)
    before: list[Report] = []
    dense = find_dense_run(config, workdir)
    if dense is not None:
        saved = load_saved_config(dense / "config.json")
        ours = replace(saved, data=replace(config.data, cache_dir=saved.data.cache_dir), evaluation=config.evaluation)
        # On another test set, its own results stay.
        place, tag = (dense, "") if ours == saved else (workdir, "dense-")
        before = [evaluate(load(dense), ours, place, splits, tag)]

    reports = []
    for model, (_, folder, own) in zip(models, family, strict=True):
        reports.append(evaluate(model, own, folder, splits))
        write_report(folder / "report.json", join([*before, reports[-1]], own.seed))
    report = join([*before, *reports], config.seed)
    if len(family) > 1:
        write_report(workdir / "report.json", report)
        log(
            f"\n{format_family(family, report['rows'])}\n\nwritten: {workdir}/report.json, a run folder for each member"
        )
        return
    log(f"\n{format_table(report['rows'])}\n\nwritten: {workdir}/report.json, {workdir}/gates-*.png, {workdir}/eval/")


def evaluate(
    model: Recognizer, config: ExperimentConfig, run: epath.Path, splits: tuple[str, ...], tag: str = ""
) -> Report:
    """Evaluate a final model, on test in every execution; ``tag`` leads the names of what is written."""
    recognizer = spread(model)
    report = Report(rows=[], gates={}, meta={})
    for split in splits:
        executions = EXECUTIONS if split == "test" else EXECUTIONS[:1]
        rows, stats = evaluate_run(recognizer, config, run, split, executions, tag=tag)
        report["rows"] += rows
        report["gates"][f"{recognizer.config.name}/{split}"] = stats.to_dict()
        if config.model.gates.predictor != "none" and stats.is_static:
            log(f"{recognizer.config.name} is static on {split}: its gates are the same for every utterance")
    return report


def join(reports: list[Report], seed: int) -> Report:
    """Several reports as one."""
    return Report(
        rows=[row for report in reports for row in report["rows"]],
        gates={name: gates for report in reports for name, gates in report["gates"].items()},
        meta=report_meta(seed=seed),
    )


if __name__ == "__main__":
    run_program(main)
