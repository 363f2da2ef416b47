"""Orbax checkpoints of a run: ``checkpoints/`` to resume from, ``best/`` (parameters only) to average."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from i3d_jax.training.step import TrainState


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


class Checkpoints:
    """Checkpoints below a run directory; saving is atomic (Orbax writes aside and renames)."""

    def __init__(self, workdir: str | epath.Path, average_best: int, keep: int = 2):
        """Open, creating the folders if they are missing.

        Args:
          workdir: run directory.
          average_best: candidates kept, lowest score first.
          keep: checkpoints kept for resuming.
        """
        workdir = epath.Path(workdir).absolute() if "://" not in str(workdir) else epath.Path(workdir)
        options = dict(create=True, enable_async_checkpointing=False)
        self._resume = ocp.CheckpointManager(
            workdir / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=keep, **options)
        )
        self._best = ocp.CheckpointManager(
            workdir / "best",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=average_best,
                best_fn=lambda metrics: metrics["score"],
                best_mode="min",
                keep_checkpoints_without_metrics=False,
                **options,
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._resume.latest_step()

    def save(self, state: TrainState) -> None:
        """Save for resuming; a checkpoint of the same step is kept as it is."""
        step = int(state.step)
        if step not in self._resume.all_steps():
            self._resume.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, template: TrainState) -> TrainState:
        """The newest checkpoint, placed and shaped as ``template``."""
        step = self._resume.latest_step()
        restored = self._resume.restore(step, args=ocp.args.StandardRestore(_abstract(template._asdict())))
        return TrainState(**restored)

    def drop_candidates_after(self, step: int) -> None:
        """Forget candidates of steps that will run again: those beyond the step that a run resumes from."""
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)

    def save_candidate(self, step: int, params: Any, score: float) -> None:
        """Offer parameters; the ``average_best`` of the lowest scores are kept (of equals, the later)."""
        self._best.save(step, args=ocp.args.StandardSave(params), metrics={"score": score})

    def best_steps(self) -> list[int]:
        """Steps held for averaging, ascending."""
        return sorted(self._best.all_steps())

    def average(self, template: Any) -> Any:
        """Mean of the held parameters, in float32.

        Raises:
          FileNotFoundError: nothing was offered yet.
        """
        steps = self.best_steps()
        if not steps:
            raise FileNotFoundError(f"no checkpoint with a dev score in {self._best.directory}")
        total = None
        for step in steps:
            params = self._best.restore(step, args=ocp.args.StandardRestore(_abstract(template)))
            total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
        return jax.tree.map(lambda x: x / len(steps), total)

    def close(self) -> None:
        """Release both managers."""
        self._resume.close()
        self._best.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
