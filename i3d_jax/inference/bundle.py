"""Bundles: recognisers in folders of their own. A finished run holds one in ``<run>/model``.

recognizer.json  front end and architecture
params.npz       parameters, and feature statistics where they are global
tokenizer.model  SentencePiece
manifest.json    digests of these
"""

import io
import json
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.audio.frontend import SAMPLE_RATE, FrontendConfig, GlobalStats
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.manifest import NAME as MANIFEST
from i3d_jax.manifest import Damaged, check_manifest, write_manifest
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import Params
from i3d_jax.model.params import flatten, unflatten
from i3d_jax.schema import from_dict, to_dict

DTYPES = ("float32", "float16")
"""Of the parameters in a bundle."""


@dataclass(frozen=True)
class Calibration:
    """What thresholds cost on average, measured on a set of utterances; for models with local predictors."""

    thresholds: tuple[float, ...] = ()
    """Values of beta, ascending."""
    shares: tuple[float, ...] = ()
    """FLOPs of the executed blocks at each of them as a share of those of all blocks, over all utterances."""

    def threshold(self, budget: float) -> float:
        """The smallest threshold whose share, and that of all larger ones, is within the budget.

        Raises:
          ValueError: there is no calibration.
        """
        if not self.thresholds:
            raise ValueError(
                "a budget for local gate predictors needs a calibration: run eval.py RUN --split=dev --sweep-budget, "
                "which writes it into the model of the run"
            )
        within = 1.0  # closes everything
        for threshold, share in zip(reversed(self.thresholds), reversed(self.shares), strict=True):
            if share > budget:
                break
            within = threshold
        return within


@dataclass(frozen=True)
class RecognizerConfig:
    """What a bundle states about itself."""

    name: str = "model"
    """Name of the model in tables."""
    sample_rate: int = 16000
    """Sampling rate in Hz."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    """Log-mel features."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    window_seconds: float = 30.0
    """Longest audio that is recognised as a whole, and the length of the windows of anything longer: what the model
    heard at most in training (within 5 to 30 s), because it knows no positions beyond that."""
    calibration: Calibration = field(default_factory=Calibration)
    """Cost of thresholds."""


class Bundle(NamedTuple):
    """What makes a `Recognizer`.

    Attributes:
      config: front end and architecture.
      params: of the model.
      tokenizer: of its tokens.
      stats: global feature statistics, where the front end uses them.
    """

    config: RecognizerConfig
    params: Params
    tokenizer: Tokenizer
    stats: GlobalStats | None


def save_bundle(bundle: Bundle, path: str | epath.Path, dtype: str = "float32") -> None:
    """Write a bundle; ``dtype="float16"`` halves it.

    The folder is written aside and renamed, so that it is whole or absent; an existing bundle is replaced.

    Raises:
      ValueError: the folder holds something else than a bundle, or the type is another one.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected {' or '.join(DTYPES)}")
    path = epath.Path(path)
    if path.exists() and not (path / "recognizer.json").exists() and any(path.iterdir()):
        raise ValueError(f"{path} holds something that is not a model bundle; choose another folder or empty it")
    temporary = path.parent / (path.name + ".tmp")
    if temporary.exists():
        temporary.rmtree()
    temporary.mkdir(parents=True)
    files.write_text(temporary / "recognizer.json", json.dumps(to_dict(bundle.config), indent=2) + "\n")
    arrays = {f"params/{k}": np.asarray(v).astype(dtype) for k, v in flatten(bundle.params).items()}
    if bundle.stats is not None:
        arrays |= {f"stats/{k}": np.asarray(v, np.float32) for k, v in bundle.stats._asdict().items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(temporary / "params.npz", buffer.getvalue())
    bundle.tokenizer.save(temporary / "tokenizer.model")
    write_manifest(temporary)
    old = path.parent / (path.name + ".old")
    if path.exists():
        old.rmtree(missing_ok=True)  # of a save that was killed
        path.rename(old)
    temporary.rename(path)
    if old.exists():
        old.rmtree()


def load_bundle(path: str | epath.PathLike) -> Bundle:
    """Read the bundle in a folder, or of a run.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: a file is damaged or missing, or the parameters do not fit the stated architecture.
    """
    root = epath.Path(path)
    bundle = root / "model" if (root / "model").exists() else root
    if not (bundle / "recognizer.json").exists():
        if names := sorted(path.parent.parent.name for path in root.glob("*-lambda*/model/recognizer.json")):
            raise FileNotFoundError(f"{root}: a family of runs; give one of them, such as {root / names[0]}")
        if (root / "config.json").exists():
            raise FileNotFoundError(
                f"{root}: this run has no model yet; run train.py with the same workdir to finish it"
            )
        raise FileNotFoundError(f"{root}: neither a finished run nor a model bundle (no recognizer.json)")
    try:
        return _read(bundle)
    except Damaged as damage:
        if bundle == root:
            remedy = "copy or pack the bundle again"
        else:
            remedy = f"delete {bundle} and run train.py as before: it makes the model again from the checkpoints"
        raise Damaged(f"{bundle} is damaged: {damage}; {remedy}") from damage


def _read(bundle: epath.Path) -> Bundle:
    if (bundle / MANIFEST).exists():  # bundles of earlier versions have none
        try:
            check_manifest(bundle)
        except Damaged as damage:
            if str(damage).startswith("recognizer.json"):
                raise Damaged(f"{damage} (if you changed it on purpose, delete {MANIFEST} there)") from damage
            raise
    for name in ("params.npz", "tokenizer.model"):
        if not (bundle / name).exists():
            raise Damaged(f"{name} is missing")
    try:
        config = from_dict(RecognizerConfig, json.loads((bundle / "recognizer.json").read_text()))
    except ValueError as error:
        raise Damaged(f"recognizer.json: {error}") from error
    if config.sample_rate != SAMPLE_RATE:
        raise ValueError(f"{bundle}/recognizer.json: sample_rate={config.sample_rate}: expected {SAMPLE_RATE}")
    try:
        tokenizer = Tokenizer.load(bundle / "tokenizer.model")
    except ValueError as error:
        raise Damaged(str(error).removeprefix(f"{bundle}/")) from error
    try:
        with np.load(io.BytesIO((bundle / "params.npz").read_bytes())) as arrays:
            stored = {k: np.asarray(arrays[k], np.float32) for k in arrays.files}
        flat = {k.removeprefix("params/"): v for k, v in stored.items() if k.startswith("params/")}
        stats = {k.removeprefix("stats/"): v for k, v in stored.items() if k.startswith("stats/")}
        global_stats = GlobalStats(**stats) if stats else None
        params = unflatten(flat)
    except OSError:
        raise
    except Exception as error:  # the readers of zip, zlib and npy raise what they like on damaged bytes
        raise Damaged(f"params.npz cannot be read ({error})") from error
    model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
    expected = flatten(jax.eval_shape(model.init, jax.random.key(0)))
    there, wanted = ({k: tuple(v.shape) for k, v in arrays.items()} for arrays in (flat, expected))
    wrong = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{bundle}/params.npz does not fit recognizer.json and tokenizer.model ({tokenizer.vocab_size} tokens): "
            f"{name} is {there.get(name, 'missing')} there, {wanted.get(name, 'missing')} by them ({len(wrong)} arrays "
            "differ); put the files of one bundle together again"
        )
    return Bundle(config, params, tokenizer, global_stats)
