"""Pack a finished run into a small bundle: ``python -m i3d_jax.cli.bundle RUN DESTINATION --dtype=float16``.

``i3d_jax.load(DESTINATION)`` reads it. ``--sample`` adds a recording of the test split with its transcript. Runs of
language models are packed too, for ``--lm=DESTINATION`` of ``eval.py`` and others.
"""

import io
from dataclasses import dataclass
from typing import Annotated, Literal

import soundfile
import tyro
from etils import epath

from i3d_jax import files
from i3d_jax.data.corpora import load_corpus
from i3d_jax.experiment import load_saved_config, parse_flags, run_program
from i3d_jax.inference.bundle_files import LANGUAGE_MODEL, holds
from i3d_jax.inference.language_model_bundle import load_language_model, save_language_model
from i3d_jax.inference.recognizer import load
from i3d_jax.manifest import bundle_folder


@dataclass(frozen=True)
class BundleFlags:
    """Flags of the bundle command."""

    run: Annotated[str, tyro.conf.Positional]
    """Finished run directory."""
    destination: Annotated[str, tyro.conf.Positional]
    """Folder to write; replaced when it exists."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored parameters."""
    sample: bool = False
    """Add ``sample.flac`` and ``sample.txt``: the median-length utterance of the test split (recognisers)."""


def main(argv: list[str]) -> None:
    """Write the bundle and say how large it is."""
    flags = parse_flags(argv, BundleFlags, description=__doc__ or "")
    destination = epath.Path(flags.destination).expanduser()
    run = epath.Path(flags.run).expanduser()
    if holds(bundle_folder(run)) == LANGUAGE_MODEL:
        if flags.sample:
            raise ValueError(f"--sample: {run} is a language model, which has no recordings; leave --sample out")
        save_language_model(load_language_model(run), destination, flags.dtype)
    else:
        load(run).save(destination, flags.dtype)
    if flags.sample:
        corpus = load_corpus(load_saved_config(run / "config.json").data, "test")
        order = sorted(range(len(corpus)), key=lambda i: corpus.utterances[i].num_samples)
        index = order[len(order) // 2]
        buffer = io.BytesIO()
        soundfile.write(buffer, corpus.load_audio(index), corpus.sample_rate, format="FLAC")
        files.write_bytes(destination / "sample.flac", buffer.getvalue())
        files.write_text(destination / "sample.txt", corpus.utterances[index].text + "\n")
    size = sum(file.stat().length for file in destination.iterdir())
    print(f"{destination}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_program(main)
