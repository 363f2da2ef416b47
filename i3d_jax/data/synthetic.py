"""A tiny in-memory corpus for tests: 'words' made of tones, learnable in seconds."""

from collections.abc import Iterator

import numpy as np

SPLITS = {"train": 64, "dev": 16, "test": 16}
"""Utterances of each split."""

# word -> the tones (Hz) it glides through
WORDS = {
    "LOW": (300.0, 300.0),
    "HIGH": (2000.0, 2000.0),
    "UP": (500.0, 1500.0),
    "DOWN": (1500.0, 500.0),
    "HILL": (700.0, 1200.0, 700.0),
}


def tone_words(
    split: str,
    *,
    num_utterances: int | None = None,
    max_words: int = 4,
    word_seconds: tuple[float, float] = (0.2, 0.3),
    sample_rate: int = 16000,
    seed: int = 0,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields utterances of random words.

    Args:
      split: name of the split; another name gives other utterances.
      num_utterances: how many; None takes the size in `SPLITS`.
      max_words: an utterance has 1 to `max_words` words.
      word_seconds: shortest and longest word.
      sample_rate: in Hz.
      seed: the utterances are a function of it, the split and the sizes.

    Yields:
      (id ``<speaker>-<split>-<number>``, text, [S] float32 waveform in [-1, 1]).
    """
    rng = np.random.default_rng([seed, *split.encode()])
    names = list(WORDS)
    for index in range(SPLITS[split] if num_utterances is None else num_utterances):
        words = [names[i] for i in rng.integers(len(names), size=rng.integers(1, max_words + 1))]
        speaker = int(rng.integers(4))
        pieces = [np.zeros(sample_rate // 20)]
        for word in words:
            length = int(rng.uniform(*word_seconds) * sample_rate)
            tones = np.array(WORDS[word]) * (0.9 + 0.07 * speaker)
            pitch = np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(tones)), tones)
            pieces.append(0.3 * np.hanning(length) * np.sin(2 * np.pi * np.cumsum(pitch) / sample_rate))
            pieces.append(np.zeros(sample_rate // 20))
        waveform = np.concatenate(pieces)
        waveform += 0.003 * rng.standard_normal(waveform.size)
        yield f"{speaker}-{split}-{index:03d}", " ".join(words), waveform.astype(np.float32)
