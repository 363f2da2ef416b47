"""The files of a bundle: what a model states about itself, its arrays, its tokenizer, and the digests of these.

A bundle is a folder, written aside and renamed, so that it is whole or absent. A finished run holds one in
``<run>/model``. Recognisers and language models have bundles that differ in the name of the first file.
"""

import io
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from etils import epath

from i3d_jax import files
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.manifest import NAME as MANIFEST
from i3d_jax.manifest import Damaged, bundle_folder, check_manifest, write_manifest
from i3d_jax.model.encoder import Params
from i3d_jax.model.params import flatten, unflatten
from i3d_jax.schema import from_dict, to_dict

ConfigT = TypeVar("ConfigT")

RECOGNIZER, LANGUAGE_MODEL = "recognizer.json", "language_model.json"
_HELD = {RECOGNIZER: "a recogniser", LANGUAGE_MODEL: "a language model"}
DTYPES = ("float32", "float16")
"""Of the parameters in a bundle; they are loaded as float32."""


def holds(folder: epath.Path) -> str | None:
    """The name of the first file of the bundle in a folder, `RECOGNIZER` or `LANGUAGE_MODEL`; None without one."""
    return next((name for name in _HELD if (folder / name).exists()), None)


def write(
    path: epath.PathLike, name: str, config: Any, arrays: Mapping[str, Params], tokenizer: Tokenizer, dtype: str
) -> None:
    """Write a bundle; an existing one is replaced.

    Args:
      path: its folder.
      name: of the file for ``config``.
      config: what the model states about itself, a dataclass.
      arrays: trees by name, which lead the names of their arrays; an empty one is left out.
      tokenizer: of its tokens.
      dtype: of the arrays in ``params``, one of `DTYPES`.

    Raises:
      ValueError: the folder holds something else than a bundle of this kind, or the type is another one.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected {' or '.join(DTYPES)}")
    path = epath.Path(path).expanduser()
    if path.exists() and not (path / name).exists() and any(path.iterdir()):
        raise ValueError(f"{path} holds something that is not a model bundle; choose another folder or empty it")
    temporary = path.parent / (path.name + ".tmp")
    if temporary.exists():
        temporary.rmtree()
    temporary.mkdir(parents=True)
    files.write_text(temporary / name, json.dumps(to_dict(config), indent=2) + "\n")
    flat = {f"{tree}/{key}": np.asarray(value) for tree, own in arrays.items() for key, value in flatten(own).items()}
    stored = {key: value.astype(dtype) if key.startswith("params/") else value for key, value in flat.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **stored)
    files.write_bytes(temporary / "params.npz", buffer.getvalue())
    tokenizer.save(temporary / "tokenizer.model")
    write_manifest(temporary)
    old = path.parent / (path.name + ".old")
    if path.exists():
        old.rmtree(missing_ok=True)  # of a save that was killed
        path.rename(old)
    temporary.rename(path)
    if old.exists():
        old.rmtree()


def read(
    path: epath.PathLike, name: str, kind: type[ConfigT]
) -> tuple[epath.Path, ConfigT, dict[str, Params], Tokenizer]:
    """Read the bundle in a folder, or of a run.

    Args:
      path: its folder, or the run's.
      name: of the file for the configuration.
      kind: of the configuration.

    Returns:
      The folder of the bundle, its configuration, its trees by name in float32, and its tokenizer.

    Raises:
      FileNotFoundError: no finished model there.
      ValueError: it holds another kind of model, or a file is damaged or missing.
    """
    root, bundle = epath.Path(path).expanduser(), bundle_folder(path)
    if not (bundle / name).exists():
        if (other := holds(bundle)) is not None:
            raise ValueError(f"{root}: this is {_HELD[other]}, expected {_HELD[name]}; give another folder")
        if name == RECOGNIZER and (names := sorted(x.parent.parent.name for x in root.glob(f"*-lambda*/model/{name}"))):
            raise FileNotFoundError(f"{root}: a family of runs; give one of them, such as {root / names[0]}")
        if (root / "config.json").exists():
            raise FileNotFoundError(
                f"{root}: this run has no model yet; run train.py with the same workdir to finish it"
            )
        raise FileNotFoundError(f"{root}: neither a finished run nor a model bundle (no {name})")
    try:
        return bundle, *_read(bundle, name, kind)
    except Damaged as damage:
        if bundle == root:
            remedy = "copy or pack the bundle again"
        else:
            remedy = f"delete {bundle} and run train.py as before: it makes the model again from the checkpoints"
        raise Damaged(f"{bundle} is damaged: {damage}; {remedy}") from damage


def _read(bundle: epath.Path, name: str, kind: type[ConfigT]) -> tuple[ConfigT, dict[str, Params], Tokenizer]:
    if (bundle / MANIFEST).exists():  # bundles of earlier versions have none
        try:
            check_manifest(bundle)
        except Damaged as damage:
            if str(damage).startswith(name):
                raise Damaged(f"{damage} (if you changed it on purpose, delete {MANIFEST} there)") from damage
            raise
    for needed in ("params.npz", "tokenizer.model"):
        if not (bundle / needed).exists():
            raise Damaged(f"{needed} is missing")
    try:
        config = from_dict(kind, json.loads((bundle / name).read_text()))
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from error
    try:
        tokenizer = Tokenizer.load(bundle / "tokenizer.model")
    except ValueError as error:
        raise Damaged(str(error).removeprefix(f"{bundle}/")) from error
    try:
        with np.load(io.BytesIO((bundle / "params.npz").read_bytes())) as arrays:
            trees = unflatten({key: np.asarray(arrays[key], np.float32) for key in arrays.files})
    except OSError:
        raise
    except Exception as error:  # the readers of zip, zlib and npy raise what they like on damaged bytes
        raise Damaged(f"params.npz cannot be read ({error})") from error
    return config, trees, tokenizer


def check_shapes(bundle: epath.Path, name: str, params: Params, expected: Params, tokenizer: Tokenizer) -> None:
    """Compare the parameters of a bundle with those that its configuration and tokenizer ask for.

    Raises:
      ValueError: they differ; the first array that does is named.
    """
    there, wanted = ({k: tuple(v.shape) for k, v in flatten(tree).items()} for tree in (params, expected))
    wrong = sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{bundle}/params.npz does not fit {name} and tokenizer.model ({tokenizer.vocab_size} tokens): "
            f"{first} is {there.get(first, 'missing')} there, {wanted.get(first, 'missing')} by them ({len(wrong)} "
            "arrays differ); put the files of one bundle together again"
        )
