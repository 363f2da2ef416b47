"""Figures and tables of evaluated runs: ``python -m i3d_jax.cli.analyse runs/demo --split=test --output=figures``.

For each run, from its evaluation on disk: gates (paper, Figs. 5 and 6), speech length for each depth (Fig. 7), depth
against error rate, and a regression of depth on what utterances are like. For all runs together: error rate against
depth (Figs. 2 to 4). ``--audio`` adds the noise level to the regression, ``--pairs`` matched pairs; both read audio.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from etils import epath

from i3d_jax import files
from i3d_jax.analysis import canvas
from i3d_jax.analysis.covariates import explain_gates, noise_levels, utterance_covariates
from i3d_jax.analysis.depth import depth_correlations
from i3d_jax.analysis.depth_plots import draw_depth_and_wer, draw_lengths
from i3d_jax.analysis.drivers_plots import draw_pairs, draw_regressions
from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.analysis.matched_pairs import PairedEffects, matched_pairs
from i3d_jax.analysis.paper_figures import paper_curves
from i3d_jax.analysis.plots import draw_gate_probabilities
from i3d_jax.analysis.regression import Regression
from i3d_jax.analysis.tradeoff import Curve, CurvePoint, make_curve, read_curve
from i3d_jax.analysis.tradeoff_plots import draw_tradeoff
from i3d_jax.analysis.utterances import UtteranceTable, read_evaluation
from i3d_jax.data.corpora import Corpus
from i3d_jax.experiment import load_saved_config, parse_flags, run_program
from i3d_jax.inference.recognizer import load
from i3d_jax.progress import log
from i3d_jax.runs import RunSummary, find_runs, summarize
from i3d_jax.split_evaluation import load_split
from i3d_jax.threshold_sweep import sweep_file

Published = Literal["none", "fig2-clean", "fig2-other", "fig3-clean", "fig3-other", "fig4"]


@dataclass(frozen=True)
class AnalyseFlags:
    """Flags of the analyse command."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("runs",)
    """Evaluated run directories, or folders that hold some."""
    split: str = "test"
    """Split of the evaluations, as eval.py named it."""
    output: str = "analysis"
    """Folder of the figures and tables."""
    curves: tuple[str, ...] = ()
    """Further curves of WER against depth, such as RUN/pruning/block/pruning.json: JSON files with ``points``."""
    paper: Published = "none"
    """Published curves behind the trade-off figure."""
    audio: bool = False
    """Estimate the noise level of every utterance for the regression; reads the split's audio."""
    pairs: int = 0
    """Utterances recognised again with added noise, other speeds, silence and another level; 0 for none."""


def main(argv: list[str]) -> None:
    """Write everything."""
    flags = parse_flags(argv, AnalyseFlags, description=__doc__ or "")
    if flags.pairs < 0 or flags.pairs == 1:
        raise ValueError(f"--pairs={flags.pairs}: expected 0, or 2 and more")
    further = [read_curve(epath.Path(path).expanduser()) for path in flags.curves]  # before any work: may be refused
    runs = [run for folder in find_runs(flags.runs) if (run := summarize(folder)).evaluation(flags.split) is not None]
    if not runs:
        raise ValueError(
            f"none of {', '.join(flags.runs)} has an evaluation of {flags.split} at its own threshold; make one with "
            f"python eval.py RUN --split={flags.split}"
        )
    output = epath.Path(flags.output).expanduser()
    names = _short_names(runs)
    curves = [*tradeoff_curves(runs, names, flags.split), *further]
    background = () if flags.paper == "none" else paper_curves(flags.paper)
    # Before the work of the runs: it refuses more curves than can be told apart.
    tradeoff = draw_tradeoff(curves, f"WER against depth, {flags.split}", background=background)
    tables: dict[str, Any] = {}
    texts = [f"# Analysis, {flags.split}\n"]
    for run, name in zip(runs, names, strict=True):
        table = read_evaluation(run.evaluation(flags.split).folder)  # type: ignore[union-attr]
        if run.settings["model.gates.predictor"] == "none":
            log(f"{run.path}: a dense model, part of the trade-off figure only")
            continue
        log(f"{run.path}: {len(table)} utterances")
        found, text = analyse_run(run, name, table, flags, output)
        tables[name] = found
        texts.append(text)
    canvas.save(tradeoff, output / "tradeoff.png")
    texts.append(_curve_text(curves))
    written = {"split": flags.split, "runs": tables, "curves": [asdict(curve) for curve in curves]}
    files.write_text(
        output / "tables.json", json.dumps(written, indent=2, allow_nan=False, default=files.json_default) + "\n"
    )
    text = "\n".join(texts)
    files.write_text(output / "tables.md", text)
    print(text)
    log(f"figures and tables are in {output}")


def analyse_run(
    run: RunSummary, name: str, table: UtteranceTable, flags: AnalyseFlags, output: epath.Path
) -> tuple[dict[str, Any], str]:
    """Writes the figures of one gated run, and returns its tables as JSON-able values and as Markdown."""
    title = f"{name}, {flags.split}"
    stem = re.sub(r"[^\w.-]+", "_", name)
    stats = gate_statistics(table.gates, table.probabilities, table.gate_names)
    threshold = float(run.settings["model.gates.threshold"])
    correlations = depth_correlations(table)
    figures = {
        "gates": draw_gate_probabilities(stats, title, threshold=threshold),
        "length": draw_lengths(table, title, correlations),
        "depth_wer": draw_depth_and_wer(table, title, correlations),
    }
    corpus = _corpus(run, flags.split, table) if flags.audio or flags.pairs else None
    snr = noise_levels(corpus) if flags.audio and corpus is not None else None
    regressions = explain_gates(table, utterance_covariates(table, snr))
    if fitted := {key: one for key, one in regressions.items() if isinstance(one, Regression)}:
        figures["regression"] = draw_regressions(fitted, title)
    effects: list[PairedEffects] = []
    if flags.pairs and corpus is not None:
        recognizer = load(run.path)
        effects = matched_pairs(recognizer, corpus, recognizer.decision(), utterances=flags.pairs)
        figures["pairs"] = draw_pairs(effects, title)
    for kind, figure in figures.items():
        canvas.save(figure, output / f"{kind}-{stem}.png")
    found = {
        "evaluation": run.evaluation(flags.split).folder.name,  # type: ignore[union-attr]
        "utterances": len(table),
        "gates": stats.to_dict(),
        "correlations": {key: asdict(one) for key, one in correlations.items()},
        "regressions": {key: one if isinstance(one, str) else asdict(one) for key, one in regressions.items()},
        "pairs": [asdict(one) for one in effects],
    }
    depth = [["executed layers, mean", f"{stats.executed_layers_mean:.2f}", ""]]
    depth.append(["executed layers, standard deviation", f"{stats.executed_layers_std:.2f}", ""])
    depth.append(["different gate patterns", str(stats.distinct_patterns), "static" if stats.is_static else ""])
    for key, one in correlations.items():
        depth.append([f"Spearman, {key}", _number(one.rho), _bounds(one.interval)])
    parts = [f"## {name}\n", _markdown(["depth", "", "95 % interval"], depth)]
    effect_rows = []
    for key, fit in regressions.items():
        if isinstance(fit, str):
            parts.append(f"\nNo regression: {fit}.")
            continue
        share = f"R² {fit.r_squared:.2f}, speakers alone {fit.r_squared_groups:.2f}"
        for quantity, c in fit.coefficients.items():
            effect_rows.append([key, quantity, _number(c.standardised), _bounds(c.interval), f"{c.slope:+.3g}", share])
    if effect_rows:
        header = ["target", "quantity", "standardised", "95 % interval", "slope", "explained"]
        parts += ["", _markdown(header, effect_rows)]
    if effects:
        header = ["change", "executed layers", "95 %", "sum of p / M", "95 %", "WER (points)", "95 %", "flipped gates"]
        rows = []
        for e in effects:
            pairs = (e.executed_layers, e.expected_layers, e.wer)
            cells = [cell for one in pairs for cell in (_number(one.mean, 3), _bounds(one.interval, 3))]
            rows.append([e.change, *cells, f"{100 * e.flipped_gates:.1f} %"])
        parts += ["", _markdown(header, rows)]
    return found, "\n".join(parts) + "\n"


def tradeoff_curves(runs: Sequence[RunSummary], names: Sequence[str], split: str) -> list[Curve]:
    """Everything on disk that says how error rate goes with depth.

    One curve for each sweep in ``<run>/eval/``, and one over runs: for each kind of gate predictor
    the plain evaluations of all its runs, which differ in lambda or depth.
    """
    curves: list[Curve] = []
    plain: dict[str, list[CurvePoint]] = {}
    deepest: dict[str, int] = {}
    for run, name in zip(runs, names, strict=True):
        one = run.evaluation(split)
        assert one is not None
        predictor = str(run.settings["model.gates.predictor"])
        bounds, flops = _details(one.folder)
        plain.setdefault(predictor, []).append(CurvePoint(one.executed_layers, one.wer, bounds, flops))
        layers = int(run.settings["model.encoder.num_layers"])
        deepest[predictor] = max(layers, deepest.get(predictor, 0))
        for kind, label in (("sweep", "threshold"), ("budget", "budget")):
            if (file := sweep_file(run.path, split, kind=kind)).exists():
                curves.append(read_curve(file, f"{name}, {label}"))
    titles = {"none": "dense", "local": "local gates, runs", "global": "global gates, runs"}
    return [*(make_curve(titles[p], points, deepest[p]) for p, points in plain.items()), *curves]


def _details(folder: epath.Path) -> tuple[tuple[float, float] | None, float | None]:
    """Interval of the WER and GFLOP per second of audio in the report of an evaluation."""
    report = json.loads((folder / "report.json").read_text())
    bounds = report.get("meta", {}).get("score", {}).get("wer_interval")
    flops = report["rows"][0].get("gflops_per_second")
    return None if bounds is None else (float(bounds[0]), float(bounds[1])), flops


def _corpus(run: RunSummary, split: str, table: UtteranceTable) -> Corpus:
    corpus = load_split(load_saved_config(run.path / "config.json"), split)
    if [u.id for u in corpus.utterances] != list(table.ids):
        raise ValueError(
            f"{run.path}: the split {split} has other utterances than its evaluation; make that again with eval.py"
        )
    return corpus


def _short_names(runs: Sequence[RunSummary]) -> list[str]:
    """The ends of the runs' paths, as long as it takes to tell them apart."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


def _curve_text(curves: Sequence[Curve]) -> str:
    rows = [
        [curve.label, f"{p.executed_layers:.2f}", f"{p.wer:.2f}", _bounds(p.wer_interval, sign="")]
        for curve in curves
        for p in curve.points
    ]
    return "## WER against depth\n\n" + _markdown(["curve", "executed layers", "WER (%)", "95 % interval"], rows) + "\n"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:+.{digits}f}"


def _bounds(bounds: tuple[float, float] | None, digits: int = 2, sign: str = "+") -> str:
    return "-" if bounds is None else f"{bounds[0]:{sign}.{digits}f} to {bounds[1]:{sign}.{digits}f}"


if __name__ == "__main__":
    run_program(main)
