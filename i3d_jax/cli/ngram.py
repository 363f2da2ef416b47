"""Train an n-gram language model: ``python -m i3d_jax.cli.ngram RUN_or_TEXT OUT.arpa --order=3``.

From a run it takes the training transcripts, from a text file one sentence a line. ``eval.py --decoder=prefix_beam
--lm=OUT.arpa`` decodes with it. See docs/decoding.md.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from etils import epath

from i3d_jax import files
from i3d_jax.data.corpora import load_corpus
from i3d_jax.data.ngram_training import train_ngrams, write_ngrams
from i3d_jax.data.sentences import read_sentences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import load_saved_config, parse_flags, run_program
from i3d_jax.progress import log


@dataclass(frozen=True)
class NgramFlags:
    """Flags of the n-gram command."""

    source: Annotated[str, tyro.conf.Positional]
    """Run directory, or a text file with one sentence a line."""
    output: Annotated[str, tyro.conf.Positional]
    """ARPA file to write."""
    order: int = 3
    """Longest n-grams, 2 to 6."""
    unit: Literal["word", "piece"] = "word"
    """``word``, or the ``piece`` of a tokenizer: quicker to decode with, and for texts with few repeated words."""
    tokenizer: str = ""
    """``tokenizer.model`` for the pieces of a text file; a run has its own."""
    lexicon: str = ""
    """Further file to write: the words of these texts, in order, one a line, for ``eval.py --lexicon``."""


def main(argv: list[str]) -> None:
    """Train and write."""
    flags = parse_flags(argv, NgramFlags, description=__doc__ or "")
    source, output = (epath.Path(path).expanduser() for path in (flags.source, flags.output))
    texts = _texts(source)
    vocabulary: list[str] = []
    sentences = [text.split() for text in texts]
    if flags.unit == "piece":
        if not flags.tokenizer and not source.is_dir():
            raise ValueError(f"--unit=piece: {source} is a text file, give the tokenizer's model: --tokenizer=FILE")
        file = epath.Path(flags.tokenizer).expanduser() if flags.tokenizer else source / "tokenizer.model"
        tokenizer = Tokenizer.load(file)
        reserved = {tokenizer.blank_id, tokenizer.unk_id, tokenizer.sos_eos_id}
        vocabulary = [tokenizer.piece(i) for i in range(tokenizer.vocab_size) if i not in reserved]
        sentences = [[tokenizer.piece(i) for i in tokenizer.encode(text) if i not in reserved] for text in texts]
    elif flags.tokenizer:
        raise ValueError("--tokenizer is for --unit=piece")
    model = train_ngrams(sentences, flags.order, vocabulary)
    write_ngrams(output, model)
    if flags.lexicon:
        words = sorted({word for text in texts for word in text.split()})
        files.write_text(epath.Path(flags.lexicon).expanduser(), "\n".join([*words, ""]))
        log(f"{len(words)} words; written: {flags.lexicon}")
    sizes = [line.partition("=")[2] for line in model.split("\n\n")[0].splitlines() if "=" in line]
    log(f"{len(sentences)} sentences, {'/'.join(sizes)} n-grams of orders 1 to {flags.order}; written: {output}")


def _texts(source: epath.Path) -> list[str]:
    """The training transcripts of a run, or the lines of a text file.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: the file is not UTF-8.
    """
    if (source / "config.json").exists():
        config = load_saved_config(source / "config.json")
        corpus = load_corpus(config.data, "train")
        log(corpus.describe())
        return [utterance.text for utterance in corpus.utterances]
    if not source.is_file():
        raise FileNotFoundError(f"{source}: neither a run directory (no config.json) nor a text file")
    return [text for text in read_sentences(source) if text]


if __name__ == "__main__":
    run_program(main)
