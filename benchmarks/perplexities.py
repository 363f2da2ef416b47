"""Dev perplexity of language model runs beside n-gram models of the same pieces and the same training text.

Command: ``python benchmarks/perplexities.py runs/lm_an4 --orders 2 3 4 5``; wants flashlight-text, whose KenLM reads
the n-gram models. Perplexities are per token and per word, ends of sentences included. Nothing is timed.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

from etils import epath

sys.path.insert(0, str(Path(__file__).parents[1]))

from i3d_jax.data.ngram_training import train_ngrams, write_ngrams
from i3d_jax.data.sentences import Sentences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import load_saved_config
from i3d_jax.inference.language_model_bundle import load_language_model
from i3d_jax.inference.ngram import NGramModel
from i3d_jax.inference.perplexity import Perplexity, perplexity
from i3d_jax.language_model_data import load_sentences
from i3d_jax.language_model_experiment import LanguageModelExperiment


def of_ngrams(train: Sentences, dev: Sentences, tokenizer: Tokenizer, order: int) -> Perplexity:
    """Perplexity of the model that ``python -m i3d_jax.cli.ngram --unit=piece`` makes."""
    reserved = {tokenizer.blank_id, tokenizer.unk_id, tokenizer.sos_eos_id}
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size) if i not in reserved]
    texts = ([tokenizer.piece(i) for i in ids if i not in reserved] for ids in train.tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pieces.arpa"
        write_ngrams(path, train_ngrams(texts, order, pieces))
        language = NGramModel(tokenizer, path).kenlm
    total = 0.0
    for ids in dev.tokens:
        state = language.start(False)
        for token in ids:
            state, score = language.score(state, token)
            total -= score
        total -= language.finish(state)[1]
    return Perplexity(total * math.log(10), len(dev), int(dev.tokens.counts.sum()), dev.words)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="finished language model runs of the same text and pieces")
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 3, 4, 5])
    flags = parser.parse_args()
    config = load_saved_config(epath.Path(flags.runs[0]) / "config.json", LanguageModelExperiment)
    first = load_language_model(flags.runs[0])
    train, dev = load_sentences(config.text, first.tokenizer)
    found = {f"{order}-grams of pieces": of_ngrams(train, dev, first.tokenizer, order) for order in flags.orders}
    for run in flags.runs:
        bundle = load_language_model(run)
        if bundle.tokenizer.digest != first.tokenizer.digest:
            raise SystemExit(f"{run}: other pieces than those of {flags.runs[0]}; compare it by itself")
        planner = dev.planner(config.batching, shuffle=False)
        found[bundle.config.name] = perplexity(bundle.model, bundle.params, dev, planner)
    print("| model | dev perplexity per token | per word |")
    print("| --- | --- | --- |")
    for name, one in found.items():
        print(f"| {name} | {one.token:.2f} | {one.word:.2f} |")


if __name__ == "__main__":
    main()
