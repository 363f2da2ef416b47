"""Corpora: utterances with their transcripts, lengths and audio.

Four sources give the same `Corpus`: a folder in LibriSpeech layout, a prepared TFDS data set, the generated demo
corpus, and in-memory tones for tests. What cannot be used is never silently lost: it is counted under a reason in
`Corpus.rejected`.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from etils import epath

from i3d_jax.audio import io as audio_io
from i3d_jax.data import synthetic
from i3d_jax.data.demo_corpus import DemoCorpusConfig, ensure_demo_corpus
from i3d_jax.data.folder import read_folder, some
from i3d_jax.data.records import RecordAudio
from i3d_jax.data.tfds_source import read_prepared
from i3d_jax.data.token_sequences import TokenSequences

TFDS = "tfds:"
"""What the sources of prepared data sets begin with."""

TOO_SHORT = "too short"
TOO_LONG = "too long"
DUPLICATE = "duplicate id"
INFEASIBLE = "too few frames for CTC"


@dataclass(frozen=True)
class DataConfig:
    """Where the speech comes from."""

    source: str = "demo"
    """``demo`` (generated speech), ``synthetic`` (in-memory tones, for tests), a folder in LibriSpeech layout, or a
    data set that ``python -m i3d_jax.cli.prepare`` made: ``tfds:librispeech`` (a name in ``tfds_dir``), ``tfds:/path``.
    Environment variables are expanded: ``${I3D_SPEECH_DIR}/an4``."""
    train: str = "train"
    """Training split: a sub-folder of the source, a list of audio paths relative to it (``*.txt``), or several of
    them joined by ``+``. Of a ``tfds:`` source: splits, sliced if wished, ``train-clean-100[:10%]``."""
    dev: str = "dev"
    """Development split, written like ``train``; selects checkpoints."""
    test: str = "test"
    """Test split, written like ``train``; its files are checked before a training, which never uses them."""
    sample_rate: int = 16000
    """Sampling rate in Hz; audio at another rate is resampled."""
    min_seconds: float = 0.1
    """Shorter utterances are rejected and counted."""
    max_seconds: float = 30.0
    """Longer training utterances are rejected and counted."""
    verify: bool = True
    """Decode every audio file of a folder once, when it is first read, and count what is truncated, damaged or holds
    NaN; the outcome is cached until a file changes. Off reads headers only: a damaged file then stops the run."""
    cache_dir: str = "~/.cache/i3d_jax"
    """Folder of generated corpora and cached durations."""
    tfds_dir: str = ""
    """Folder of the data sets that ``tfds:`` names; empty: ``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``."""
    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """The generated corpus (``source=demo``)."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance.

    Attributes:
      id: unique within its corpus.
      text: transcript, words separated by single spaces.
      num_samples: length in samples at the sampling rate of the corpus.
      speaker: speaker id.
      audio: path of the audio file, a record to read it from, or the samples themselves ([S] float32 at the rate of the
        corpus).
    """

    id: str
    text: str
    num_samples: int
    speaker: str
    audio: str | RecordAudio | np.ndarray


@dataclass(frozen=True)
class Corpus:
    """The usable utterances of a split, and the ids of those that are not.

    Attributes:
      name: source and split, for people.
      utterances: in a fixed order.
      sample_rate: in Hz.
      rejected: reason -> ids of the utterances left out for it.
    """

    name: str
    utterances: tuple[Utterance, ...]
    sample_rate: int
    rejected: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def hours(self) -> float:
        """Hours of speech, rejected utterances not included."""
        return sum(u.num_samples for u in self.utterances) / self.sample_rate / 3600

    def load_audio(self, index: int) -> np.ndarray:
        """[S] float32 waveform of an utterance, at the rate of the corpus; errors of a bad file name it."""
        audio = self.utterances[index].audio
        if isinstance(audio, RecordAudio):
            return audio.read(self.sample_rate)
        return audio if isinstance(audio, np.ndarray) else audio_io.read_audio(audio, self.sample_rate)

    def describe(self) -> str:
        """One line: size, speakers, and how many utterances were rejected, why."""
        speakers = len({u.speaker for u in self.utterances})
        line = f"{self.name}: {len(self)} utterances, {self.hours:.2f} h, {speakers} speakers"
        reasons = [f"{len(ids)} {reason} ({some(ids, 2)})" for reason, ids in self.rejected.items()]
        return f"{line}; rejected: {', '.join(reasons)}" if reasons else line

    def reject(self, reason: str, indices: Collection[int]) -> "Corpus":
        """The corpus without the utterances at `indices`, whose ids are counted under `reason`."""
        if not indices:
            return self
        dropped = frozenset(indices)
        ids = [self.utterances[i].id for i in sorted(dropped)]
        return replace(
            self,
            utterances=tuple(u for i, u in enumerate(self.utterances) if i not in dropped),
            rejected={**self.rejected, reason: [*self.rejected.get(reason, []), *ids]},
        )


def load_corpus(config: DataConfig, split: str) -> Corpus:
    """Loads a split.

    How a folder is read: see `i3d_jax.data.folder`; a prepared data set: see `i3d_jax.data.tfds_source`. The part of
    an id before the first ``-`` is the speaker.

    Args:
      config: sources and filters. ``min_seconds`` holds for every split, ``max_seconds`` only for ``split="train"``.
      split: ``train``, ``dev`` or ``test``, looked up in `config`; or directly what could stand there, such as
        ``test-other``, ``splits/test.txt`` or ``dev-clean+dev-other``.

    Raises:
      FileNotFoundError: the source or the split is missing, or holds no audio at all.
      ValueError: an environment variable is unset, a transcript is not UTF-8, or every utterance was rejected.
      OSError: a folder, transcript or list cannot be read, or the cache cannot be written.
    """
    wanted = {"train": config.train, "dev": config.dev, "test": config.test}.get(split, split)
    if config.source == "synthetic":
        corpus = _synthetic_split(wanted, config)
    elif config.source.startswith(TFDS):
        source = _expand_variables(config.source).removeprefix(TFDS)
        tfds_dir = _expand_variables(config.tfds_dir, "data.tfds_dir")
        name, stored, rejected = read_prepared(source, wanted, tfds_dir, config.cache_dir)
        rate = config.sample_rate
        utterances = [
            Utterance(s.id, s.text, audio_io.resampled_length(s.samples, s.rate, rate), s.speaker, s.audio)
            for s in stored
        ]
        corpus = _unique(f"{name}/{wanted}", utterances, rate, rejected)
    else:
        demo = config.source == "demo"
        root = ensure_demo_corpus(config.demo, config.cache_dir) if demo else _source_folder(config.source)
        recordings, rejected = read_folder(root, wanted, config.cache_dir, config.verify)
        rate = config.sample_rate
        utterances = [
            Utterance(
                id=r.path.stem,
                text=r.text,
                num_samples=audio_io.resampled_length(r.samples, r.rate, rate),
                speaker=_speaker(r.path.stem),
                audio=str(r.path),
            )
            for r in recordings
        ]
        corpus = _unique(f"{'demo' if demo else root.name}/{wanted}", utterances, rate, rejected)
    shortest = max(config.min_seconds * config.sample_rate, 1)
    corpus = corpus.reject(TOO_SHORT, [i for i, u in enumerate(corpus.utterances) if u.num_samples < shortest])
    if split == "train":
        longest = config.max_seconds * config.sample_rate
        corpus = corpus.reject(TOO_LONG, [i for i, u in enumerate(corpus.utterances) if u.num_samples > longest])
    if not corpus.utterances:
        raise ValueError(f"no utterance is left of {corpus.describe()}")
    return corpus


def reject_infeasible(
    corpus: Corpus,
    labels: Sequence[Sequence[int]],
    num_frames: Callable[[int], int],
    speeds: Iterable[float] = (1.0,),
    *,
    joined: bool = False,
) -> tuple[Corpus, TokenSequences]:
    """Drops utterances with more labels than CTC can place, which would give a huge loss and useless gradients.

    CTC needs a frame for each label and one more between equal neighbours.

    Args:
      corpus: training corpus.
      labels: token ids of each utterance.
      num_frames: samples -> encoder frames.
      speeds: speed factors of the augmentation; the fastest leaves the fewest frames.
      joined: utterances may be joined in a row; where they meet, neighbours may be equal.

    Returns:
      The feasible part of the corpus, with the others under the reason `INFEASIBLE`, and its labels.

    Raises:
      ValueError: `labels` and the corpus differ in length, or nothing is feasible.
    """
    if len(labels) != len(corpus):
        raise ValueError(f"{corpus.name}: {len(labels)} label sequences for {len(corpus)} utterances")
    fastest = max(speeds)
    infeasible = set()
    for i, (utterance, ids) in enumerate(zip(corpus.utterances, labels, strict=True)):
        repeats = sum(a == b for a, b in zip(ids, ids[1:], strict=False))
        if num_frames(audio_io.num_samples_after_speed(utterance.num_samples, fastest)) < len(ids) + repeats + joined:
            infeasible.add(i)
    kept = corpus.reject(INFEASIBLE, infeasible)
    if not kept.utterances:
        raise ValueError(f"no utterance has enough frames for its labels in {kept.describe()}; use larger pieces")
    return kept, TokenSequences(ids for i, ids in enumerate(labels) if i not in infeasible)


def _synthetic_split(wanted: str, config: DataConfig) -> Corpus:
    utterances: list[Utterance] = []
    for name in wanted.split("+"):
        if name not in synthetic.SPLITS:
            raise ValueError(f"the synthetic corpus has the splits {some(synthetic.SPLITS)}, not {name!r}")
        for key, text, samples in synthetic.tone_words(name, sample_rate=config.sample_rate):
            utterances.append(Utterance(key, text, samples.size, _speaker(key), samples))
    return _unique(f"synthetic/{wanted}", utterances, config.sample_rate, {})


def _unique(name: str, utterances: Iterable[Utterance], rate: int, rejected: dict[str, list[str]]) -> Corpus:
    """A corpus of the first utterance of each id."""
    rejected = dict(rejected)
    kept: dict[str, Utterance] = {}
    for utterance in utterances:
        if utterance.id in kept:
            rejected.setdefault(DUPLICATE, []).append(utterance.id)
        else:
            kept[utterance.id] = utterance
    return Corpus(name, tuple(kept.values()), rate, rejected)


def _speaker(utterance_id: str) -> str:
    return utterance_id.split("-")[0]


def _expand_variables(text: str, key: str = "data.source") -> str:
    for bare, braced in re.findall(r"\$(?:(\w+)|\{([^}]*)\})", text):
        if (bare or braced) not in os.environ:
            name = bare or braced
            raise ValueError(f"{key} = {text!r}: the environment variable {name} is not set; export {name}=...")
    return os.path.expandvars(text)


def _source_folder(source: str) -> epath.Path:
    root = epath.Path(_expand_variables(source)).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.source = {source!r}: there is no folder {root}; give 'demo', 'synthetic', 'tfds:...' or a "
            "folder in LibriSpeech layout (<speaker>/<chapter>/<id>.flac beside <speaker>-<chapter>.trans.txt)"
        )
    return root
