"""What a run directory says of itself: whether it is finished, and which configuration may go on with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etils import epath

from i3d_jax import files, hosts
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import Experiment, ExperimentConfig, load_saved_config, save_config, to_dict
from i3d_jax.family import members
from i3d_jax.inference.bundle_files import holds
from i3d_jax.progress import log
from i3d_jax.training.loop import TrainingDiverged
from i3d_jax.training.recovery import steps_in
from i3d_jax.validation import flatten


def is_finished(workdir: epath.Path) -> bool:
    """Whether the run holds a final model."""
    return holds(workdir / "model") is not None


def family_of(workdir: epath.Path) -> epath.Path | None:
    """The folder of the family that a run is a member of, if it is one."""
    saved = workdir.parent / "config.json"
    if not saved.exists():
        return None
    try:
        family = members(load_saved_config(saved), workdir.parent)
    except ValueError:  # not ours, or damaged
        return None
    return workdir.parent if len(family) > 1 and workdir in {member.folder for member in family} else None


# Candidates are ranked by it: scores of one kind mean nothing beside those of the other.
_NEVER_CHANGED = "training.best_by"


def claim(config: Experiment, workdir: epath.Path, accept_changes: bool) -> None:
    """Compares the configuration with that of the run in the folder, and writes it there.

    Settings that were accepted are written (`save_inputs`) when everything else was found to fit them.

    Raises:
      ValueError: the folder holds a run of other settings, which are named.
    """
    if (family := family_of(workdir)) is not None:
        raise ValueError(
            f"{workdir} is a member of the family in {family}, which trains it: give --workdir={family} with the "
            "family's settings to go on with it, or choose another --workdir"
        )
    saved = workdir / "config.json"
    tokenizer_path = workdir / "tokenizer.model"  # written once the data was found good: until then settings may change
    begun = tokenizer_path.exists() or steps_in(workdir / "checkpoints")
    if saved.exists() and begun and (different := _differences(theirs := _saved(saved, config), config)):
        folders = run_folders(config, workdir)
        others = folders != run_folders(theirs, workdir)
        finished = any(map(is_finished, folders))
        if finished or others or _NEVER_CHANGED in different:
            changed = "members of the family" if others else _NEVER_CHANGED
            why = "is finished" if finished else f"cannot go on with other {changed}"
            raise ValueError(
                f"{workdir} {why} and holds a run with other settings: {different}; choose another --workdir"
            )
        if not accept_changes:
            raise ValueError(
                f"{workdir} holds a run with other settings: {different}; choose another --workdir, repeat those "
                "settings, or give --accept-changes to go on with these"
            )
        log(f"{workdir} goes on with other settings: {different}")
        return
    if saved.exists() or not begun:  # one that was lost is written when these settings were found to fit
        save_config(config, saved)


def run_folders(config: Experiment, workdir: epath.Path) -> list[epath.Path]:
    """Folders of the models that a training makes: those of the members of a family, or its own."""
    return [member.folder for member in members(config, workdir)] if isinstance(config, ExperimentConfig) else [workdir]


def _saved(path: epath.Path, wanted: Experiment) -> Experiment:
    """The configuration of a run of the same kind."""
    if isinstance(wanted, ExperimentConfig):
        return load_saved_config(path)
    return load_saved_config(path, type(wanted))


# What changes how fast a run is made and what is kept of it, not what is made: a run may be resumed with others.
_FREE = (
    "batching.num_threads",
    "batching.num_workers",
    "batching.prefetch",
    "batching.device_prefetch",
    "batching.cache_gigabytes",
    "data.cache_dir",
    "training.remat",
    "parallel.",
    "training.keep_",
)


def _differences(saved: Experiment, wanted: Experiment) -> str:
    theirs, ours = flatten(to_dict(saved)), flatten(to_dict(wanted))
    different = sorted(key for key in ours if theirs[key] != ours[key] and not key.startswith(_FREE))
    return ", ".join(f"{key} is {theirs[key]!r} there, {ours[key]!r} wanted" for key in different)


def check_dense(dense: ExperimentConfig, gated: ExperimentConfig, run: epath.Path) -> None:
    """A gated model must hear, spell and attend as the dense one it starts from; shapes are checked by ``warm_start``.

    Raises:
      ValueError: front end, tokenizer, training data or attention heads differ; every field is named.
    """
    theirs, ours = _shared_settings(dense), _shared_settings(gated)
    if dense.model.decoder.num_layers and gated.model.decoder.num_layers and not gated.warm_start.new_decoder:
        key = "model.decoder.num_heads"
        theirs[key], ours[key] = dense.model.decoder.num_heads, gated.model.decoder.num_heads
    different = [
        f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here" for key in ours if theirs.get(key) != ours[key]
    ]
    if different:
        raise ValueError(
            f"the run {run} was made with other settings:\n  "
            + "\n  ".join(different)
            + "\nuse the same, or another warm_start.run"
        )


def _shared_settings(config: ExperimentConfig) -> dict[str, Any]:
    parts = flatten({part: to_dict(getattr(config, part)) for part in ("frontend", "tokenizer", "data")})
    parts = {key: value for key, value in parts.items() if key not in ("data.test", "data.cache_dir")}
    return parts | {"model.encoder.num_heads": config.model.encoder.num_heads}


@contextmanager
def bad_utterances_kept(workdir: epath.Path) -> Iterator[None]:
    """Writes ``diverged.json``, step -> ids of its utterances, when a training, or a member of it, is given up."""
    try:
        yield
    except TrainingDiverged as error:
        if hosts.is_first():
            files.write_text(workdir / error.run / "diverged.json", json.dumps(error.utterances, indent=1) + "\n")
        raise


def save_inputs(config: Experiment, workdir: epath.Path, tokenizer: Tokenizer) -> None:
    """Writes tokenizer and configuration into a run that was found good to begin or go on."""
    tokenizer.save(workdir / "tokenizer.model")
    save_config(config, workdir / "config.json")
    (workdir / "diverged.json").unlink(missing_ok=True)
