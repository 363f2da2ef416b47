"""A small test set for notebooks: demo sentences that the model in ``docs/demo_model`` was not trained on."""

from etils import epath

from i3d_jax.data.corpora import Corpus, DataConfig, load_corpus
from i3d_jax.data.demo_corpus import DemoCorpusConfig, ensure_demo_corpus, sentences

_SEED = 11  # not that of the demo run
_SPARE = 2  # utterances made for each one kept, so that those the training has too can be left out


def demo_test_set(utterances: int = 60, cache_dir: epath.PathLike = "~/.cache/i3d_jax") -> Corpus:
    """Generated speech (a few seconds the first time, cached then) of sentences that the demo run never trained on.

    Voices, noise and grammar are those of its training set; sentences that are in it are left out.

    Args:
      utterances: how many, 3 or more: fewer of one speaker tell nothing.
      cache_dir: where the demo corpus is kept.

    Raises:
      ValueError: fewer than 3.
      ModuleNotFoundError: ``espeakng-loader`` is not installed.
    """
    if utterances < 3:
        raise ValueError(f"utterances={utterances}: expected 3 or more")
    wanted = DemoCorpusConfig(1, 1, _SPARE * utterances, _SEED)
    folder = ensure_demo_corpus(wanted, cache_dir)
    corpus = load_corpus(DataConfig(source=str(folder), cache_dir=str(cache_dir)), "test")
    trained = DemoCorpusConfig()
    known = set(sentences(trained.train_utterances, trained.seed))
    fresh = [i for i, u in enumerate(corpus.utterances) if u.text not in known]
    # Spread over the speakers, by which the corpus is ordered.
    kept = {fresh[round(k * (len(fresh) - 1) / (utterances - 1))] for k in range(utterances)}
    left_out = [i for i in range(len(corpus)) if i not in kept]
    chosen = corpus.reject("not drawn", left_out)
    return Corpus("demo test set", chosen.utterances, corpus.sample_rate)
