"""Transformer speech encoders with input-dependent dynamic depth (I3D) in JAX and Flax.

``i3d_jax.load("RUN").transcribe("speech.flac")`` recognises a file. Importing the package is cheap: jax is imported
with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i3d_jax.inference.recognizer import Recognizer, load
    from i3d_jax.inference.transcription import Transcription

__version__ = "0.1.0"
__all__ = ["Recognizer", "Transcription", "__version__", "load"]

_HOMES = {
    "Recognizer": "i3d_jax.inference.recognizer",
    "Transcription": "i3d_jax.inference.transcription",
    "load": "i3d_jax.inference.recognizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'i3d_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
