"""The process of the peers, and for ESPnet and ONNX Runtime the same model on both sides: inference and training."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from paper_encoder import MELS, paper_model

from i3d_jax.model.asr import ASRModel
from i3d_jax.model.encoder import Params

EQUAL = 1e-4
"""Largest difference, relative to the largest value, at which two outputs are the same."""
SETTLE = 0.02
"""Seconds between two calls, in which threads that wait for more work by spinning go to sleep."""


class Worker:
    """The process of the peers: methods of what the script serves, by name."""

    def __init__(self, python: str, folder: Path, script: str = "espnet_worker.py"):
        self._errors = folder / "worker.log"
        answers, to_us = os.pipe()
        command = [python, str(Path(__file__).with_name(script)), str(to_us)]
        with self._errors.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[to_us], text=True
            )
        os.close(to_us)
        self._answers = os.fdopen(answers)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()
        self._answers.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """What the method returns.

        Raises:
          RuntimeError: it failed, or the process ended.
        """
        assert self._process.stdin
        request = {"call": method, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._errors.read_text()[-4000:]}
        if "error" in answer:
            raise RuntimeError(f"the peers' process failed in {method}:\n{answer['error'].strip()}")
        return answer["result"]


def make_model(flags: Any, layers: int, dropout: float) -> ASRModel:
    """Without a gate predictor; ``dropout`` is every rate."""
    sizes = {"width": flags.width, "heads": flags.heads, "ffn": flags.ffn, "vocabulary": flags.vocabulary}
    return paper_model(layers, **sizes, dropout=dropout)


def make_params(model: ASRModel, seed: int) -> Params:
    """Random parameters, with biases and scales that show where they are used."""
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = (x + 0.02 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True))
    return jax.tree.unflatten(tree, noisy)


def sizes_of(flags: Any) -> dict[str, int]:
    """What ``espnet_worker`` builds its models from."""
    names = ("layers", "width", "heads", "ffn", "training_layers", "vocabulary")
    return {"mels": MELS} | {name: getattr(flags, name) for name in names}


def _linear(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.asarray(node["kernel"]).T, f"{prefix}.bias": np.asarray(node["bias"])}


def _norm(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.asarray(node["scale"]), f"{prefix}.bias": np.asarray(node["bias"])}


def _convolution(prefix: str, node: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": np.transpose(node["kernel"], (3, 2, 0, 1)), f"{prefix}.bias": np.asarray(node["bias"])}


def espnet_encoder(params: Params) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under the names and in the layouts of ESPnet's encoder."""
    subsampling, layers = params["subsampling"], jax.device_get(params["layers"])
    arrays = {
        **_convolution("embed.conv.0", subsampling["conv1"]),
        **_convolution("embed.conv.2", subsampling["conv2"]),
        **_linear("embed.out.0", subsampling["out"]),
        **_norm("after_norm", params["head"]["norm"]),
    }
    for n in range(len(layers["mha"]["norm"]["scale"])):
        layer, own = f"encoders.{n}", jax.tree.map(lambda leaf, n=n: leaf[n], layers)
        for third, name in enumerate("qkv"):
            part = jax.tree.map(lambda leaf, third=third: np.split(leaf, 3, axis=-1)[third], own["mha"]["qkv"])
            arrays |= _linear(f"{layer}.self_attn.linear_{name}", part)
        arrays |= _linear(f"{layer}.self_attn.linear_out", own["mha"]["output"])
        arrays |= _linear(f"{layer}.feed_forward.w_1", own["ffn"]["hidden"])
        arrays |= _linear(f"{layer}.feed_forward.w_2", own["ffn"]["output"])
        arrays |= _norm(f"{layer}.norm1", own["mha"]["norm"]) | _norm(f"{layer}.norm2", own["ffn"]["norm"])
    return arrays


def espnet_trained(params: Params) -> dict[str, np.ndarray]:
    """The same with the CTC head, of ``espnet_worker.Trained``."""
    encoder = {f"encoder.{name}": array for name, array in espnet_encoder(params).items()}
    return encoder | _linear("ctc.ctc_lo", params["head"]["projection"])


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest value of theirs."""
    return float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))) / np.max(np.abs(theirs)))


def demand(name: str, found: float, limit: float = EQUAL) -> float:
    """The difference.

    Raises:
      SystemExit: it is larger than the limit.
    """
    if not found <= limit:
        raise SystemExit(f"{name}: differs by {found:.2g} of the largest value, more than {limit:.2g}; not timed")
    return found


def output_of(worker: Worker, name: str, folder: Path) -> np.ndarray:
    """What a function of the peers returns."""
    path = str(folder / "output.npz")
    worker.call("output", name=name, path=path)
    with np.load(path) as arrays:
        return arrays["y"]


def save(path: Path, arrays: Mapping[str, Any]) -> str:
    """Arrays to a ``.npz`` file; its name."""
    np.savez(path, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return str(path)
