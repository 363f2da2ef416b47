"""Reading audio files, resampling and speed perturbation (host side, numpy)."""

import io
from fractions import Fraction
from os import PathLike
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from etils import epath

_LARGEST_SAMPLE = 8.0  # lossy decoders overshoot 1 a little; far beyond it a float file holds integers


def read_audio(path: str | PathLike[str], sample_rate: int) -> np.ndarray:
    """Reads a whole file (FLAC, WAV, Ogg, MP3: whatever libsndfile knows).

    Args:
      path: local or remote (``gs://``) file.
      sample_rate: wanted rate in Hz; another rate is resampled (soxr, HQ).

    Returns:
      [S] float32 in [-1, 1]. Several channels are averaged into one; overshoots of lossy decoders and of the
      resampler are clipped.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not audio, no samples, NaN or infinite samples, or float samples far outside [-1, 1].
    """
    file = epath.Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    return decode_audio(data, str(file), sample_rate)


def decode_audio(data: bytes, file: str, sample_rate: int) -> np.ndarray:
    """As `read_audio`, from the bytes of a file; ``file`` names them in errors.

    Raises:
      ValueError: see `read_audio`.
    """
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _not_audio(file, error) from error
    if not len(samples):
        raise ValueError(f"{file}: the audio file holds no samples; remove it from the corpus")
    peak = float(np.max(np.abs(samples)))  # NaN if any sample is
    if not np.isfinite(peak):
        raise ValueError(f"{file}: the audio file holds NaN or infinite samples; re-create it")
    if peak > _LARGEST_SAMPLE:
        raise ValueError(f"{file}: float samples reach {peak:g}, expected [-1, 1]; divide them by the full scale")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return np.clip(resample(mono, rate, sample_rate), -1.0, 1.0)


def audio_info(path: str | PathLike[str]) -> tuple[int, int]:
    """Length and rate from the header, without decoding the samples.

    Returns:
      (samples per channel at the file's own rate, that rate in Hz).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not audio, empty, or a header that does not state the length.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as handle:
            return header_info(handle, str(file))
    except OSError as error:
        raise _unreadable(file, error) from error


def header_info(handle: BinaryIO, file: str) -> tuple[int, int]:
    """As `audio_info`, from an open file; ``file`` names it in errors.

    Raises:
      ValueError: see `audio_info`.
    """
    try:
        info = soundfile.info(handle)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _not_audio(file, error) from error
    if not 0 < info.frames < 2**40:  # streamed FLAC states no length, which libsndfile reports as 2**63 - 1
        raise ValueError(f"{file}: the header states {info.frames} samples; re-encode the file or remove it")
    return int(info.frames), int(info.samplerate)


def _unreadable(file: epath.Path, error: Exception) -> Exception:
    if not file.exists():
        return FileNotFoundError(f"{file}: no such audio file; check the path")
    return _not_audio(str(file), error)


def _not_audio(file: str, error: Exception) -> ValueError:
    return ValueError(f"{file}: not readable as audio ({error}); expected FLAC, WAV, Ogg or MP3")


def resample(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples [S] float32 from ``from_rate`` to ``to_rate`` (soxr, HQ) to round(S * to / from) samples.

    Raises:
      ValueError: a rate is not positive.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"sample rates must be positive, not {from_rate} and {to_rate}")
    x = np.asarray(x, np.float32)
    if from_rate == to_rate or not len(x):
        return x
    length = resampled_length(len(x), from_rate, to_rate)
    y = soxr.resample(x, from_rate, to_rate)[:length]
    return np.pad(y, (0, length - len(y))) if len(y) < length else y


def change_speed(x: np.ndarray, factor: float) -> np.ndarray:
    """Speed perturbation as in Kaldi (sox ``speed``): tempo and pitch change; 0.9 is slower, so longer.

    Args:
      x: [S] float32.
      factor: speed factor, taken as the nearest fraction with a denominator up to 1000.

    Returns:
      [``num_samples_after_speed(S, factor)``] float32.

    Raises:
      ValueError: the factor is outside [0.1, 10].
    """
    return resample(x, *_speed_rates(factor))


def num_samples_after_speed(num_samples: int, factor: float) -> int:
    """Length of what ``change_speed`` returns for ``num_samples`` samples."""
    return resampled_length(num_samples, *_speed_rates(factor))


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Length of what ``resample`` returns for ``num_samples`` samples."""
    return (2 * num_samples * to_rate + from_rate) // (2 * from_rate)  # rounds half up, as soxr does


def _speed_rates(factor: float) -> tuple[int, int]:
    if not 0.1 <= factor <= 10:
        raise ValueError(f"speed factor {factor}: expected 0.1 to 10, such as 0.9, 1.0 or 1.1")
    ratio = Fraction(factor).limit_denominator(1000)
    return ratio.numerator, ratio.denominator
