"""From waveforms to tokens in one of four executions of the same model.

=============  =========================================================================================
masked         one compiled program that computes every branch; any batch
conditional    one compiled program that skips a branch no row wants (``lax.cond``); any batch
compacted      one compiled program that computes a branch for the rows that want it; any batch
eager          a host loop at batch 1: each block is compiled once, a closed block is never called
=============  =========================================================================================
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from i3d_jax.audio.frontend import FrontendConfig, GlobalStats, log_mel, normalize
from i3d_jax.inference.decoding import frame_path, merge_repeats
from i3d_jax.inference.eager import EagerPieces, EagerProgram
from i3d_jax.inference.recognition import CTCScores, Decoded, Kept, Recognition, Start
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Execute, Params, compacted, conditional, masked, rows_at_once
from i3d_jax.model.gates import Decision, settled
from i3d_jax.model.layers import Context
from i3d_jax.types import Array

Execution = Literal["masked", "conditional", "compacted", "eager"]
EXECUTIONS: tuple[Execution, ...] = ("masked", "conditional", "compacted", "eager")

_FRAMES_AT_ONCE = {"cpu": 256}
_FRAMES_AT_ONCE_ELSEWHERE = 4096
"""Rows that ``compacted`` takes together have about so many encoder frames: enough to keep the device busy."""


def best_execution(rows: int, predictor: str) -> Execution:
    """The fastest execution of a model with this gate predictor for batches of so many rows: see docs/speed.md."""
    if rows == 1:
        return "conditional"
    return "masked" if predictor == "none" else "compacted"


def unknown_execution(execution: str) -> ValueError:
    """The error of an execution that there is none of."""
    return ValueError(f"execution {execution!r} is unknown: choose one of {', '.join(EXECUTIONS)}")


class Pipeline:
    """Front end, model and decoding, compiled once for each shape; parameters are arguments.

    Over several devices each one runs the program on rows of its own, so that what it skips depends on them alone:
    there is no communication, and devices may take different branches.
    """

    def __init__(
        self,
        frontend: FrontendConfig,
        model: ASRModel,
        stats: GlobalStats | None = None,
        devices: Sequence[jax.Device] = (),
        keep: Kept = "tokens",
    ):
        """Bind configuration; nothing is compiled yet.

        Args:
          frontend: of the features.
          model: the recogniser.
          stats: of global normalisation.
          devices: among which the compiled executions split batches, whose rows their number divides; empty leaves
            the place to jax.
          keep: what the programs give for another decoder than the greedy one.
        """
        self.keep = keep
        self.frontend = frontend
        self.model = model
        self.stats = stats
        self.devices = tuple(devices)
        self.masked = jax.jit(self._split(partial(self._run, execute=masked)))
        self.conditional = jax.jit(self._split(partial(self._run, execute=conditional)))

    @cached_property
    def _platform(self) -> str:
        return self.devices[0].platform if self.devices else jax.default_backend()

    @cached_property
    def _frames_at_once(self) -> int:
        return _FRAMES_AT_ONCE.get(self._platform, _FRAMES_AT_ONCE_ELSEWHERE)

    @cached_property
    def compact(self) -> Execute:
        """``compacted`` with parts of the size that suits the device."""
        return partial(compacted, frames_at_once=self._frames_at_once)

    def rows_at_once(self, rows: int, frames: int) -> int:
        """Rows of a batch of ``rows`` with so many encoder frames that ``compacted`` computes together."""
        return rows_at_once(rows, frames, self._frames_at_once)

    @cached_property
    def compacted(self) -> Callable[..., Recognition]:
        """The program of this execution, as ``masked`` and ``conditional`` are."""
        return jax.jit(self._split(partial(self._run, execute=self.compact)))

    def _split(self, run: Callable[..., Recognition]) -> Callable[..., Recognition]:
        if not self.devices:
            return run
        mesh = jax.make_mesh((len(self.devices),), ("data",), (AxisType.Auto,), devices=self.devices)
        rows, whole = P("data"), P()

        def split(params: Params, waveform: jax.Array, num_samples: jax.Array, decide: Decision) -> Recognition:
            # A decision may hold a pattern for each row, [B, N, M]; what else it holds is for all of them.
            decisions = jax.tree.map(lambda leaf: rows if jnp.ndim(leaf) == 3 else whole, decide)
            specs = (whole, rows, rows, decisions)
            # check_vma: gates vary between devices, the states they are scanned with need not yet.
            mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
            return mapped(params, waveform, num_samples, decide)

        return split

    def _decode(self, params: Params, states: jax.Array, logits: jax.Array, mask: jax.Array) -> Decoded:
        path, margin = frame_path(logits, mask)
        scores = None
        if self.keep != "tokens":
            own = self.model.normalise(params, states) if self.keep == "states" else None
            scores = CTCScores(jax.nn.log_softmax(logits.astype(jnp.float32)), mask, own)
        return Decoded(*merge_repeats(path), path, margin, scores)

    def features(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalised log-mel features [B, T, F] and their mask [B, T]."""
        features, mask = log_mel(self.frontend, waveform, num_samples)
        return normalize(self.frontend, features, mask, self.stats), mask

    def _run(
        self, params: Params, waveform: jax.Array, num_samples: jax.Array, decide: Decision, *, execute: Execute
    ) -> Recognition:
        features, mask = self.features(waveform, num_samples)
        output = self.model.apply(params, features, mask, decide, execute=execute)
        assert output.states is not None
        decoded = self._decode(params, output.states, output.logits, output.mask)
        return decoded.with_gates(output.gates, output.gate_probabilities, jnp.sum(mask, axis=1))

    @cached_property
    def start(self) -> Callable[[Params, Array, Array, Decision], Start]:
        """(params, waveform [B, S], num_samples [B], decide) to what is known before the first layer."""
        encoder = self.model.encoder

        def start(params: Params, waveform: jax.Array, num_samples: jax.Array, decide: Decision) -> Start:
            features, feature_mask = self.features(waveform, num_samples)
            x, mask = self.model.embed(params, features, feature_mask)
            logits = encoder.predict(params, x, mask)
            final = settled(decide, logits, mask) if encoder.gates.predictor == "global" else decide
            gates = jax.vmap(lambda z, n: final(z, None, n))(logits, jnp.arange(encoder.config.num_layers))
            return Start(x, mask, gates, encoder.probabilities(logits), jnp.sum(feature_mask, axis=1))

        return jax.jit(start)

    @cached_property
    def rest(self) -> Callable[[Params, Start, Decision], Recognition]:
        """(params, start, decide) to the result, ``compacted``: what `start` began, for any rows of one length."""

        def rest(params: Params, start: Start, decide: Decision) -> Recognition:
            encoded = self.model.encode(params, start.x, start.mask, decide, execute=self.compact)
            decoded = self._decode(params, encoded.x, self.model.project(params, encoded.x), start.mask)
            return decoded.with_gates(encoded.gates, jnp.swapaxes(start.probabilities, 0, 1), start.num_frames)

        return jax.jit(rest)

    @cached_property
    def eager_pieces(self) -> EagerPieces:
        """The pieces of the eager loop, each compiled once for each shape."""
        model, encoder = self.model, self.model.encoder

        def block(module: Any) -> Callable[..., jax.Array]:
            # Masked with an open gate: the residual is added where every other execution adds it.
            def run(params: Params, x: jax.Array, context: Context) -> jax.Array:
                gate = jnp.ones(x.shape[0], bool)
                return masked(lambda x, c: module.apply({"params": params}, x, c), x, gate, context)

            return jax.jit(run)

        def finish(params: Params, x: jax.Array, mask: jax.Array) -> Decoded:
            return self._decode(params, x, model.project(params, x), mask)

        return EagerPieces(
            start=self.start,
            blocks={branch.name: block(branch.module) for branch in encoder.branches},
            predict=jax.jit(lambda params, x, mask: encoder.predictor.apply({"params": params}, x, mask)),
            decide=jax.jit(lambda decide, logits, layer: decide(logits, None, layer)),
            probability=jax.jit(encoder.probabilities),
            condition=jax.jit(model.condition),
            finish=jax.jit(finish),
        )

    def unstacks(self, execution: Execution) -> bool:
        """Whether an execution loops over unstacked layers.

        A scan would copy the parameters of skipped layers too, which only a CPU feels; others compile less.
        """
        return execution == "eager" or (execution == "conditional" and self._platform == "cpu")

    def program(self, execution: Execution, params: Params) -> Callable[[Array, Array, Decision], Recognition]:
        """The function (waveform [B, S], num_samples [B], decide) -> Recognition of an execution.

        Where it `unstacks`, parameters that are unstacked already (`Encoder.unstack`) are taken as they are.

        Raises:
          ValueError: unknown execution.
        """
        if self.unstacks(execution):
            params = self.model.encoder.unstack(params)
        match execution:
            case "masked":
                return partial(self.masked, params)
            case "conditional":
                return partial(self.conditional, params)
            case "compacted":
                return partial(self.compacted, params)
            case "eager":
                return EagerProgram(self.model, self.eager_pieces, params)
        raise unknown_execution(execution)
