"""What utterances are like: length, speaking rate and noise level, against which gates are explained."""

from collections.abc import Mapping

import numpy as np

from i3d_jax.analysis.regression import Regression, regress
from i3d_jax.analysis.utterances import UtteranceTable
from i3d_jax.data.corpora import Corpus

LENGTH, RATE, SNR = "length (s)", "speaking rate (words/s)", "SNR (dB)"
_FRAME_SECONDS = 0.025
_LEAST_FRAMES = 10
_QUIET, _LOUD = 10, 50  # percentiles of the energy of frames


def estimate_snr(waveform: np.ndarray, sample_rate: int) -> float:
    """Signal-to-noise ratio in dB, without a clean reference.

    The quietest tenth of the frames (25 ms) is taken for noise and the louder half for speech with noise. Recordings
    without pauses look noisier than they are: it orders recordings of one kind, and measures none.

    Args:
      waveform: [S] float.
      sample_rate: in Hz.

    Raises:
      ValueError: shorter than ten frames.
    """
    size = round(_FRAME_SECONDS * sample_rate)
    count = len(waveform) // size
    if count < _LEAST_FRAMES:
        least = _LEAST_FRAMES * size
        raise ValueError(f"{len(waveform)} samples are too few to tell speech from noise; expected {least} or more")
    energy = np.mean(np.asarray(waveform[: count * size], np.float64).reshape(count, size) ** 2, axis=1) + 1e-12
    quiet, loud = np.percentile(energy, [_QUIET, _LOUD])
    noise = energy[energy <= quiet].mean()
    speech = max(energy[energy >= loud].mean() - noise, 1e-3 * noise)
    return float(10 * np.log10(speech / noise))


def noise_levels(corpus: Corpus) -> np.ndarray:
    """`estimate_snr` of each utterance: [B] dB. Reads all audio.

    Raises:
      ValueError: an utterance is too short for it; it is named before any audio is read.
    """
    shortest = min(corpus.utterances, key=lambda utterance: utterance.num_samples)
    if shortest.num_samples < _LEAST_FRAMES * round(_FRAME_SECONDS * corpus.sample_rate):
        raise ValueError(
            f"{corpus.name}: utterance {shortest.id} lasts {shortest.num_samples / corpus.sample_rate:.2f} s, too "
            f"short to estimate its noise level (expected {_LEAST_FRAMES * _FRAME_SECONDS:.2f} s); leave out --audio"
        )
    return np.array([estimate_snr(corpus.load_audio(i), corpus.sample_rate) for i in range(len(corpus))])


def utterance_covariates(table: UtteranceTable, snr: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Length and speaking rate of each utterance, and its SNR where that is known ([B] dB, in the table's order)."""
    seconds = np.asarray(table.audio_seconds, np.float64)
    found = {LENGTH: seconds, RATE: table.words / np.maximum(seconds, 1e-3)}
    return found if snr is None else found | {SNR: np.asarray(snr, np.float64)}


def explain_gates(
    table: UtteranceTable, covariates: Mapping[str, np.ndarray], *, samples: int = 1000, seed: int = 0
) -> dict[str, Regression | str]:
    """Regressions of depth on what utterances are like, and on the speaker.

    Targets: executed layers, and the sum of p(execute) / M, which varies where decisions do not; over all branches and
    for each one. Speakers are clusters where there are several, and have dummies where there are at least three
    utterances a speaker on average.

    Returns:
      Target -> its regression, or why there is none (a target that is the same for every utterance).
    """
    speakers = len(set(table.speakers))
    clusters = table.speakers if speakers > 1 else None
    groups = table.speakers if 1 < speakers <= len(table) // 3 else None
    targets = {"executed layers": table.executed_layers, "expected layers": table.expected_layers}
    for m, name in enumerate(table.gate_names):
        targets[f"expected {name.upper()} blocks"] = table.probabilities[:, :, m].sum(axis=1)
    found: dict[str, Regression | str] = {}
    for name, target in targets.items():
        try:
            found[name] = regress(
                target, covariates, name=name, groups=groups, clusters=clusters, samples=samples, seed=seed
            )
        except ValueError as error:
            found[name] = str(error)
    return found
