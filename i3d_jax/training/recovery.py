"""What of a run's checkpoints can be used again: found before Orbax opens them, the rest is set aside."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from i3d_jax.manifest import NAME, Damaged, check_manifest

Say = Callable[[str], None]

_METADATA = "_CHECKPOINT_METADATA"  # Orbax's


class Interrupted(Damaged):
    """A save was killed before its manifest was written; ``first`` when there was no checkpoint before it."""

    def __init__(self, first: bool):
        super().__init__(f"{NAME} is missing: the save was cut short")
        self.first = first


def origin(previous_step: int | None) -> dict[str, Any]:
    """What Orbax keeps with a checkpoint, so that one without a manifest is known to want one.

    Args:
      previous_step: step of the newest checkpoint before this one.
    """
    return {"manifest": NAME, "previous_step": previous_step}


def steps_in(folder: epath.Path) -> list[int]:
    """Steps that a folder of checkpoints holds, whole or not, ascending."""
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def check_step(folder: epath.Path) -> dict[str, Any] | None:
    """Notes of the manifest of one checkpoint; None when an earlier version of the project made it, without one.

    Raises:
      Interrupted: it was never finished.
      Damaged: a file is missing or differs.
    """
    if (folder / NAME).exists():
        return check_manifest(folder)
    kept = _read_origin(folder)
    if "manifest" in kept:
        raise Interrupted(first=kept.get("previous_step") is None)
    return None


def _read_origin(folder: epath.Path) -> dict[str, Any]:
    """What `origin` kept with a checkpoint; empty when an earlier version of the project made it."""
    try:
        kept = json.loads((folder / _METADATA).read_text())["custom_metadata"] or {}
        if not isinstance(kept, dict):
            raise TypeError
    except FileNotFoundError:
        raise Damaged(f"{_METADATA} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{_METADATA} is not what was written") from None
    return kept


def _came_later(folder: epath.Path) -> bool:
    """Whether a checkpoint says that there was one before it."""
    try:
        return _read_origin(folder).get("previous_step") is not None
    except Damaged:
        return False


def recover_checkpoints(workdir: epath.Path, say: Say, members: Sequence[epath.Path] = ()) -> dict[str, Any] | None:
    """Leave only checkpoints up to the newest good one; newer ones go to ``<workdir>/damaged/``.

    Args:
      workdir: run directory.
      say: told what is damaged, a line each.
      members: folders of the candidates, if it is not the run directory.

    Returns:
      Notes of the newest good one; None without any, or when it has none.

    Raises:
      ValueError: the run has trained, but no checkpoint is good. Nothing was moved.
    """
    folder, bests = workdir / "checkpoints", [member / "best" for member in members or (workdir,)]
    bad: dict[int, Damaged] = {}
    steps = steps_in(folder)
    for step in reversed(steps):
        try:
            notes = check_step(folder / str(step))
        except Damaged as damage:
            bad[step] = damage
            continue
        if notes is None:
            say(f"{folder}: step {step} was saved by an earlier version, without digests; it is used unchecked")
        for newer, why in bad.items():
            place = _set_aside(folder / str(newer), workdir)
            say(f"{folder}: step {newer} is damaged ({why}); set aside as {place}, step {step} is used")
        return notes
    if all(isinstance(damage, Interrupted) and damage.first for damage in bad.values()):
        # Killed within the very first save: nothing was finished before it. A candidate that came after a checkpoint
        # means that there were some, which somebody removed.
        for best in bests:
            if any(_came_later(best / str(step)) for step in steps_in(best)):
                raise ValueError(
                    f"{folder} holds no checkpoint, but {best} has those of steps {steps_in(best)}: put the "
                    f"checkpoints back, delete {best} as well to train from the start, or choose another --workdir"
                )
        for step, why in bad.items():
            place = _set_aside(folder / str(step), workdir)
            say(f"{folder}: step {step} is the first and was not finished ({why}); set aside as {place}")
        return None
    damages = "; ".join(f"step {step}: {why}" for step, why in bad.items())
    raise ValueError(
        f"{folder}: no undamaged checkpoint is left ({damages}): delete {folder} and {' and '.join(map(str, bests))} "
        "to train from the start, "
        "or choose another --workdir"
    )


def recover_candidates(workdir: epath.Path, resumed: int, say: Say) -> None:
    """Set aside damaged candidates up to the step that a run resumes from; later ones are deleted, they run again."""
    folder = workdir / "best"
    unchecked = []
    for step in steps_in(folder):
        if step > resumed:
            (folder / str(step)).rmtree()
            continue
        try:
            if check_step(folder / str(step)) is None:
                unchecked.append(step)
        except Damaged as damage:
            leave_out(workdir, step, damage, say)
    if unchecked:
        say(f"{folder}: steps {unchecked} were saved by an earlier version, without digests; they are used unchecked")


def leave_out(workdir: epath.Path, step: int, damage: Damaged, say: Say) -> None:
    """Set a damaged candidate aside."""
    place = _set_aside(workdir / "best" / str(step), workdir)
    say(f"{workdir / 'best'}: step {step} is damaged ({damage}); set aside as {place}, the final average is without it")


def _set_aside(folder: epath.Path, workdir: epath.Path) -> epath.Path:
    place = workdir / "damaged" / f"{folder.parent.name}-{folder.name}"
    if place.exists():
        place.rmtree()
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    return place
