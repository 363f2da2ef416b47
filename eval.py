"""Evaluate a trained run: ``python eval.py RUN --split=test --execution=conditional --threshold=0.5``.

Writes hypotheses, references (``.trn``), each utterance's gates (JSONL) and ``report.json`` into ``RUN/eval/``.
``python eval.py RUN --split=dev --sweep-threshold`` evaluates a gated run over thresholds instead, ``--sweep-budget``
over compute budgets.
"""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from typing import Annotated

import tyro
from etils import epath

from i3d_jax.analysis.sweep import format_sweep
from i3d_jax.budget_sweep import sweep_budgets
from i3d_jax.experiment import load_saved_config, parse_flags, run_program
from i3d_jax.inference.decoding_config import GREEDY, DecoderName, DecodingConfig
from i3d_jax.inference.execution import Execution
from i3d_jax.inference.pattern import read_pattern
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.report import format_table
from i3d_jax.inference.scoring import compare
from i3d_jax.progress import log
from i3d_jax.split_evaluation import evaluate_run, evaluation_folder, split_name, spread
from i3d_jax.threshold_sweep import sweep_file, sweep_run
from i3d_jax.validation import validate_config


@dataclass(frozen=True)
class EvalFlags:
    """Flags of eval.py."""

    run: Annotated[str, tyro.conf.Positional]
    """Run directory made by train.py."""
    split: str = "test"
    """``train``, ``dev``, ``test``, or any split written as in ``data.train``."""
    execution: Execution | None = None
    """``masked`` computes every block, the others skip: ``compacted`` for each utterance of a batch, ``conditional``
    what no utterance of a batch wants, ``eager`` at batch 1. Default: the fastest (docs/speed.md)."""
    threshold: float | None = None
    """beta: a block is executed where p(execute) > beta; default: the model's own."""
    data: str = ""
    """Another corpus than the run's, written as ``data.source``."""
    max_seconds: float | None = None
    """Longest utterance that is evaluated; default: ``evaluation.max_seconds`` of the run."""
    against: str = ""
    """Folder of another evaluation of the same utterances (``<run>/eval/<...>``): prints the difference in WER with its
    paired-bootstrap interval."""
    sweep_threshold: tuple[float, ...] | None = None
    """Evaluate these thresholds, ``--sweep-threshold=0.3,0.5``, with the execution ``compacted``; without values they
    are chosen, on dev from the observed gates, on other splits those of the dev sweep. Writes a table and a figure,
    ``RUN/eval/sweep-<split>.{json,png}``."""
    budget: float | None = None
    """Share of the FLOPs of all gated blocks, 0 to 1, instead of a threshold: for a global predictor a bound for each
    utterance, for local ones an average, which ``--split=dev --sweep-budget`` calibrates."""
    pattern: str = ""
    """Pattern file (docs/controls.md) whose blocks are executed for every utterance, whatever the gates say; excludes
    thresholds, budgets and sweeps."""
    decoder: DecoderName = "greedy"
    """``greedy``; ``prefix_beam``: prefix beam search, alone or with a language model (docs/decoding.md); of a model
    with an attention decoder ``attention``, or ``joint`` with CTC prefix scores (docs/aed.md)."""
    beam: int | None = None
    """Prefixes or hypotheses that a decoder other than ``greedy`` keeps; default: 10."""
    n_best: int | None = None
    """Texts with their scores that are written for each utterance, ``alternatives`` of ``utterances.jsonl``; at most
    the beam."""
    tokens_per_frame: int | None = None
    """Most probable tokens of a frame by which ``prefix_beam`` extends a prefix; default: 40. Fewer are quicker, above
    all with an n-gram model or a lexicon."""
    ctc_weight: float | None = None
    """Weight of the CTC prefix scores of ``--decoder=joint``; default: 0.3."""
    length_bonus: float | None = None
    """Added for each token by ``attention`` and ``joint``; default: 0."""
    max_length_ratio: float | None = None
    """Greatest number of tokens of ``attention`` and ``joint`` for each encoder frame (40 ms); default: 1."""
    lm: str = ""
    """Language model of a beam search: an ARPA file of words or of the tokenizer's pieces (``python -m
    i3d_jax.cli.ngram`` writes one), for ``prefix_beam``; or the folder of a run of ``configs/lm_*.py``, for any."""
    lm_weight: float | None = None
    """Weight of the language model; default: 0.5. ``python -m i3d_jax.cli.tune_decoder`` finds better
    weights."""
    word_score: float | None = None
    """Added for each word, with a language model, which by itself prefers short texts, or a lexicon; default: 0."""
    lexicon: str = ""
    """Text file, a word a line: ``prefix_beam`` gives these words only. Further columns are passed over."""
    sweep_budget: tuple[float, ...] | None = None
    """Evaluate these budgets, ``--sweep-budget=0.4,0.6``; without values 0.3 to 1.0. Writes
    ``RUN/eval/budget-<split>.{json,png}``."""


def main(argv: list[str]) -> None:
    """Evaluate and print a table."""
    flags = parse_flags(argv, EvalFlags, description=__doc__ or "")
    run = epath.Path(flags.run).expanduser()
    decoder = _decoder(flags)
    recognizer = spread(load(run)).with_decoder(decoder)
    config = load_saved_config(run / "config.json")
    if flags.data:
        config = replace(config, data=replace(config.data, source=flags.data))
    if flags.max_seconds is not None:
        config = replace(config, evaluation=replace(config.evaluation, max_seconds=flags.max_seconds))
    validate_config(config)
    split = split_name(config, flags.split)
    tag = _tag(flags.data) if flags.data else ""
    against = epath.Path(flags.against).expanduser() if flags.against else None
    pattern = None
    if flags.pattern:
        given = (flags.threshold, flags.budget, flags.sweep_threshold, flags.sweep_budget)
        if any(option is not None for option in given):
            raise ValueError(f"--pattern={flags.pattern} fixes the gates: leave out thresholds, budgets and sweeps")
        layers, names = config.model.encoder.num_layers, recognizer.gate_names
        pattern = read_pattern(epath.Path(flags.pattern).expanduser(), layers, names)
    sweeps = [option is not None for option in (flags.sweep_threshold, flags.sweep_budget)]
    if any(sweeps):
        if decoder != GREEDY:
            raise ValueError(f"a sweep decodes greedily: leave out --decoder={flags.decoder}")
        if all(sweeps) or (flags.threshold, flags.budget, flags.execution) != (None, None, None):
            raise ValueError("a sweep sets threshold or budget, and the execution: leave out the options for one")
        if flags.sweep_threshold is not None:
            sweep = sweep_run(recognizer, config, run, split, flags.sweep_threshold, against, tag)
            table = sweep_file(run, split, tag)
        else:
            sweep = sweep_budgets(recognizer, config, run, split, flags.sweep_budget or (), against, tag)
            table = sweep_file(run, split, tag, "budget")
        log(f"\n{format_sweep(sweep)}\n\nwritten: {table}, {table.with_suffix('.png')}")
        return
    # A pattern skips in dense models too, of which the fastest execution otherwise skips nothing.
    execution = flags.execution or ("compacted" if pattern else recognizer.best_execution(rows=2))
    folder = evaluation_folder(run, split, execution, flags.threshold, flags.budget, tag, pattern, decoder)
    if against is not None and against.resolve() == folder.resolve():
        raise ValueError(f"--against={flags.against}: this evaluation is written there; name another one")
    rows, stats = evaluate_run(
        recognizer, config, run, split, (execution,), flags.threshold, flags.budget, tag, against, pattern
    )
    blocks = ", ".join(f"{name} {count:.2f}" for name, count in stats.executed_blocks.items())
    log(f"\n{format_table(rows)}\n\nexecuted blocks: {blocks}; distinct gate patterns: {stats.distinct_patterns}")
    if config.model.gates.predictor != "none" and pattern is None and stats.is_static:
        log("static: the gates are the same for every utterance")
    if against is not None:
        difference = compare(folder, against)
        low, high = difference.interval
        log(
            f"WER minus that of {flags.against}: {difference.difference:+.2f} points, "
            f"95 % paired-bootstrap interval {low:+.2f} to {high:+.2f}, "
            f"fewer errors in {100 * difference.probability_a_better:.0f} % of the resamples"
        )


def _decoder(flags: EvalFlags) -> DecodingConfig:
    """The decoder that the flags ask for.

    Raises:
      ValueError: a bad value, or options of a decoder or language model that there is none of.
    """
    names = ("lm", "lexicon", "beam", "n_best", "tokens_per_frame", "ctc_weight", "length_bonus", "max_length_ratio",
             "lm_weight", "word_score")  # fmt: skip
    given = {name: value for name in names if (value := getattr(flags, name)) not in (None, "")}
    if flags.decoder == "greedy" and given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{options}: greedy decoding has no such option; add --decoder=prefix_beam, or =joint")
    config = DecodingConfig(flags.decoder, **given)
    for name in given:
        config.check_option(name)  # also of a value that is the default
    return config


def _tag(data: str) -> str:
    """Leads the names of what is made from another corpus: two of one name in different folders stay apart."""
    path = os.path.expanduser(data)
    place = os.path.realpath(path) if os.path.exists(path) else data
    name = re.sub(r"\W+", "_", epath.Path(data).name)
    return f"{name}-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:6]}-"


if __name__ == "__main__":
    run_program(main)
