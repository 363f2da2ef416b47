"""Orbax checkpoints of a run: ``checkpoints/`` to resume from, ``best/`` (parameters only) to average.

Each gets a manifest of digests when it is complete, and is compared with it before use (``manifest.py``).
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from i3d_jax import files, hosts
from i3d_jax.manifest import Damaged, write_manifest
from i3d_jax.training import recovery
from i3d_jax.training.step import TrainState

_UNFINISHED = ".orbax-checkpoint-tmp"


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name: ``params.layers.mha.qkv.kernel``."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))

    return {".".join(map(name, path)): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


class Checkpoints:
    """Checkpoints below a run directory; saving is atomic (Orbax writes aside and renames)."""

    def __init__(self, workdir: str | epath.Path, average_best: int, keep: int = 2, say: Callable[[str], None] = print):
        """Open to train, creating the folders if they are missing.

        Damaged checkpoints and candidates are set aside in ``damaged/``; candidates of steps that will run again,
        those beyond the newest good checkpoint, are deleted.

        Args:
          workdir: run directory.
          average_best: candidates kept, lowest score first.
          keep: checkpoints kept for resuming; two, so that one is good while the other is written.
          say: told what is damaged, a line each.

        Raises:
          ValueError: there are checkpoints, but none is good.
        """
        self._workdir = epath.Path(workdir).absolute() if "://" not in str(workdir) else epath.Path(workdir)
        self._say = say
        self._notes: dict[str, Any] = {}
        self._saved_notes = hosts.first(self._recover)
        options = dict(create=True, enable_async_checkpointing=False)
        self._resume = ocp.CheckpointManager(
            self._workdir / "checkpoints",
            item_handlers=ocp.StandardCheckpointHandler(),  # else the shapes cannot be read before a save or restore
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, **options),
        )
        self._best = ocp.CheckpointManager(
            self._workdir / "best",
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=average_best,
                best_fn=lambda metrics: metrics["score"],
                best_mode="min",
                keep_checkpoints_without_metrics=False,
                **options,
            ),
        )

    def _recover(self) -> dict[str, Any]:
        notes = recovery.recover_checkpoints(self._workdir, self._say) or {}
        newest = max([0, *recovery.steps_in(self._workdir / "checkpoints")])
        recovery.recover_candidates(self._workdir, newest, self._say)
        for name in ("checkpoints", "best"):
            # Not by Orbax: its thread may outlive a short run, and then fails with a traceback.
            for unfinished in (self._workdir / name).glob(f"*{_UNFINISHED}*"):
                unfinished.rmtree()
        return notes

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._resume.latest_step()

    def check(self, params: Any, tokenizer: str) -> None:
        """Compare the newest checkpoint, if any, with the model that is to be trained, reading no parameters.

        Args:
          params: parameters, or their shapes.
          tokenizer: digest of the tokenizer; later checkpoints record it.

        Raises:
          ValueError: it has other parameters or another tokenizer.
        """
        self._notes = {"tokenizer": tokenizer}
        if self.latest_step() is None:
            return
        theirs = self._saved_notes.get("tokenizer", tokenizer)
        if theirs != tokenizer:
            raise ValueError(
                f"{self._workdir / 'tokenizer.model'} is not the one that {self._resume.directory} was trained with: "
                f"its SHA-256 is {tokenizer[:12]}..., expected {theirs[:12]}...; put that one back, delete the file to "
                "have it made again from the same transcripts, or choose another --workdir"
            )
        self._check_shapes({"params": params}, "params.")

    def check_data(self, digest: str, utterances: int) -> None:
        """Compare the training set with that of the newest checkpoint, if any: the plan of the batches depends on it.

        Args:
          digest: of what the plan is made from; later checkpoints record it.
          utterances: how many there are, for the message.

        Raises:
          ValueError: it was trained on others.
        """
        known = self._saved_notes.get("data", {}) if self.latest_step() is not None else {}
        self._notes |= {"data": {"digest": digest, "utterances": utterances}}
        if known and known["digest"] != digest:
            raise ValueError(
                f"{self._resume.directory}: step {self.latest_step()} was trained on other utterances: "
                f"{known['utterances']} there, {utterances} here, or their transcripts or lengths differ; bring the "
                "training set back as it was, or choose another --workdir"
            )

    def _check_shapes(self, template: Any, prefix: str = "") -> None:
        with self._reading():
            metadata = self._resume.item_metadata(self.latest_step())
            if metadata is None:
                raise ValueError("it holds no arrays")
            there = _shapes(metadata.tree)
        there = {name: shape for name, shape in there.items() if name.startswith(prefix)}
        here = _shapes(template)
        # A parameter says more than the moments that the optimiser keeps of it.
        order = sorted(there.keys() | here.keys(), key=lambda name: (not name.startswith("params."), name))
        wrong = [name for name in order if there.get(name) != here.get(name)]
        if wrong:
            first = wrong[0]
            raise ValueError(
                f"{self._resume.directory}: step {self.latest_step()} is of another model: {first} is "
                f"{there.get(first, 'missing')} there, {here.get(first, 'missing')} here ({len(wrong)} arrays differ); "
                "give the settings it was trained with, or choose another --workdir"
            )

    def save(self, state: TrainState) -> None:
        """Save for resuming; a checkpoint of the same step is kept as it is.

        Raises:
          OSError: it cannot be written; those before it are untouched.
        """
        step = int(state.step)
        if step not in self._resume.all_steps():
            self._save(self._resume, step, state._asdict())

    def _save(self, manager: ocp.CheckpointManager, step: int, tree: Any, **options: Any) -> None:
        safe, folder = self.latest_step(), manager.directory
        with _no_traceback_of_orbax():
            try:
                args = ocp.args.StandardSave(tree)
                if not manager.save(step, args=args, custom_metadata=recovery.origin(safe), **options):
                    raise RuntimeError(
                        f"{folder}: step {step} was not saved, there are later ones: {manager.all_steps()}"
                    )
                if step in manager.all_steps():  # a candidate can be the worst, and gone again
                    hosts.first(lambda: write_manifest(folder / str(step), self._notes))
            except (OSError, ValueError) as error:  # TensorStore raises ValueError
                if (reason := files.system_error(error)) is None:
                    raise
                for unfinished in (folder / str(step), *folder.glob(f"{step}{_UNFINISHED}*")):
                    _remove(unfinished)
                trained = (
                    f"nothing was saved before it: {files.remedy(reason)} and give the same command again"
                    if safe is None
                    else f"training up to step {safe} is safe in {self._resume.directory}: {files.remedy(reason)} and "
                    "give the same command again to resume"
                )
                raise OSError(f"{folder}: step {step} cannot be saved ({reason.strerror}); {trained}") from error

    def restore(self, template: TrainState) -> TrainState:
        """The newest checkpoint, placed and shaped as ``template``.

        Raises:
          ValueError: it is of another model, or cannot be read.
        """
        self._check_shapes(template._asdict())
        with self._reading():
            args = ocp.args.StandardRestore(_abstract(template._asdict()))
            restored = self._resume.restore(self.latest_step(), args=args)
        return TrainState(**restored)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of one without digests: the readers of damaged bytes raise what they like
            step, first = self.latest_step(), str(error).partition("\n")[0][:200]
            raise ValueError(
                f"{self._resume.directory}: step {step} cannot be read ({first}); delete the folder {step} there to "
                "resume from the one before it"
            ) from error

    def save_candidate(self, step: int, params: Any, score: float) -> None:
        """Offer parameters; the ``average_best`` of the lowest scores are kept (of equals, the later).

        Raises:
          OSError: they cannot be written; what was saved before is untouched.
        """
        self._save(self._best, step, params, metrics={"score": score})

    def best_steps(self) -> list[int]:
        """Steps held for averaging, ascending."""
        return sorted(self._best.all_steps())

    def average(self, template: Any) -> Any:
        """Mean of the held parameters, in float32; damaged ones are set aside.

        Raises:
          FileNotFoundError: nothing was offered yet, or nothing of it is good.
        """
        hosts.first(self._leave_out_damaged)
        self._best.reload()
        steps = self.best_steps()
        if not steps:
            raise FileNotFoundError(f"no checkpoint with a dev score in {self._best.directory}")
        total = None
        for step in steps:
            params = self._best.restore(step, args=ocp.args.StandardRestore(_abstract(template)))
            total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
        return jax.tree.map(lambda x: x / len(steps), total)

    def _leave_out_damaged(self) -> None:
        for step in self.best_steps():
            try:
                recovery.check_step(self._best.directory / str(step))
            except Damaged as damage:
                recovery.leave_out(self._workdir, step, damage, self._say)

    def final(self, last: TrainState) -> tuple[Any, str]:
        """Parameters of the final model, and what they are: the average, or those of ``last`` if none can be made."""
        try:
            average = self.average(last.params)
        except FileNotFoundError as error:
            return last.params, f"parameters of step {int(last.step)}, the last, instead of an average: {error}"
        return average, f"average of steps {self.best_steps()}"

    def close(self) -> None:
        """Release both managers."""
        with ExitStack() as both:
            both.callback(self._best.close)
            both.callback(self._resume.close)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:  # of a failed save's threads; that failure, with its advice, is on its way
            if kind is None:
                raise


def _remove(folder: epath.Path) -> None:
    """Removes a folder into which threads of a failed save may still write; what is left goes at the next opening."""
    for _ in range(10):
        try:
            folder.rmtree(missing_ok=True)
            return
        except OSError:
            time.sleep(0.1)


@contextmanager
def _no_traceback_of_orbax() -> Iterator[None]:
    """Keep Orbax and TensorStore from printing tracebacks of what they raise as well."""
    orbax, tasks, hook = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook

    def quieter(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    orbax.addFilter(_not_an_error)
    # The first write that fails ends the event loop to which the others, in threads of their own, still report, and
    # their folder goes. They may tell after the save, when the training is over: what keeps them quiet stays then.
    tasks.addFilter(_not_an_error)
    sys.unraisablehook = quieter
    try:
        yield
    except BaseException:
        warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)  # those not begun
        orbax.addFilter(_not_of_a_removed_save)
        raise
    else:
        tasks.removeFilter(_not_an_error)
        sys.unraisablehook = hook
    finally:
        orbax.removeFilter(_not_an_error)


def _not_of_a_removed_save(record: logging.LogRecord) -> bool:
    return _UNFINISHED not in record.getMessage()


def _not_an_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
