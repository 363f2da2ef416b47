"""ESPnet and ONNX Runtime, measured in a process of their own for ``benchmarks/vs_espnet.py``, which starts it.

It answers calls of the methods of ``Peers`` (``benchmarks/serve.py``). Arrays travel through ``.npz`` files. It knows
nothing of this project: weights come under ESPnet's names, and every weight must be there.

The environment that runs it has ``torch``, ``espnet``, ``onnx``, ``onnxscript`` and ``onnxruntime``.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from onnxruntime.quantization import QuantType, quantize_dynamic
from serve import serve


def encoder_of(sizes: dict[str, Any], layers: int, dropout: float) -> TransformerEncoder:
    """The pre-norm encoder with convolutional subsampling; ``dropout`` is every rate."""
    return TransformerEncoder(
        sizes["mels"],
        output_size=sizes["width"],
        attention_heads=sizes["heads"],
        linear_units=sizes["ffn"],
        num_blocks=layers,
        dropout_rate=dropout,
        positional_dropout_rate=dropout,
        attention_dropout_rate=dropout,
        input_layer="conv2d",
    )


def tensors(path: str) -> dict[str, torch.Tensor]:
    """Arrays of a ``.npz`` file."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


class Blocks(torch.nn.Module):
    """The encoder's blocks alone: x [B, T, D], mask [B, 1, T] to [B, T, D], without the final norm."""

    def __init__(self, encoder: TransformerEncoder):
        super().__init__()
        self.encoders = encoder.encoders

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run them."""
        return self.encoders(x, mask)[0]


class Trained(torch.nn.Module):
    """Encoder and CTC head; the forward pass is the loss, averaged over utterances."""

    def __init__(self, encoder: TransformerEncoder, vocabulary: int, width: int):
        super().__init__()
        self.encoder = encoder
        self.ctc = CTC(vocabulary, width, ctc_type="builtin")

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, T, F], lengths [B], labels [B, U], num_labels [B] to a scalar."""
        x, lengths, _ = self.encoder(batch["features"], batch["lengths"])
        return self.ctc(x, lengths, batch["labels"], batch["num_labels"])


class Peers:
    """What ``vs_espnet.py`` calls."""

    def __init__(self) -> None:
        self._timed: dict[str, Callable[[], Any]] = {}

    def versions(self, threads: int) -> dict[str, str]:
        """Set the number of threads, and say what this is."""
        torch.set_num_threads(threads)
        self._threads = threads
        names = ("espnet", "torch", "onnx", "onnxruntime", "numpy")
        return {name: metadata.version(name) for name in names}

    def load_inference(self, sizes: dict[str, Any], weights: str, arrays: str, folder: str) -> None:
        """The encoder, its blocks in ONNX with float32 and with int8 weights, and their inputs.

        ``arrays`` holds features [1, T, F] and states [1, T', D], the input of the blocks.
        """
        encoder = encoder_of(sizes, sizes["layers"], 0.1).eval()
        encoder.load_state_dict(tensors(weights))
        given = tensors(arrays)
        features, x = given["features"], given["states"]
        lengths, mask = torch.tensor([features.shape[1]]), torch.ones(1, 1, x.shape[1], dtype=torch.bool)
        blocks = Blocks(encoder).eval()
        for suffix, fused in (("", False), ("_fused", True)):
            self._timed[f"whole{suffix}"] = partial(self._attending, encoder, fused, features, lengths)
            self._timed[f"blocks{suffix}"] = partial(self._attending, encoder, fused, x, mask, module=blocks)
        for name, path in self._export(blocks, (x, mask), Path(folder)).items():
            self._timed[name] = self._session(path, {"x": x.numpy(), "mask": mask.numpy()})

    def _attending(
        self, encoder: TransformerEncoder, fused: bool, *inputs: torch.Tensor, module: torch.nn.Module | None = None
    ) -> torch.Tensor:
        for layer in encoder.encoders:
            layer.self_attn.use_sdpa = fused  # PyTorch's own attention, for which the encoder has no option
        y = (module or encoder)(*inputs)
        return y[0] if isinstance(y, tuple) else y

    def _export(self, blocks: Blocks, inputs: tuple[torch.Tensor, ...], folder: Path) -> dict[str, Path]:
        paths = {name: folder / f"{name}.onnx" for name in ("onnx_fp32", "onnx_int8")}
        with torch.inference_mode():
            torch.onnx.export(
                blocks,
                inputs,
                str(paths["onnx_fp32"]),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["x", "mask"],
                output_names=["y"],
            )
        quantize_dynamic(paths["onnx_fp32"], paths["onnx_int8"], weight_type=QuantType.QInt8)
        return paths

    def _session(self, path: Path, feed: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Whoever comes next has the cores to itself; it costs this one nothing here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {entry.name: feed[entry.name] for entry in session.get_inputs()}
        return lambda: session.run(None, feed)[0]

    def load_training(
        self, sizes: dict[str, Any], weights: str, batch: str, dropout: float, optimizer: dict[str, Any]
    ) -> None:
        """A training step: forward, backward, clipping, Adam."""
        encoder = encoder_of(sizes, sizes["training_layers"], dropout)
        self._model = Trained(encoder, sizes["vocabulary"], sizes["width"]).train()
        self._model.load_state_dict(tensors(weights))
        self._batch = tensors(batch)
        self._clip = optimizer.pop("clip")
        self._adam = torch.optim.Adam(self._model.parameters(), **optimizer)
        self._timed["training"] = self._step

    def _backward(self) -> torch.Tensor:
        self._adam.zero_grad()
        loss = self._model(self._batch)
        loss.backward()
        return loss

    def _step(self) -> torch.Tensor:
        loss = self._backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        if torch.isfinite(norm):
            self._adam.step()
        return loss

    def gradients(self, path: str) -> None:
        """Save the gradients of the first step, before clipping, under the names of the weights."""
        self._backward()
        np.savez(path, **{name: weight.grad.numpy() for name, weight in self._model.named_parameters()})

    def losses(self, steps: int) -> list[float]:
        """The losses of so many steps."""
        return [float(self._step().detach()) for _ in range(steps)]

    def output(self, name: str, path: str) -> None:
        """Save what one of the functions returns, as ``y``."""
        with torch.inference_mode():
            y = self._timed[name]()
        np.savez(path, y=y.numpy() if isinstance(y, torch.Tensor) else y)

    def seconds(self, name: str) -> float:
        """Wall time of one call."""
        with torch.inference_mode(name != "training"):
            begun = time.perf_counter()
            self._timed[name]()
            return time.perf_counter() - begun


if __name__ == "__main__":
    serve(Peers())
