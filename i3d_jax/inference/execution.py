"""From waveforms to tokens in one of three executions of the same model.

=============  =========================================================================================
masked         one compiled program that computes every branch; any batch
conditional    one compiled program that skips a branch no row wants (``lax.cond`` in the scan); any batch
eager          a host loop at batch 1: each block is compiled once, a closed block is never called
=============  =========================================================================================
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from i3d_jax.audio.frontend import FrontendConfig, GlobalStats, log_mel, normalize
from i3d_jax.inference.decoding import frame_path, merge_repeats
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Execute, LayerFns, Params, conditional, encode_layer, masked
from i3d_jax.model.gates import Decision
from i3d_jax.model.layers import Context
from i3d_jax.types import Array

Execution = Literal["masked", "conditional", "eager"]
EXECUTIONS: tuple[Execution, ...] = ("masked", "conditional", "eager")


class Recognition(NamedTuple):
    """Tokens [B, T] (0 beyond num_tokens [B]), gates [B, N, M] bool, gate probabilities [B, N, M], frames [B].

    ``num_frames`` counts feature frames, before subsampling; ``path`` and ``blank_margin`` [B, T] are those of
    `frame_path`.
    """

    tokens: Array
    num_tokens: Array
    gates: Array
    gate_probabilities: Array
    num_frames: Array
    path: Array
    blank_margin: Array


class EagerStart(NamedTuple):
    """What is known before the first layer; gates [N, B, M] are final unless the predictor is local."""

    x: jax.Array
    mask: jax.Array
    gates: jax.Array
    probabilities: jax.Array
    num_frames: jax.Array


class EagerPieces(NamedTuple):
    """The compiled pieces of the eager loop."""

    start: Callable[..., EagerStart]
    blocks: dict[str, Callable[..., jax.Array]]
    predict: Callable[..., jax.Array]
    decide: Callable[..., jax.Array]
    probability: Callable[..., jax.Array]
    finish: Callable[..., tuple[jax.Array, ...]]


class Pipeline:
    """Front end, model and greedy CTC decoding, compiled once for each shape; parameters are arguments.

    Over several devices each one runs the program on rows of its own, so that what it skips depends on them alone:
    there is no communication, and devices may take different branches.
    """

    def __init__(
        self,
        frontend: FrontendConfig,
        model: ASRModel,
        stats: GlobalStats | None = None,
        devices: Sequence[jax.Device] = (),
    ):
        """Bind configuration; nothing is compiled yet.

        Args:
          frontend: of the features.
          model: the recogniser.
          stats: of global normalisation.
          devices: among which ``masked`` and ``conditional`` split batches, whose rows their number divides; empty
            leaves the place to jax.
        """
        self.frontend = frontend
        self.model = model
        self.stats = stats
        self.devices = tuple(devices)
        self.masked = jax.jit(self._split(partial(self._run, execute=masked)))
        self.conditional = jax.jit(self._split(partial(self._run, execute=conditional)))

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

    def features(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalised log-mel features [B, T, F] and their mask [B, T]."""
        features, mask = log_mel(self.frontend, waveform, num_samples)
        return normalize(self.frontend, features, mask, self.stats), mask

    def _run(
        self, params: Params, waveform: jax.Array, num_samples: jax.Array, decide: Decision, *, execute: Execute
    ) -> Recognition:
        features, mask = self.features(waveform, num_samples)
        output = self.model.apply(params, features, mask, decide, execute=execute)
        path, blank_margin = frame_path(output.logits, output.mask)
        tokens, num_tokens = merge_repeats(path)
        frames = jnp.sum(mask, axis=1)
        return Recognition(tokens, num_tokens, output.gates, output.gate_probabilities, frames, path, blank_margin)

    @cached_property
    def eager_pieces(self) -> EagerPieces:
        """The pieces of the eager loop, each compiled once for each shape."""
        model, encoder = self.model, self.model.encoder

        def start(params: Params, waveform: jax.Array, num_samples: jax.Array, decide: Decision) -> EagerStart:
            features, feature_mask = self.features(waveform, num_samples)
            x, mask = model.embed(params, features, feature_mask)
            logits = encoder.predict(params, x, mask)
            gates = jax.vmap(lambda z, n: decide(z, None, n))(logits, jnp.arange(encoder.config.num_layers))
            return EagerStart(x, mask, gates, encoder.probabilities(logits), jnp.sum(feature_mask, axis=1))

        def block(module: Any) -> Callable[..., jax.Array]:
            # Masked with an open gate: the residual is added where every other execution adds it.
            def run(params: Params, x: jax.Array, context: Context) -> jax.Array:
                gate = jnp.ones(x.shape[0], bool)
                return masked(lambda x, c: module.apply({"params": params}, x, c), x, gate, context)

            return jax.jit(run)

        def finish(params: Params, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
            path, blank_margin = frame_path(model.project(params, x), mask)
            return *merge_repeats(path), path, blank_margin

        return EagerPieces(
            start=jax.jit(start),
            blocks={branch.name: block(branch.module) for branch in encoder.branches},
            predict=jax.jit(lambda params, x, mask: encoder.predictor.apply({"params": params}, x, mask)),
            decide=jax.jit(lambda decide, logits, layer: decide(logits, None, layer)),
            probability=jax.jit(encoder.probabilities),
            finish=jax.jit(finish),
        )

    def program(self, execution: Execution, params: Params) -> Callable[[Array, Array, Decision], Recognition]:
        """The function (waveform [B, S], num_samples [B], decide) -> Recognition of an execution.

        Raises:
          ValueError: unknown execution.
        """
        match execution:
            case "masked":
                return partial(self.masked, params)
            case "conditional":
                return partial(self.conditional, params)
            case "eager":
                return EagerProgram(self, params)
        raise ValueError(f"execution {execution!r} is unknown: choose one of {', '.join(EXECUTIONS)}")


class EagerProgram:
    """The host loop: gates are read back (once for the global predictor, once a layer for local ones), and only open
    blocks are dispatched. Parameters are unstacked once, here.

    ``blocks`` holds one compiled function for each branch, ``(params, x, context) -> x + branch(x)``; what is not
    called there is not computed.
    """

    def __init__(self, pipeline: Pipeline, params: Params):
        """Unstack the parameters and bind the compiled pieces."""
        self.model = pipeline.model
        encoder = self.model.encoder
        self._params = {name: params[name] for name in params.keys() - {"layers"}}
        self._layers = [jax.tree.map(lambda p, n=n: p[n], params["layers"]) for n in range(encoder.config.num_layers)]
        self._local = encoder.gates.predictor == "local"
        if self._local:
            predictor = self._params.pop("predictor")
            self._predictors = [jax.tree.map(lambda p, n=n: p[n], predictor) for n in range(len(self._layers))]
        self._pieces = pipeline.eager_pieces
        self.blocks = dict(self._pieces.blocks)
        # Stands in for the logits of layers whose gates are known beforehand.
        self._unused = jnp.zeros((1, len(encoder.gate_names), 2))

    def _block(self, name: str, params: Params) -> Callable[[jax.Array, Context], jax.Array]:
        return lambda x, context: self.blocks[name](params[name], x, context)

    def _layer(self, n: int) -> LayerFns:
        branches = tuple(self._block(name, self._layers[n]) for name in self.model.encoder.gate_names)
        if not self._local:
            return LayerFns(None, branches)
        return LayerFns(partial(self._pieces.predict, self._predictors[n]), branches)

    def __call__(self, waveform: Array, num_samples: Array, decide: Decision) -> Recognition:
        """Recognise one utterance, waveform [1, S].

        Raises:
          ValueError: a batch of more than one utterance.
        """
        if waveform.shape[0] != 1:
            raise ValueError(f"eager execution takes one utterance at a time, got a batch of {waveform.shape[0]}")
        start = self._pieces.start(self._params, waveform, num_samples, decide)
        x, context = start.x, Context(start.mask)
        known = None if self._local else np.asarray(start.gates)
        gates, logits = [], []
        for n in range(len(self._layers)):
            if known is None:
                decide_layer = lambda z, n=n: np.asarray(self._pieces.decide(decide, z, n))  # noqa: E731
            else:
                decide_layer = lambda _, n=n: known[n]  # noqa: E731
            x, gate, logit = encode_layer(self._layer(n), x, self._unused, context, decide_layer, execute_eager)
            gates.append(gate)
            logits.append(logit)
        tokens, num_tokens, path, blank_margin = self._pieces.finish(self._params, x, start.mask)
        probabilities = start.probabilities
        if known is None:
            probabilities = self._pieces.probability(np.stack([np.asarray(z) for z in logits]))
        return Recognition(
            np.asarray(tokens),
            np.asarray(num_tokens),
            np.stack(gates, axis=1),
            np.swapaxes(np.asarray(probabilities), 0, 1),
            np.asarray(start.num_frames),
            np.asarray(path),
            np.asarray(blank_margin),
        )


def execute_eager(
    branch: Callable[[jax.Array, Context], jax.Array], x: jax.Array, gate: Array, context: Context
) -> jax.Array:
    """Call the block, residual included, or do not call it; gate [1] is on the host."""
    return branch(x, context) if gate[0] else x
