"""A run from its configuration: prepare the data, train."""

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from etils import epath

from i3d_jax import hosts
from i3d_jax.audio.frontend import GlobalStats
from i3d_jax.data.loader import iterate_batches
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.dev_evaluation import dev_metrics
from i3d_jax.experiment import ExperimentConfig, find_config, load_config, load_saved_config
from i3d_jax.family import FamilyMember, members
from i3d_jax.folder_lock import FolderLock
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.model.asr import ASRModel
from i3d_jax.programs import jit_train_step, member_of
from i3d_jax.progress import log
from i3d_jax.run_folder import bad_utterances_kept, check_dense, claim, is_finished, save_inputs
from i3d_jax.training.checkpoint import Checkpoints
from i3d_jax.training.compiled import CompiledStep
from i3d_jax.training.family import FamilyConfig, Stacked
from i3d_jax.training.hardware import peak_flops
from i3d_jax.training.loop import Run, fit
from i3d_jax.training.meter import Meter, step_flops
from i3d_jax.training.optimizer import learning_rate_schedule, make_optimizer
from i3d_jax.training.preemption import Preemption
from i3d_jax.training.profiling import TracedStep
from i3d_jax.training.sharding import Parallel
from i3d_jax.training.summaries import RunLogger, SilentLogger
from i3d_jax.training.warm_start import warm_start
from i3d_jax.training_data import global_stats, prepare_data


def find_dense_run(config: ExperimentConfig, workdir: epath.Path) -> epath.Path | None:
    """Folder of the dense run that the gated model starts from; None without a warm start."""
    return config.warm_start.folder(workdir)


def dense_model(config: ExperimentConfig, workdir: epath.Path, accept_changes: bool = False) -> Recognizer | None:
    """The trained dense model to start from, training it first if the configuration says how.

    ``accept_changes`` is for a dense run that was begun with other settings.

    Raises:
      FileNotFoundError: the run is not there and no configuration makes it.
      ValueError: the run hears or spells differently.
    """
    run = find_dense_run(config, workdir)
    if run is None:
        return None
    if not hosts.first(lambda: is_finished(run)):
        if not config.warm_start.config:
            raise FileNotFoundError(
                f"warm_start.run={run}: no finished run there; train it first or set warm_start.config"
            )
        dense = load_config(find_config(config.warm_start.config))
        shared = ("seed", "data", "tokenizer", "frontend", "parallel")
        dense = replace(dense, **{name: getattr(config, name) for name in shared}, family=FamilyConfig())
        check_dense(dense, config, run)
        log(f"== dense model first: {dense.name} in {run}")
        return train(dense, run, accept_changes)
    check_dense(load_saved_config(run / "config.json"), config, run)
    return load(run)


def train(
    config: ExperimentConfig, workdir: epath.Path, accept_changes: bool = False, profile: range | None = None
) -> Recognizer:
    """Train a run, or resume it, up to its final model; a finished run is only loaded.

    Args:
      config: the experiment.
      workdir: run directory.
      accept_changes: go on with a run of other settings, which are named, instead of refusing them.
      profile: steps, counted from 1, of which the first process writes a trace to ``<workdir>/profile``.

    Raises:
      ValueError: the folder holds a run of another configuration, model or tokenizer, no checkpoint of it is good,
        another process trains there, or the configuration is of several members.
      OSError: the folder cannot be written, or one of several processes that train together was lost.
    """
    if config.family.size > 1:
        raise ValueError(f"{config.name} is a family of {config.family.size}: train_family trains it")
    (model,) = train_family(config, workdir, accept_changes, profile)
    return model


def train_family(
    config: ExperimentConfig, workdir: epath.Path, accept_changes: bool = False, profile: range | None = None
) -> list[Recognizer]:
    """As `train`, of all members of a family in one program; a run alone is a family of one.

    Returns:
      Final models in the order of `members`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held, hosts.lost_process_named(workdir):
        hosts.first(lambda: _lock({workdir, *(member.folder for member in members(config, workdir))}, held))
        return _train(config, workdir, accept_changes, profile)


def _lock(folders: set[epath.Path], held: ExitStack) -> None:
    for folder in sorted(folders):
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(FolderLock(folder, say=log))


def _train(
    config: ExperimentConfig, workdir: epath.Path, accept_changes: bool, profile: range | None
) -> list[Recognizer]:
    family = members(config, workdir)
    if len(family) == 1:
        config = family[0].config
    hosts.check_same({"the configuration": hashlib.sha256(repr(config).encode()).hexdigest()})
    hosts.first(lambda: claim(config, workdir, accept_changes))
    folders = [member.folder for member in family]
    if hosts.first(lambda: all(map(is_finished, folders))):
        log(f"{workdir} is finished already{': no steps are traced' if profile else ''}")
        return [load(folder) for folder in folders]
    dense = dense_model(config, workdir, accept_changes)
    training, traced = config.training, profile if hosts.is_first() else None
    with Checkpoints(
        workdir, training.average_best, training.keep_last, training.keep_every_steps, say=log, members=folders
    ) as checkpoints:
        models = _fit(config, workdir, family, dense, checkpoints, traced)
    for model, folder in zip(models, folders, strict=True):
        hosts.first(lambda: model.save(folder / "model"))  # noqa: B023
    return [load(folder) for folder in folders]


def _check_start(
    config: ExperimentConfig, tokenizer: Tokenizer, dense: Recognizer | None, checkpoints: Checkpoints, stacked: Stacked
) -> None:
    """Names what does not fit, from shapes alone.

    Raises:
      ValueError: the checkpoint to resume from, or the dense model to start from, is of another model.
    """
    model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
    params = jax.eval_shape(model.init, jax.random.key(config.seed))
    checkpoints.check(jax.eval_shape(stacked.join, [params] * stacked.count), tokenizer.digest)
    if dense:
        try:
            warm_start(params, dense.params, config.warm_start.new_decoder)
        except ValueError as error:
            remedy = (
                "give model.encoder, model.subsampling and model.decoder the values of that run, or choose another "
                "warm_start.run; warm_start.new_decoder=True leaves its decoder out"
            )
            raise ValueError(f"warm start from {dense.config.name}: {error}\n{remedy}") from error


def _fit(
    config: ExperimentConfig,
    workdir: epath.Path,
    family: list[FamilyMember],
    dense: Recognizer | None,
    checkpoints: Checkpoints,
    profile: range | None,
) -> list[Recognizer]:
    stacked = Stacked(len(family))
    tokenizer_path = workdir / "tokenizer.model"
    tokenizer = dense.tokenizer if dense else Tokenizer.load(tokenizer_path) if tokenizer_path.exists() else None
    if tokenizer:
        _check_start(config, tokenizer, dense, checkpoints, stacked)  # before the data is read
    with hosts.first_alone("data"):  # the others find in the cache what the first one verified
        data = prepare_data(config, tokenizer)
    digest = data.digest()
    hosts.check_same({"the tokenizer": data.tokenizer.digest, "the training set": digest})
    _check_start(config, data.tokenizer, dense, checkpoints, stacked)
    checkpoints.check_data(digest, len(data.train))
    stats = dense.stats if dense else None
    if config.frontend.normalization == "global" and stats is None:
        # Of the first process for all: another order of summation would be another training.
        found = hosts.first(lambda: [np.asarray(x).tolist() for x in global_stats(config, data.train)])
        stats = GlobalStats(*(np.asarray(x, np.float32) for x in found))

    model = ASRModel(config.model, config.frontend.num_mels, data.tokenizer.vocab_size)
    total_steps = data.planner.steps_before(config.training.epochs)
    optimizer = make_optimizer(config.optimizer, total_steps, config.training.trainable)
    parallel = Parallel.over_devices(config.parallel, config.batching.batch_multiple)
    init = jax.jit(model.init)
    start_params = [init(jax.random.key(member.config.seed)) for member in family]
    if dense:
        if config.warm_start.new_decoder:
            log(f"{dense.config.name} gives everything but the attention decoder, which starts new")
        start_params = [warm_start(params, dense.params, config.warm_start.new_decoder) for params in start_params]
    state = parallel.place(stacked.init_state(start_params, optimizer))
    step = jit_train_step(config, model, optimizer, stats, parallel, state, total_steps)
    arguments = parallel.replicate(stacked.join([member_of(member.config) for member in family]))

    count = sum(leaf.size for leaf in jax.tree.leaves(start_params[0]))
    del start_params
    log(
        f"{config.name}: {count / 1e6:.2f} M parameters{f' x {stacked.count} members' if stacked.count > 1 else ''}, "
        f"{total_steps} steps, {len(data.planner.buckets)} shapes, "
        f"{100 * data.planner.padded_fraction():.0f} % padding"
    )
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
        log(f"resumed from step {int(state.step)}")
    for folder, own in ((workdir, config), *((member.folder, member.config) for member in family)):
        hosts.first(lambda: save_inputs(own, folder, data.tokenizer))  # noqa: B023
    start = int(state.step)
    batches = iterate_batches(
        data.train,
        data.labels,
        data.planner,
        range(start, total_steps),
        config=config.batching,
        share=parallel.share(),
        place=parallel.put_batch,
    )
    # Log lines carry the number of steps done: those up to the checkpoint stay.
    logger_class = RunLogger if hosts.is_first() else SilentLogger
    with ExitStack() as opened:
        preemption = opened.enter_context(Preemption())
        opened.enter_context(bad_utterances_kept(workdir))
        # The heads of self-conditioned layers are counted with what they add.
        heads = 1 + len(set(config.loss.interctc_layers) - set(config.model.self_conditioned_layers))
        counts = data.labels.counts
        flops = step_flops(model, config.frontend, data.train, counts, heads, config.training.trainable)
        peak = peak_flops(jax.devices())
        models = [
            Recognizer(
                RecognizerConfig(
                    own.name, own.data.sample_rate, own.frontend, own.model, window_seconds=data.window_seconds
                ),
                {},
                data.tokenizer,
                stats,
            )
            for _, _, own in family
        ]
        runs: list[Run] = []
        for member in family:
            logger = logger_class(
                member.folder,
                total_steps=total_steps,
                start_step=start + 1 if start else 0,
                name=member.name,
                leader=runs[0].logger if runs else None,
            )
            opened.enter_context(logger)
            evaluate = partial(dev_metrics, member.config, data.dev, models[0], parallel, logger)
            meter = Meter(data.train, lambda planned: stacked.count * flops(planned), peak)
            runs.append(Run(logger, meter, evaluate, member.name))
        say = runs[0].logger.message
        opened.callback(batches.close)
        compiled = CompiledStep(step, arguments, len(data.planner.buckets), say)
        state = fit(
            state,
            opened.enter_context(TracedStep(compiled, start, profile, workdir / "profile", say)),
            batches,
            planner=data.planner,
            name_of=lambda index: data.train.utterances[index].id,
            config=config.training,
            schedule=learning_rate_schedule(config.optimizer, total_steps),
            checkpoints=checkpoints,
            runs=runs,
            stop=preemption.asked,
        )
        for index, (member, recognizer) in enumerate(zip(family, models, strict=True)):
            last = state._replace(params=stacked.part(state.params, index))
            params, source = checkpoints.final(last, index)
            say(f"{member.name + ': ' if member.name else ''}final model: {source}")
            recognizer.params = parallel.fetch(params)
    return models
