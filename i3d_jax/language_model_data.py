"""What the training of a language model reads: the pieces of a recogniser, sentences for training and for dev."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from i3d_jax import files
from i3d_jax.data.corpora import load_corpus
from i3d_jax.data.sentences import Sentences, Source, TextConfig, read_sentences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import ExperimentConfig, load_saved_config
from i3d_jax.inference.bundle_files import holds
from i3d_jax.manifest import bundle_folder
from i3d_jax.progress import log


class LanguageModelData(NamedTuple):
    """What a training reads.

    Attributes:
      train: sentences to learn.
      dev: sentences that checkpoints are selected by.
    """

    train: Sentences
    dev: Sentences


def load_pieces(text: TextConfig) -> Tokenizer:
    """The tokenizer of the recogniser: of its run, finished or begun, or, without transcripts, of a bundle.

    Raises:
      FileNotFoundError: there is no run or bundle, or it has no tokenizer yet.
      ValueError: transcripts are wanted of a run that is of a language model, or the tokenizer is damaged.
    """
    run = _folder(text)
    if text.transcripts:
        _settings(run)
    for folder in (run, bundle_folder(run)):
        if (folder / "tokenizer.model").exists():
            return Tokenizer.load(folder / "tokenizer.model")
    if (run / "config.json").exists():
        raise FileNotFoundError(
            f"text.run={text.run}: it has no tokenizer.model yet; begin its training, which makes one first"
        )
    raise FileNotFoundError(
        f"text.run={text.run}: no tokenizer.model there; expected the run of a recogniser, or a bundle"
    )


def load_sentences(text: TextConfig, tokenizer: Tokenizer) -> LanguageModelData:
    """Reads and encodes all text.

    Raises:
      FileNotFoundError: a text file, or a split of the recogniser's corpus, is missing.
      ValueError: a file is no text in UTF-8, or there are no sentences.
    """
    paths = {split: [_text_file(f"text.{split}", name) for name in getattr(text, split)] for split in ("train", "dev")}
    found = []
    for split, own in paths.items():
        sources = [_transcripts(text, split)] if text.transcripts else []
        sources += [Source(path.name, lambda path=path: read_sentences(path)) for path in own]  # type: ignore[misc]
        sentences = Sentences(sources, tokenizer.encode, text.max_tokens if split == "train" else None)
        log(f"{split}: {sentences.describe()}")
        found.append(sentences)
    return LanguageModelData(*found)


def _folder(text: TextConfig) -> epath.Path:
    return epath.Path(os.path.expandvars(text.run)).expanduser()


def _settings(run: epath.Path) -> ExperimentConfig:
    if not (run / "config.json").exists() and holds(bundle_folder(run)):
        raise FileNotFoundError(
            f"text.run: {run} is a bundle, which names no transcripts; give --no-text.transcripts with --text.train "
            "and --text.dev, or the run that the bundle was made of"
        )
    try:
        return load_saved_config(run / "config.json")
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"text.run: {error}") from error


def _transcripts(text: TextConfig, split: str) -> Source:
    corpus = load_corpus(_settings(_folder(text)).data, split)
    texts = [utterance.text for utterance in corpus.utterances]

    def sentences() -> Iterator[str]:
        return iter(texts)

    return Source(f"transcripts of {corpus.name}", sentences)


def _text_file(key: str, name: str) -> epath.Path:
    path = epath.Path(os.path.expandvars(name)).expanduser()
    if not files.is_regular_file(path):
        raise FileNotFoundError(f"{key}: {path} is no file; expected a text file with one sentence a line")
    return path
