"""The training step as compiled programs, one for each static shape of the plan, and never more."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from i3d_jax.training.step import StepMetrics, TrainBatch, TrainState


class CompiledStep:
    """(state, batch) -> (state, metrics); a shape is compiled when its first batch comes.

    Args:
      step: jitted training step.
      member: its arguments besides state and batch.
      shapes: number of shapes in the plan.
      say: told what was compiled, a line for each program.

    Attributes:
      programs: shapes of the arrays of a batch -> compiled program.
      seconds: spent compiling so far.
    """

    def __init__(self, step: Any, member: Any, shapes: int, say: Callable[[str], None]) -> None:
        self._step, self._member, self._shapes, self._say = step, member, shapes, say
        self.programs: dict[tuple[tuple[int, ...], ...], jax.stages.Compiled] = {}
        self.seconds = 0.0

    def __call__(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        """One step.

        Raises:
          RuntimeError: there are more shapes of batches than the plan has.
        """
        shape = tuple(array.shape for array in jax.tree.leaves(batch))
        if shape not in self.programs:
            self.programs[shape] = self._compile(state, batch)
        done: tuple[TrainState, StepMetrics] = self.programs[shape](state, batch, self._member)
        return done

    def _compile(self, state: TrainState, batch: TrainBatch) -> jax.stages.Compiled:
        if len(self.programs) == self._shapes:
            raise RuntimeError(
                f"a batch of {batch.describe()} would be shape {self._shapes + 1} of a plan of {self._shapes}, and "
                f"compile once more: its arrays are {[list(array.shape) for array in jax.tree.leaves(batch)]}, those "
                f"known {sorted(self.programs)}"
            )
        begun = time.monotonic()
        program: jax.stages.Compiled = self._step.lower(state, batch, self._member).compile()
        seconds = time.monotonic() - begun
        self.seconds += seconds
        self._say(
            f"compiled step {len(self.programs) + 1} of {self._shapes} ({batch.describe()}) in "
            f"{seconds:.1f} s, {program_bytes(program) / 1e9:.2f} GB on each device"
        )
        return program


def program_bytes(program: jax.stages.Compiled) -> int:
    """Memory of one device that a program needs: arguments, results that are not put in their place, work space."""
    memory = program.memory_analysis()
    if memory is None:
        return 0
    sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return int(sum(sizes) - memory.alias_size_in_bytes)


class _Counter:
    def __init__(self) -> None:
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.programs += event == "/jax/core/compile/backend_compile_duration"


@cache
def _counter() -> _Counter:
    return _Counter()


def compilations() -> int:
    """Programs that this process has compiled, or taken from a cache, since this was first asked."""
    return _counter().programs
