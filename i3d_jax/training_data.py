"""What a training reads: corpora, tokenizer, labels, the plan of the batches, statistics of the features."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from i3d_jax.audio.frontend import GlobalStats, accumulate_stats, finish_stats, log_mel, num_frames
from i3d_jax.data.batching import BatchPlanner
from i3d_jax.data.corpora import Corpus, load_corpus, reject_infeasible
from i3d_jax.data.loader import iterate_eval
from i3d_jax.data.token_sequences import TokenSequences
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import ExperimentConfig
from i3d_jax.inference.evaluation import check_lengths, evaluation_planner
from i3d_jax.model.asr import ASRModel
from i3d_jax.progress import log, progress


@dataclass(frozen=True)
class TrainingData:
    """What a training reads: corpora, tokenizer, label ids of the training set, and its plan."""

    train: Corpus
    dev: Corpus
    tokenizer: Tokenizer
    labels: TokenSequences
    planner: BatchPlanner

    def digest(self) -> str:
        """SHA-256 of ids, lengths and labels of the training set: with the settings, they determine every batch."""
        digest = hashlib.sha256()
        for u, ids in zip(self.train.utterances, self.labels, strict=True):
            line = f"{u.id} {u.num_samples} {' '.join(map(str, ids))}\n"
            digest.update(line.encode(errors="backslashreplace"))
        return digest.hexdigest()

    @property
    def window_seconds(self) -> float:
        """The `RecognizerConfig.window_seconds` of a model that is trained on this: the longest row, in 5 to 30 s."""
        return min(max(round(self.planner.longest / self.train.sample_rate, 2), 5.0), 30.0)


def prepare_data(config: ExperimentConfig, tokenizer: Tokenizer | None) -> TrainingData:
    """Load the corpora, train the tokenizer unless one is given, and plan the batches."""
    train, dev = load_corpus(config.data, "train"), load_corpus(config.data, "dev")
    check_lengths(dev, config.evaluation)  # here: not after the first epoch
    if tokenizer is None:
        tokenizer = Tokenizer.train([u.text for u in train.utterances], config.tokenizer)
    model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)

    def frames(num_samples: int) -> int:
        return int(model.num_encoder_frames(int(num_frames(config.frontend, num_samples))))

    train, labels = reject_infeasible(
        train,
        TokenSequences(tokenizer.encode(u.text) for u in train.utterances),
        frames,
        config.augment.speeds,
        joined=config.augment.concatenate_seconds > 0,
    )
    for corpus in (train, dev):
        log(corpus.describe())
    planner = BatchPlanner(
        np.array([u.num_samples for u in train.utterances]),
        labels.counts,
        config.batching,
        speeds=config.augment.speeds,
        seed=config.data_seed,
        sample_rate=train.sample_rate,
        concatenate_seconds=config.augment.concatenate_seconds,
    )
    return TrainingData(train, dev, tokenizer, labels, planner)


def global_stats(config: ExperimentConfig, corpus: Corpus) -> GlobalStats:
    """Mean and standard deviation of the features of a corpus."""
    planner = evaluation_planner(corpus, config.evaluation, config.batching)
    features = jax.jit(partial(log_mel, config.frontend))
    total: Any = None
    batches = iterate_eval(corpus, [[]] * len(corpus), planner)
    for _, batch in progress(batches, "feature statistics", total=planner.steps_in_epoch(0)):
        total = accumulate_stats(total, *features(batch.waveform, batch.num_samples))
    return finish_stats(total)
