"""Parameter trees as flat dictionaries of named arrays."""

from typing import Any

import jax

from i3d_jax.model.encoder import Params


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters to ``{"layers/mha/qkv/kernel": array}``."""
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def unflatten(flat: dict[str, Any]) -> Params:
    """Inverse of ``flatten``."""
    params: Params = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return params
