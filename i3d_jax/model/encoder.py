"""The gated encoder: N times predict, decide, execute.

::

    logits = predict(x or x0)                  none | local (Eq. 9) | global (Eq. 12)
    gates  = decide(logits, keys, layer)        model.gates
    for m, branch in enumerate(branches):
        x  = execute(branch, x, gates[:, m], context)

``encode_layer`` is the only place where branches and gates are composed (Eqs. 3, 4); the executions differ in
``execute`` alone. Parameters are stacked over layers and scanned, so one tree serves all executions. `Encoder.unstack`
makes one tree a layer of it, over which `Encoder.apply` loops: a scan copies the parameters of every layer before it is
known whether anything wants them, which costs a CPU as much as two or three layers of the paper's encoder at batch 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.model.gates import Decision, GateConfig, execute_probability, fold_in, settled, training_decision
from i3d_jax.model.layers import Branch, Context, FeedForward, GatePredictor, SelfAttention
from i3d_jax.model.precision import DENSE, Precision
from i3d_jax.types import Array

Params = dict[str, Any]
Remat = Literal["none", "dense", "full"]
"""What of a layer is kept for the gradient: everything, what dense layers return, or the layer's input."""
BranchFn = Callable[[jax.Array, Context], jax.Array]
Execute = Callable[[BranchFn, jax.Array, Array, Context], jax.Array]


@dataclass(frozen=True)
class EncoderConfig:
    """Pre-norm Transformer encoder."""

    num_layers: int = 12
    """Layers N."""
    d_model: int = 256
    """Width D."""
    num_heads: int = 4
    """Attention heads."""
    ffn_dim: int = 1024
    """Width of the feed-forward blocks."""
    dropout: float = 0.1
    """Dropout on block outputs and inside the feed-forward blocks."""
    attention_dropout: float = 0.1
    """Dropout on attention weights."""
    scale_input: bool = True
    """Multiply the subsampled frames by sqrt(d_model) before positions are added, as ESPnet does. Without it positions
    weigh as much as frames from the start, instead of being learnt over many thousands of steps."""
    positional_dropout: float = 0.1
    """Dropout on the encoder input, after adding positions."""


class LayerFns(NamedTuple):
    """One layer with its parameters bound.

    Attributes:
      predict: ``(x, mask) -> logits [B, M, 2]`` of a local gate predictor, or None.
      branches: the ordered branches, each ``(x, context) -> [B, T, D]``.
    """

    predict: Callable[[jax.Array, jax.Array], jax.Array] | None
    branches: tuple[BranchFn, ...]


class EncoderOutput(NamedTuple):
    """Encoder states [B, T, D] (before the final norm), gates [B, N, M], p(execute) [B, N, M], states at the taps."""

    x: jax.Array
    gates: jax.Array
    probabilities: jax.Array
    taps: tuple[jax.Array, ...] = ()


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return bool(primitive.name != "sharding_constraint")


KEPT: dict[Remat, Callable[..., bool]] = {
    "none": _all_but_gathered,
    "dense": jax.checkpoint_policies.save_only_these_names(DENSE),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""Policies of rematerialisation; what was gathered from other devices is kept by none."""


def masked(branch: BranchFn, x: jax.Array, gate: Array, context: Context) -> jax.Array:
    """Compute the branch for every row, then apply the gate [B].

    A float gate is the training relaxation ``x + gate * branch(x)``: nothing is cut, so gradients reach the predictor.
    A boolean gate selects, so a NaN in a closed branch cannot leak and its branch gets no gradient from that row.
    """
    gate = jnp.asarray(gate)[:, None, None]
    y = branch(x, context)
    if gate.dtype == jnp.bool_:
        return jnp.where(gate, x + y, x)
    return (x + gate * y.astype(gate.dtype)).astype(x.dtype)


def check_boolean(gates: Array, execution: str) -> None:
    """Raises TypeError unless the gates are boolean: a float gate never skips."""
    if gates.dtype != jnp.bool_:
        raise TypeError(f"{execution} execution needs boolean gates, got {gates.dtype}: float gates need masked")


def conditional(branch: BranchFn, x: jax.Array, gate: Array, context: Context) -> jax.Array:
    """Skip the branch inside the compiled program when no row wants it.

    Raises:
      TypeError: the gate is not boolean; a float gate never skips.
    """
    gate = jnp.asarray(gate)
    check_boolean(gate, "conditional")
    return jax.lax.cond(jnp.any(gate), lambda x: masked(branch, x, gate, context), lambda x: x, x)


def rows_at_once(rows: int, frames: int, frames_at_once: int) -> int:
    """Rows of T = ``frames`` frames in a part of ``compacted``, for a batch of ``rows``."""
    return min(rows, -(-frames_at_once // max(frames, 1)))


def compacted(branch: BranchFn, x: jax.Array, gate: Array, context: Context, *, frames_at_once: int) -> jax.Array:
    """Run the branch for the rows that want it and no others, a few rows at a time; rows [B, T, D] stay in place.

    ::

        rows = those with an open gate, in order
        for part in parts of rows:              as many parts as the rows need, so none for none
            x[part] += branch(x[part])

    Args:
      branch: residual-free.
      x: [B, T, D].
      gate: [B] bool.
      context: of the branch.
      frames_at_once: a part has as many rows as it takes to have so many frames (of T each). One row is exact, more
        are faster where a row is short or the device wide; the last part may be filled up with rows that want nothing.

    Raises:
      TypeError: the gate is not boolean.
    """
    gate = jnp.asarray(gate)
    check_boolean(gate, "compacted")
    batch, frames = x.shape[:2]
    gate = gate & jnp.any(context.mask, axis=1)  # a row that only fills the batch needs nothing
    size = rows_at_once(batch, frames, frames_at_once)
    open_first = jnp.argsort(~gate, stable=True)
    missing = -batch % size
    rows = jnp.pad(open_first, (0, missing), constant_values=batch)  # no row: nothing is written there
    wanted = jnp.pad(gate[open_first], (0, missing))

    def run(part: jax.Array, x: jax.Array) -> jax.Array:
        own, open_ = (jax.lax.dynamic_slice_in_dim(a, part * size, size) for a in (rows, wanted))
        if size == 1:  # a slice, which is cheaper than a gather
            take, put = jax.lax.dynamic_index_in_dim, jax.lax.dynamic_update_index_in_dim
            part_x, part_context = jax.tree.map(lambda a: take(a, own[0], 0), (x, context))
            return put(x, masked(branch, part_x, open_, part_context), own[0], 0)
        part_x, part_context = jax.tree.map(lambda a: a.at[own].get(mode="clip"), (x, context))
        return x.at[own].set(masked(branch, part_x, open_, part_context), mode="drop", unique_indices=True)

    return jax.lax.fori_loop(0, -(-jnp.sum(gate) // size), run, x)


def encode_layer(
    layer: LayerFns,
    x: jax.Array,
    logits: jax.Array,
    context: Context,
    decide: Callable[[jax.Array], Array],
    execute: Execute,
) -> tuple[jax.Array, Array, jax.Array]:
    """One layer: predict, decide, execute. Both gates come from the layer's input (Eq. 9).

    Args:
      layer: its functions.
      x: [B, T, D].
      logits: [B, M, 2], used unless the layer has a predictor of its own.
      context: of the branches.
      decide: logits [B, M, 2] -> gates [B, M].
      execute: runs or skips one branch.

    Returns:
      x [B, T, D], gates [B, M], logits [B, M, 2].
    """
    if layer.predict is not None:
        logits = layer.predict(x, context.mask)
    gates = decide(logits)
    for m, branch in enumerate(layer.branches):
        x = execute(branch, x, gates[:, m], context)
    return x, gates, logits


@dataclass(frozen=True)
class Encoder:
    """Encoder layers and gate predictor; a value object, parameters are passed in."""

    config: EncoderConfig
    gates: GateConfig
    precision: Precision = "float32"

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The ordered branches of a layer."""
        c = self.config
        attention = SelfAttention(c.num_heads, c.dropout, c.attention_dropout, self.precision)
        return Branch("mha", attention), Branch("ffn", FeedForward(c.ffn_dim, c.dropout, self.precision))

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the M gates of a layer."""
        return tuple(branch.name for branch in self.branches)

    def training_decision(self, temperature: Array | float | None = None) -> Decision:
        """The decision that this encoder is trained with; ``temperature`` replaces the configured tau."""
        return training_decision(self.gates, self.config.num_layers, len(self.branches), temperature)

    @property
    def predictor(self) -> GatePredictor:
        """The gate predictor: M gates of one layer (local), or all N x M (global)."""
        num_gates = len(self.branches) * (self.config.num_layers if self.gates.predictor == "global" else 1)
        return GatePredictor(
            num_gates=num_gates,
            hidden_dim=self.gates.hidden_dim,
            initial_logit=self.gates.initial_logit,
            normalize_input=self.gates.normalize_input,
        )

    def init(self, key: jax.Array) -> Params:
        """``{"layers": {branch: stacked}, "predictor": ...}``; the predictor is stacked too when it is local."""
        x = jnp.zeros((1, 4, self.config.d_model))
        context = Context(jnp.ones((1, 4), bool))
        layer_key, predictor_key = jax.random.split(key)
        keys = jax.random.split(layer_key, (len(self.branches), self.config.num_layers))
        params: Params = {
            "layers": {
                branch.name: jax.vmap(lambda k, b=branch: b.module.init(k, x, context)["params"])(keys[m])
                for m, branch in enumerate(self.branches)
            }
        }
        if self.gates.predictor == "global":
            params["predictor"] = self.predictor.init(predictor_key, x, context.mask)["params"]
        elif self.gates.predictor == "local":
            keys = jax.random.split(predictor_key, self.config.num_layers)
            params["predictor"] = jax.vmap(lambda k: self.predictor.init(k, x, context.mask)["params"])(keys)
        return params

    def unstack(self, params: Params) -> Params:
        """The same parameters with ``layers``, and local predictors, as tuples of one tree a layer.

        Such ones are returned as they are. Not for use within a program: they pass through the host, where slices need
        no compilation.
        """

        if isinstance(params["layers"], tuple):
            return params

        def apart(tree: Any) -> tuple[Any, ...]:
            tree = jax.tree.map(np.asarray, tree)
            layers = range(self.config.num_layers)
            return tuple(jax.tree.map(lambda leaf, n=n: jax.device_put(leaf[n]), tree) for n in layers)

        names = ("layers", "predictor") if self.gates.predictor == "local" else ("layers",)
        return params | {name: apart(params[name]) for name in names}

    def predict(self, params: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits known before the first layer: [N, B, M, 2] of the global predictor, zeros otherwise."""
        shape = (x.shape[0], self.config.num_layers, len(self.branches), 2)
        if self.gates.predictor != "global":
            return jnp.zeros((shape[1], shape[0], *shape[2:]))
        logits = self.predictor.apply({"params": params["predictor"]}, x, mask)
        return jnp.swapaxes(jnp.asarray(logits).reshape(shape), 0, 1)

    def layer_fns(self, params: Params, predictor: Params | None, dropout_keys: jax.Array | None) -> LayerFns:
        """Bind the parameters of one layer (not stacked)."""
        branches: list[BranchFn] = []
        for m, branch in enumerate(self.branches):
            keys = None if dropout_keys is None else fold_in(dropout_keys, m)

            def call(x: jax.Array, context: Context, branch: Branch = branch, k: jax.Array | None = keys) -> jax.Array:
                return branch.module.apply({"params": params[branch.name]}, x, context, k)  # type: ignore[return-value]

            branches.append(call)
        if self.gates.predictor != "local":
            return LayerFns(None, tuple(branches))
        return LayerFns(lambda x, mask: self.predictor.apply({"params": predictor}, x, mask), tuple(branches))  # type: ignore

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """p(execute); 1 without a predictor."""
        return jnp.ones(logits.shape[:-1]) if self.gates.predictor == "none" else execute_probability(logits)

    def apply(
        self,
        params: Params,
        x: jax.Array,
        mask: jax.Array,
        decide: Decision,
        *,
        execute: Execute = masked,
        gate_keys: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        taps: tuple[int, ...] = (),
        after_tap: Callable[[jax.Array], jax.Array] | None = None,
        gather: Callable[[Any], Any] | None = None,
        remat: Remat = "none",
    ) -> EncoderOutput:
        """Encode x [B, T, D] with mask [B, T] in one scan over the layers, cut only at the taps.

        Args:
          params: from ``init``, or from ``unstack``: then a loop over the layers instead of a scan.
          x: encoder input X^(0), positions added.
          mask: valid frames.
          decide: a decision of ``model.gates``.
          execute: ``masked``, ``conditional`` or ``compacted``.
          gate_keys: [B], of random decisions; each layer folds its index in.
          dropout_keys: [B]; None switches dropout off.
          taps: numbers of layers (1 to N - 1, ascending) whose outputs are returned too.
          after_tap: makes the input of the next layer out of the output of a tap; None leaves it as it is.
          gather: makes the parameters of one layer, or of a global predictor, whole by a sharding constraint; see
            ``training.sharding``.
          remat: what is computed again for the gradient.
        """
        context = Context(mask)
        local = params["predictor"] if self.gates.predictor == "local" else None

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, tuple[Array, jax.Array]]:
            index, split, logits = layer
            layer_params, predictor = gather(split) if gather else split
            keys = None if dropout_keys is None else fold_in(dropout_keys, index)
            fns = self.layer_fns(layer_params, predictor, keys)
            x, gates, logits = encode_layer(fns, x, logits, context, lambda z: decide(z, gate_keys, index), execute)
            return x, (gates, self.probabilities(logits))

        if gather or remat != "none":  # what was gathered is never kept for the gradient, but gathered again
            body = jax.checkpoint(body, prevent_cse=False, policy=KEPT[remat])
        whole = params
        if gather and self.gates.predictor == "global":
            whole = {"predictor": gather(params["predictor"])}
        known = self.predict(whole, x, mask)
        if self.gates.predictor == "global":
            decide = settled(decide, known, mask)
        layers = (jnp.arange(self.config.num_layers), (params["layers"], local), known)

        def run(x: jax.Array, first: int, last: int) -> tuple[jax.Array, tuple[Array, jax.Array]]:
            if not isinstance(params["layers"], tuple):
                return jax.lax.scan(body, x, jax.tree.map(lambda leaf: leaf[first:last], layers))
            outputs = []
            for n in range(first, last):
                x, ys = body(x, (n, (params["layers"][n], local and local[n]), known[n]))
                outputs.append(ys)
            return x, jax.tree.map(lambda *of: jnp.stack(of), *outputs)

        tapped, outputs = [], []
        for first, last in pairwise((0, *taps, self.config.num_layers)):
            x, ys = run(x, first, last)
            tapped.append(x)
            outputs.append(ys)
            if after_tap and last < self.config.num_layers:
                x = after_tap(x)
        gates, probabilities = jax.tree.map(lambda *parts: jnp.swapaxes(jnp.concatenate(parts), 0, 1), *outputs)
        return EncoderOutput(tapped[-1], gates, probabilities, tuple(tapped[:-1]))
