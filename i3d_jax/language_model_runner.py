"""The training of a language model, from its configuration to its report."""

import json
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.data.batching import BatchPlanner
from i3d_jax.data.sentences import Sentences, iterate_sentences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.folder_lock import FolderLock
from i3d_jax.inference.language_model_bundle import (
    LanguageModelBundle,
    LanguageModelInfo,
    load_language_model,
    save_language_model,
)
from i3d_jax.inference.perplexity import Perplexity, perplexity
from i3d_jax.inference.report import align_columns, report_meta
from i3d_jax.language_model_data import load_pieces, load_sentences
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.model.language_model import LanguageModel
from i3d_jax.progress import log
from i3d_jax.run_folder import bad_utterances_kept, claim, is_finished, save_inputs
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.compiled import CompiledStep
from i3d_jax.training.language_model_step import Seeded, TokenMeter, make_language_model_step
from i3d_jax.training.loop import Run, fit
from i3d_jax.training.optimizer import learning_rate_schedule, make_optimizer
from i3d_jax.training.preemption import Preemption
from i3d_jax.training.profiling import TracedStep
from i3d_jax.training.sharding import Parallel
from i3d_jax.training.step import TrainState, init_state
from i3d_jax.training.summaries import RunLogger


def train_language_model(
    config: LanguageModelExperiment, workdir: epath.Path, accept_changes: bool = False, profile: range | None = None
) -> LanguageModelBundle:
    """Train a language model, or resume it, up to its final model and ``report.json``; a finished run is only loaded.

    Args:
      config: the experiment.
      workdir: run directory.
      accept_changes: go on with a run of other settings, which are named, instead of refusing them.
      profile: steps, counted from 1, of which a trace is written to ``<workdir>/profile``.

    Raises:
      ValueError: the folder holds a run of another configuration or kind, no checkpoint of it is good, another process
        trains there, there are several processes, or the text is bad.
      FileNotFoundError: the recogniser's run or a text file is missing.
      OSError: the folder cannot be written.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{config.name}: a language model is trained by one process, on all of its devices, not by "
            f"{jax.process_count()}; start one, without a coordinator"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    with FolderLock(workdir, say=log):
        claim(config, workdir, accept_changes)
        if is_finished(workdir):
            log(f"{workdir} is finished already{': no steps are traced' if profile else ''}")
            return load_language_model(workdir)
        training = config.training
        with Checkpoints(
            workdir, training.average_best, training.keep_last, training.keep_every_steps, say=log
        ) as checkpoints:
            params, tokenizer, found = _fit(config, workdir, checkpoints, profile)
        bundle = LanguageModelBundle(LanguageModelInfo(config.name, config.model), params, tokenizer)
        report = {"rows": [_row(config.name, found)], "meta": report_meta(seed=config.seed)}
        files.write_text(workdir / "report.json", json.dumps(report, indent=1) + "\n")
        save_language_model(bundle, workdir / "model")  # last: it says that the run is finished
        return load_language_model(workdir)


def format_language_model(workdir: epath.Path) -> str:
    """The table of a finished run's report."""
    titles = ("model", "split", "sentences", "tokens", "words", "perplexity", "per word")
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    body = [
        [
            *(str(row[key]) for key in titles[:5]),
            f"{row['perplexity']:.2f}",
            f"{row['word_perplexity']:.2f}",
        ]
        for row in rows
    ]
    return align_columns(list(titles), body, [True, True, *[False] * 5])


def _row(name: str, found: Perplexity) -> dict[str, Any]:
    counts = {key: getattr(found, key) for key in ("sentences", "tokens", "words")}
    return {"model": name, "split": "dev", **counts, "perplexity": found.token, "word_perplexity": found.word}


def _pieces(config: LanguageModelExperiment, workdir: epath.Path) -> Tokenizer:
    tokenizer, own = load_pieces(config.text), workdir / "tokenizer.model"
    if own.exists() and Tokenizer.load(own).digest != tokenizer.digest:
        raise ValueError(
            f"{own} is not the tokenizer of text.run={config.text.run}: that run has been made again since this one "
            "began; choose another --workdir"
        )
    return tokenizer


def _fit(
    config: LanguageModelExperiment, workdir: epath.Path, checkpoints: Checkpoints, profile: range | None
) -> tuple[Any, Tokenizer, Perplexity]:
    """Parameters of the final model, its tokenizer, and what it is worth on dev."""
    tokenizer = _pieces(config, workdir)
    model = LanguageModel(config.model, tokenizer.vocab_size)
    parallel = Parallel.over_devices(config.parallel, config.batching.batch_multiple)
    checkpoints.check(jax.eval_shape(model.init, jax.random.key(0)), tokenizer.digest)  # before the text is read
    data = load_sentences(config.text, tokenizer)
    checkpoints.check_data(data.train.tokens.digest, len(data.train), "sentences")
    checkpoints.check_dev(data.dev.tokens.digest, len(data.dev), "sentences", config.training.best_by)
    planner = data.train.planner(config.batching, config.seed)
    total_steps = planner.steps_before(config.training.epochs)
    optimizer = make_optimizer(config.optimizer, total_steps)
    state: TrainState = parallel.place(init_state(jax.jit(model.init)(jax.random.key(config.seed)), optimizer))
    log(
        f"{config.name}: {sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.2f} M parameters, "
        f"{total_steps} steps, {len(planner.buckets)} shapes, {100 * planner.padded_fraction():.0f} % padding"
    )
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
        log(f"resumed from step {int(state.step)}")
    save_inputs(config, workdir, tokenizer)
    step = jax.jit(
        make_language_model_step(model, optimizer, config.parallel.accumulate),
        donate_argnums=0,
        out_shardings=parallel.replicated,
    )
    member = parallel.replicate(Seeded(np.array(config.seed % 2**32, np.uint32)))
    evaluate = partial(_evaluate, model, parallel, data.dev, data.dev.planner(config.batching, shuffle=False))
    start = int(state.step)
    with ExitStack() as opened:
        preemption = opened.enter_context(Preemption())
        opened.enter_context(bad_utterances_kept(workdir))
        logger = RunLogger(workdir, total_steps=total_steps, start_step=start + 1 if start else 0)
        opened.enter_context(logger)
        compiled = CompiledStep(step, member, len(planner.buckets), logger.message)
        state = fit(
            state,
            opened.enter_context(TracedStep(compiled, start, profile, workdir / "profile", logger.message)),
            iterate_sentences(data.train, planner, range(start, total_steps), parallel.put_batch),
            planner=planner,
            name_of=data.train.name,
            config=config.training,
            schedule=learning_rate_schedule(config.optimizer, total_steps),
            checkpoints=checkpoints,
            runs=[Run(logger, TokenMeter(), lambda _, params: _metrics(evaluate(params)))],
            stop=preemption.asked,
        )
        params, source = checkpoints.final(state)
        logger.message(f"final model: {source}")
        return parallel.fetch(params), tokenizer, evaluate(params)


def _evaluate(
    model: LanguageModel, parallel: Parallel, dev: Sentences, planner: BatchPlanner, params: Any
) -> Perplexity:
    return perplexity(model, parallel.replicate(params), dev, planner, parallel.put_batch)


def _metrics(found: Perplexity) -> dict[str, float]:
    return {"perplexity": found.token, "word_perplexity": found.word}
