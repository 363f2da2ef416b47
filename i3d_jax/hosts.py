"""Several processes that train together: the first one writes, the others wait for it and hear what went wrong.

Everything here does nothing much in a single process. All processes call these functions in the same order.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from i3d_jax import progress

T = TypeVar("T")

_ERRORS: dict[str, type[Exception]] = {"OSError": OSError, "ValueError": ValueError}
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start(coordinator: str = "", lost_after_seconds: int = 100) -> None:
    """Join the other processes, before anything is computed; only the first one speaks from here on.

    Args:
      coordinator: ``host:port`` where the first process listens; ``auto`` asks the cluster (TPU pods, SLURM, Open MPI,
        Kubernetes); empty takes ``$JAX_COORDINATOR_ADDRESS``, and is one process alone without it. With an address,
        ``$JAX_NUM_PROCESSES`` and ``$JAX_PROCESS_ID`` say how many there are, and which one this is.
      lost_after_seconds: silence of a process after which the others end.

    Raises:
      ValueError: the variables are missing or no numbers, or the others cannot be reached.
    """
    address = coordinator or os.environ.get(_ADDRESS, "")
    if not address:
        return
    try:
        if address == "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=lost_after_seconds)
        else:
            count, index = _number(_COUNT, address), _number(_INDEX, address)
            if not 0 <= index < count:
                raise ValueError(f"{_INDEX}={index}: expected a number from 0 to {_COUNT} - 1 = {count - 1}")
            jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=lost_after_seconds)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"parallel.coordinator={address}: the processes did not find each other ({first})") from error
    progress.set_quiet(not is_first())
    wait("start")  # the first collective may not take long: the backends connect in it


def _number(variable: str, address: str) -> int:
    value = os.environ.get(variable, "")
    if not value.isdecimal():
        raise ValueError(
            f"{variable}={value!r}: expected a number, for the processes meet at {address}; set {_COUNT} and {_INDEX} "
            "for each of them, or parallel.coordinator=auto on a cluster"
        )
    return int(value)


def finish() -> None:
    """Let go of the other processes; what follows is done alone."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until all processes are here; ``name`` tells the places apart."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def first(function: Callable[[], T]) -> T:
    """Call a function in the first process only; what it returns, or why it fails, is known to all.

    Args:
      function: returns what JSON can hold.

    Raises:
      ValueError, OSError: as the function did, in every process.
    """
    if jax.process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if is_first():
        try:
            answer = {"value": function()}
        except (ValueError, OSError) as error:
            failure = error
            answer = {"error": "OSError" if isinstance(error, OSError) else "ValueError", "text": str(error)}
    answer = json.loads(_broadcast(json.dumps(answer)))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["text"])
    value: T = answer["value"]
    return value


@contextmanager
def first_alone(name: str) -> Iterator[None]:
    """The first process runs the block, then the others run it, and find what the first one left for them."""
    if not is_first():
        wait(name)
    try:
        yield
    finally:
        if is_first():
            wait(name)


@contextmanager
def lost_process_named(place: object) -> Iterator[None]:
    """Say in one line that another process is gone, when talking to it fails.

    Raises:
      OSError: instead of the runtime's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        first = str(error).partition("\n")[0][:200]
        raise OSError(
            f"{place}: process {jax.process_index()} of {jax.process_count()} lost the others ({first}); start all of "
            "them again with the same command to resume from the newest checkpoint"
        ) from error


def leave(code: int) -> NoReturn:
    """End this process after a failure; not waiting for others, who may be gone, as an ordinary exit would."""
    if jax.distributed.is_initialized():  # asking for the number of processes would start a backend
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def check_same(values: dict[str, str]) -> None:
    """Compare what should be equal in all processes.

    Args:
      values: name -> digest.

    Raises:
      ValueError: a value differs from that of the first process; it is named, in every process.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    theirs = json.loads(_broadcast(json.dumps(values)))
    same = [theirs[name] == value for name, value in values.items()]
    everywhere = np.asarray(multihost_utils.process_allgather(np.array(same))).reshape(-1, len(same))
    for column, name in zip(everywhere.T, values, strict=True):
        if not column.all():
            others = np.flatnonzero(~column).tolist()
            raise ValueError(
                f"{name} differs between processes: {others} have another one than process 0; start all of them with "
                "the same settings, on the same files"
            )


def _broadcast(text: str) -> str:
    """The first process's text."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, data.size)] = data[:length]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode()
