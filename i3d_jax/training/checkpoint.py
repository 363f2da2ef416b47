"""Orbax checkpoints of a run: ``checkpoints/`` to resume from, ``best/`` (parameters only) to average.

They are written in the background (``saving.py``). Each gets a manifest of digests when it is complete, and is
compared with it before use (``manifest.py``).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from i3d_jax import files, hosts
from i3d_jax.manifest import Damaged
from i3d_jax.training import recovery
from i3d_jax.training.saving import UNFINISHED, Saver, barrier
from i3d_jax.training.step import TrainState


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name: ``params.layers.mha.qkv.kernel``."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))

    return {".".join(map(name, path)): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


class Checkpoints:
    """Checkpoints below a run directory, saved in the background, each there entirely or not at all."""

    def __init__(
        self,
        workdir: str | epath.Path,
        average_best: int,
        keep_last: int = 2,
        keep_every_steps: int = 0,
        say: Callable[[str], None] = print,
        members: Sequence[epath.Path] = (),
    ):
        """Open to train, creating the folders if they are missing.

        Damaged checkpoints and candidates are set aside in ``damaged/``; candidates of steps that will run again,
        those beyond the newest good checkpoint, are deleted.

        Args:
          workdir: run directory.
          average_best: candidates kept, lowest score first.
          keep_last: newest checkpoints kept for resuming; at least two: one is good while the other is written.
          keep_every_steps: those of its multiples are kept for good; 0 for none.
          say: told what is damaged, a line each.
          members: folders of the candidates of trainings that are saved together; by default that of the run.

        Raises:
          ValueError: there are checkpoints, but none is good.
        """
        self._workdir = files.absolute(workdir)
        self._members = [files.absolute(folder) for folder in members] or [self._workdir]
        self._say = say
        self._notes: dict[str, Any] = {}
        self._saved_notes = hosts.first(self._recover)
        self._resume = _manager(
            self._workdir / "checkpoints", max_to_keep=keep_last, keep_period=keep_every_steps or None
        )
        self._best = [
            _manager(
                folder / "best",
                max_to_keep=average_best,
                best_fn=lambda metrics: metrics["score"],
                best_mode="min",
                keep_checkpoints_without_metrics=False,
            )
            for folder in self._members
        ]
        self._saver = Saver(self._resume)

    def _recover(self) -> dict[str, Any]:
        notes = recovery.recover_checkpoints(self._workdir, self._say, self._members) or {}
        newest = max([0, *recovery.steps_in(self._workdir / "checkpoints")])
        for member in self._members:
            recovery.recover_candidates(member, newest, self._say)
        for folder in (self._workdir / "checkpoints", *(member / "best" for member in self._members)):
            # Not by Orbax: its thread may outlive a short run, and then fails with a traceback.
            for unfinished in folder.glob(f"*{UNFINISHED}*"):
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

    def check_data(self, digest: str, count: int, noun: str = "utterances") -> None:
        """Compare the training set with that of the newest checkpoint, if any: the plan of the batches depends on it.

        Args:
          digest: of what the plan is made from; later checkpoints record it.
          count: how many there are, for the message.
          noun: what they are, for the message.

        Raises:
          ValueError: it was trained on others.
        """
        if known := self._other("data", digest, count, noun):
            raise ValueError(
                f"{self._resume.directory}: step {self.latest_step()} was trained on other {noun}: {known[noun]} "
                f"there, {count} here, or their texts or lengths differ; bring the training set back as it was, or "
                "choose another --workdir"
            )

    def check_dev(self, digest: str, count: int, noun: str, ranked_by: str) -> None:
        """Compare the dev set with that of the newest checkpoint, if any: scores on different ones rank nothing.

        Args:
          digest: of its contents; later checkpoints record it.
          count: how many there are, for the message.
          noun: what they are, for the message.
          ranked_by: ``training.best_by``; by ``latest`` any dev set will do.

        Raises:
          ValueError: candidates were ranked on another one.
        """
        if (known := self._other("dev", digest, count, noun)) and ranked_by != "latest":
            raise ValueError(
                f"{self._resume.directory}: the candidates up to step {self.latest_step()} were ranked by their "
                f"{ranked_by} on other dev {noun}: {known[noun]} there, {count} here, or their texts differ; bring the "
                "dev set back as it was, or choose another --workdir"
            )

    def _other(self, key: str, digest: str, count: int, noun: str) -> dict[str, Any]:
        """What the newest checkpoint notes of a set, if that is another one; later checkpoints note this one."""
        known: dict[str, Any] = self._saved_notes.get(key, {}) if self.latest_step() is not None else {}
        self._notes |= {key: {"digest": digest, noun: count}}
        return known if known and known["digest"] != digest else {}

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
        """Save for resuming, in the background; a checkpoint of the same step is kept as it is.

        Raises:
          OSError: it, or what was saved before it, cannot be written; those before are untouched.
        """
        step = int(state.step)
        if step not in self._resume.all_steps():
            self._saver.start(self._resume, step, state._asdict(), self._notes)

    def wait(self) -> None:
        """Until everything is saved.

        Raises:
          OSError: it cannot be written; what was saved before is untouched.
        """
        self._saver.wait()

    def restore(self, template: TrainState) -> TrainState:
        """The newest checkpoint, placed and shaped as ``template``.

        Raises:
          ValueError: it is of another model, or cannot be read.
        """
        self.wait()
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

    def save_candidate(self, step: int, params: Any, score: float, member: int = 0) -> None:
        """Offer parameters, saved in the background; of equal scores, the later are kept.

        They are complete before the next checkpoint is begun, so that a run resumed from that has them.

        Raises:
          OSError: they, or what was saved before them, cannot be written; those before are untouched.
        """
        self._saver.start(self._best[member], step, params, self._notes, metrics={"score": score})

    def best_steps(self, member: int = 0) -> list[int]:
        """Steps held for averaging, ascending."""
        return sorted(self._best[member].all_steps())

    def average(self, template: Any, member: int = 0) -> Any:
        """Mean of the held parameters, in float32; damaged ones are set aside.

        Raises:
          FileNotFoundError: nothing was offered yet, or nothing of it is good.
        """
        self.wait()
        best = self._best[member]
        hosts.first(lambda: self._leave_out_damaged(member))
        best.reload()
        steps = self.best_steps(member)
        if not steps:
            raise FileNotFoundError(f"no checkpoint with a dev score in {best.directory}")
        total = None
        for step in steps:
            params = best.restore(step, args=ocp.args.StandardRestore(_abstract(template)))
            total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
        return jax.tree.map(lambda x: x / len(steps), total)

    def _leave_out_damaged(self, member: int) -> None:
        for step in self.best_steps(member):
            try:
                recovery.check_step(self._best[member].directory / str(step))
            except Damaged as damage:
                recovery.leave_out(self._members[member], step, damage, self._say)

    def final(self, last: TrainState, member: int = 0) -> tuple[Any, str]:
        """Parameters of the final model, and what they are: the average, or those of ``last`` if none can be made."""
        try:
            average = self.average(last.params, member)
        except FileNotFoundError as error:
            return last.params, f"parameters of step {int(last.step)}, the last, instead of an average: {error}"
        return average, f"average of steps {self.best_steps(member)}"

    def close(self) -> None:
        """Wait until everything is saved, and release the managers.

        Raises:
          OSError: it cannot be written; what was saved before is untouched.
        """
        with self._released():
            self.wait()

    @contextmanager
    def _released(self) -> Iterator[None]:
        with ExitStack() as everything:
            everything.callback(self._saver.close)
            for best in self._best:
                everything.callback(best.close)
            everything.callback(self._resume.close)
            yield

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        try:
            with self._released():
                self._saver.wait(alone=True)
        except Exception as error:
            # On a full disk other files fail too: what the save has to say is more. Else what is on its way is.
            if isinstance(error, OSError) and issubclass(kind, OSError):
                raise


def _manager(folder: epath.Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder,
        item_handlers=ocp.StandardCheckpointHandler(),  # else the shapes cannot be read before a save or restore
        options=ocp.CheckpointManagerOptions(async_options=ocp.AsyncOptions(barrier_sync_fn=barrier), **options),
    )
