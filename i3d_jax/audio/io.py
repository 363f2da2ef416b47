"""Reading audio files, resampling and speed perturbation (host side, numpy)."""

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from os import PathLike
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from etils import epath

from i3d_jax.audio.integrity import AudioError, DamagedAudio, EmptyAudio, NonFiniteAudio, UnscaledAudio, truncation

_LARGEST_SAMPLE = 8.0  # lossy decoders overshoot 1 a little; far beyond it a float file holds integers
_BLOCK = 1 << 20  # samples decoded at a time
_UNKNOWN = 2**40  # streamed FLAC states no length, which libsndfile reports as 2**63 - 1
_SLOWEST, _FASTEST = 1000, 1_000_000  # Hz; beyond, a header is damaged and resampling would fill the memory
_MEND = "copy it again from its source, or remove it"


def read_audio(path: str | PathLike[str], sample_rate: int) -> np.ndarray:
    """Reads a whole file (FLAC, WAV, Ogg, Opus, MP3: whatever libsndfile knows, whatever its name ends in).

    Args:
      path: local or remote (``gs://``) file.
      sample_rate: wanted rate in Hz; another rate is resampled (soxr, HQ).

    Returns:
      [S] float32 in [-1, 1]. Several channels are averaged into one; overshoots of lossy decoders and of the
      resampler are clipped.

    Raises:
      FileNotFoundError: no such file.
      AudioError: not audio, truncated, no samples, NaN or infinite samples, or float samples far outside [-1, 1].
    """
    return decode_audio(read_bytes(epath.Path(path)), str(path), sample_rate)


def decode_audio(data: bytes, file: str, sample_rate: int) -> np.ndarray:
    """As `read_audio`, from the bytes of a file; ``file`` names them in errors.

    Raises:
      AudioError: see `read_audio`.
    """
    decoded = decode_blocks(io.BytesIO(data), file)
    blocks, rates = zip(*((mix_channels(block), rate) for block, rate in decoded), strict=True)
    mono = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return np.clip(resample(mono, rates[0], sample_rate), -1.0, 1.0)


def check_samples(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Samples [S] from a caller, as float32.

    Raises:
      ValueError: not a float array of one axis, NaN or infinite values, values far outside [-1, 1], or a rate that is
        not a whole number of Hz from 1000 to 1000000.
    """
    if not isinstance(sample_rate, int | np.integer) or not _SLOWEST <= sample_rate <= _FASTEST:
        raise ValueError(f"sample_rate={sample_rate!r}: expected a rate in Hz, whole, from {_SLOWEST} to {_FASTEST}")
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples must be a float array [S] in [-1, 1], got {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("the samples hold NaN or infinite values; mend or cut them")
    if samples.size and np.abs(samples).max() > _LARGEST_SAMPLE:
        raise ValueError(f"samples reach {np.abs(samples).max():g}, expected [-1, 1]; divide them by the full scale")
    return samples.astype(np.float32)


def check_audio(path: str | PathLike[str]) -> tuple[int, int]:
    """Decodes a file, block by block, to find what `read_audio` would refuse.

    Returns:
      (samples per channel at the file's own rate, that rate in Hz).

    Raises:
      FileNotFoundError: no such file.
      AudioError: see `read_audio`.
    """
    return check_bytes(read_bytes(epath.Path(path)), str(path))


def check_bytes(data: bytes, file: str) -> tuple[int, int]:
    """As `check_audio`, of the bytes of a file; ``file`` names it in errors."""
    lengths, rates = zip(*((len(block), rate) for block, rate in decode_blocks(io.BytesIO(data), file)), strict=True)
    return sum(lengths), rates[0]


def audio_info(path: str | PathLike[str]) -> tuple[int, int]:
    """Length and rate from the header, without decoding the samples.

    Returns:
      (samples per channel at the file's own rate, that rate in Hz).

    Raises:
      FileNotFoundError: no such file.
      AudioError: not audio, empty, or a header that does not state the length.
    """
    file = epath.Path(path)
    try:
        with file.open("rb") as handle:
            return header_info(handle, str(file))
    except OSError as error:
        raise unreadable(file, error) from error


def header_info(handle: BinaryIO, file: str) -> tuple[int, int]:
    """As `audio_info`, from an open file; ``file`` names it in errors.

    Raises:
      AudioError: see `audio_info`.
    """
    try:
        info = soundfile.info(handle)
    except (soundfile.LibsndfileError, OSError) as error:
        if not handle.seek(0, io.SEEK_END):
            raise EmptyAudio(f"{file}: the audio file is empty; re-create it or remove it") from error
        raise _not_audio(file, error) from error
    _check_header(file, info.frames, info.samplerate)
    return int(info.frames), int(info.samplerate)


def read_bytes(file: epath.Path) -> bytes:
    """The whole file.

    Raises:
      FileNotFoundError: no such file.
      PermissionError: it may not be read.
      AudioError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


def mix_channels(block: np.ndarray) -> np.ndarray:
    """The mean of the channels, [n], of [n, channels]."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def decode_blocks(handle: BinaryIO, file: str, seconds: float = math.inf) -> Iterator[tuple[np.ndarray, int]]:
    """Decodes an open file, block by block; ``file`` names it in errors.

    Args:
      handle: at the beginning of the file.
      file: its name.
      seconds: longest block; no block holds more than about a million samples.

    Yields:
      ([n, channels] float32, rate in Hz), at least once.

    Raises:
      AudioError: see `read_audio`; what is wrong at the end of a file is found there.
    """
    if not handle.seek(0, io.SEEK_END):
        raise EmptyAudio(f"{file}: the audio file is empty; re-create it or remove it")
    handle.seek(0)
    try:
        sound = soundfile.SoundFile(handle)
    except soundfile.LibsndfileError as error:
        raise _not_audio(file, error) from error
    with sound:
        if (shortfall := truncation(handle)) is not None:
            raise DamagedAudio(f"{file}: the audio file is truncated: {shortfall}; {_MEND}")
        _check_header(file, sound.frames, sound.samplerate)
        size = max(int(min(_BLOCK // sound.channels, seconds * sound.samplerate)), 1)
        count = 0
        while count < sound.frames:
            try:
                block = sound.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                detail = error.error_string.strip() or f"libsndfile error {error.code}"
                raise DamagedAudio(f"{file}: the audio file is truncated or damaged ({detail}); {_MEND}") from error
            if not len(block):
                break
            peak = float(np.max(np.abs(block)))  # NaN if any sample is
            if not np.isfinite(peak):
                raise NonFiniteAudio(f"{file}: the audio file holds NaN or infinite samples; re-create it")
            if peak > _LARGEST_SAMPLE:
                raise UnscaledAudio(
                    f"{file}: float samples reach {peak:g}, expected [-1, 1]; divide them by the full scale"
                )
            count += len(block)
            yield block, sound.samplerate
        if count < sound.frames:
            raise DamagedAudio(
                f"{file}: the audio file is truncated: its header announces {sound.frames} samples, {count} can be "
                f"decoded; {_MEND}"
            )


def _check_header(file: str, samples: int, rate: int) -> None:
    if samples == 0:
        raise EmptyAudio(f"{file}: the audio file holds no samples; re-create it or remove it")
    if not 0 < samples < _UNKNOWN:
        raise AudioError(f"{file}: the header does not state the length; re-encode the file or remove it")
    if not _SLOWEST <= rate <= _FASTEST:
        raise AudioError(f"{file}: the header states {rate} Hz, expected {_SLOWEST} to {_FASTEST}; re-create the file")


def unreadable(file: epath.Path, error: Exception) -> Exception:
    """The error of a file that could not be opened: `read_audio` says which there are."""
    if isinstance(error, PermissionError):
        return PermissionError(f"{file}: no permission to read the audio file; change its permissions")
    if not file.exists():
        return FileNotFoundError(f"{file}: no such audio file; check the path")
    return _not_audio(str(file), error)


def _not_audio(file: str, error: Exception) -> AudioError:
    detail = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
    return AudioError(f"{file}: not readable as audio ({detail}); expected FLAC, WAV, Ogg, Opus or MP3")


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
