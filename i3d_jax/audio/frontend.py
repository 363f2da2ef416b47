"""Log-mel front end, computed on the device.

Both presets share one pipeline on 16 kHz audio, 25 ms windows every 10 ms::

    cut beyond num_samples -> (espnet: reflect at the utterance's own ends) -> frames [B, T, 400]
      -> real and imaginary spectrum (one matrix product) -> power -> mel filters -> log(max(., floor)) -> cut padding

Everything linear before the power (DC removal, pre-emphasis, window, zero padding, DFT) is one constant matrix, and
frames come from reshaped blocks of one hop, so there is neither a gather nor an FFT.

======================  ===============================  ==========================================
                        ``kaldi``                        ``espnet``
======================  ===============================  ==========================================
reference               kaldi-native-fbank, no dither    ESPnet2 ``DefaultFrontend`` (torch, librosa)
frames                  inside the utterance             centred, reflected ends: S // 160 + 1
samples                 int16 range                      [-1, 1]
before the window       minus mean, pre-emphasis 0.97    nothing
window                  povey                            Hann, periodic
mel scale, filters      HTK, 20-8000 Hz, height 1        Slaney, 0-8000 Hz, area 1
floor of the log        float32 epsilon                  1e-10
======================  ===============================  ==========================================
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax.types import Array

SAMPLE_RATE = 16_000
"""Rate in Hz for which both presets are defined."""

_WINDOW, _HOP, _FFT = 400, 160, 512
_REFLECTED = _WINDOW // 2  # samples that a centred window reaches beyond either end
_INT16_SCALE = 32768.0

Count = TypeVar("Count", int, np.ndarray, jax.Array)
Hertz = TypeVar("Hertz", float, np.ndarray)


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel features, computed on the device."""

    preset: Literal["kaldi", "espnet"] = "kaldi"
    """Definition of the features: Kaldi's fbank, or ESPnet's default front end."""
    num_mels: int = 80
    """Mel channels F."""
    normalization: Literal["utterance", "global", "none"] = "utterance"
    """Subtract the mean per utterance, or with statistics of the training set."""
    normalize_variance: bool = False
    """Also divide by the standard deviation."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no front end has."""
        if self.preset not in ("kaldi", "espnet"):
            raise ValueError(f"frontend.preset {self.preset!r}: expected 'kaldi' or 'espnet'")
        if self.normalization not in ("utterance", "global", "none"):
            raise ValueError(f"frontend.normalization {self.normalization!r}: expected 'utterance', 'global' or 'none'")
        if not 1 <= self.num_mels <= 128:
            raise ValueError(f"frontend.num_mels {self.num_mels}: expected 1 to 128 at {SAMPLE_RATE} Hz")


def num_frames(config: FrontendConfig, num_samples: Count) -> Count:
    """Valid frames T of utterances of ``num_samples`` samples; 0 if too short for one.

    Too short means under one window of 400 samples (``kaldi``), or no more than half an FFT, 256 samples, which
    reflection cannot extend (``espnet``).
    """
    if config.preset == "kaldi":
        frames, long_enough = (num_samples - _WINDOW) // _HOP + 1, num_samples >= _WINDOW
    else:
        frames, long_enough = num_samples // _HOP + 1, num_samples > _FFT // 2
    return frames * long_enough  # an arithmetic select: the same for int, numpy and traced arrays


def feature_centre(config: FrontendConfig, frame: int) -> int:
    """The sample in the middle of the window of a feature frame."""
    return _HOP * frame + (_WINDOW // 2 if config.preset == "kaldi" else 0)


def log_mel(config: FrontendConfig, waveform: Array, num_samples: Array) -> tuple[jax.Array, jax.Array]:
    """Log-mel features.

    Args:
      config: static.
      waveform: [B, S] float32 in [-1, 1], 16 kHz; what lies beyond ``num_samples`` is ignored, NaN included.
      num_samples: [B] integers, at most S.

    Returns:
      features [B, T, F] float32, natural log, exactly 0 in padded frames, with T = ``num_frames(config, S)``;
      mask [B, T] bool.
    """
    waveform, num_samples = jnp.asarray(waveform, jnp.float32), jnp.asarray(num_samples)
    total = num_frames(config, waveform.shape[1])
    mask = jnp.arange(total)[None, :] < num_frames(config, num_samples)[:, None]
    waveform = jnp.where(jnp.arange(waveform.shape[1])[None, :] < num_samples[:, None], waveform, 0.0)
    if config.preset == "espnet" and total:
        waveform = _reflect_ends(waveform, num_samples)
    spectrum = jnp.matmul(_frames(waveform, total), _spectrum_matrix(config.preset), precision="highest")
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    energies = jnp.matmul(real**2 + imaginary**2, _mel_filters(config.preset, config.num_mels), precision="highest")
    floor = np.finfo(np.float32).eps if config.preset == "kaldi" else 1e-10
    return jnp.where(mask[:, :, None], jnp.log(jnp.maximum(energies, floor)), 0.0), mask


def _frames(waveform: jax.Array, total: int) -> jax.Array:
    """[B, S] to [B, T, 400]: a frame is two and a half consecutive blocks of one hop."""
    batch, samples = waveform.shape
    wanted = _HOP * (total + 2)
    waveform = jnp.pad(waveform[:, :wanted], ((0, 0), (0, max(0, wanted - samples))))
    blocks = waveform.reshape(batch, total + 2, _HOP)
    return jnp.concatenate([blocks[:, :total], blocks[:, 1 : total + 1], blocks[:, 2:, : _WINDOW - 2 * _HOP]], axis=2)


def _reflect_ends(waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
    """[B, S], zero beyond the utterances, to [B, 2 * 200 + S] with each utterance mirrored at its own two ends."""
    n = _REFLECTED
    waveform = jnp.concatenate([waveform[:, n:0:-1], waveform, jnp.zeros_like(waveform[:, :n])], axis=1)

    def mirror_end(row: jax.Array, end: jax.Array) -> jax.Array:
        tail = jax.lax.dynamic_slice(row, (end - 1,), (n,))[::-1]  # up to the sample before the last one
        return jax.lax.dynamic_update_slice(row, tail, (end + n,))

    return jax.vmap(mirror_end)(waveform, num_samples)


@cache
def _spectrum_matrix(preset: str) -> np.ndarray:
    """[400, 2 * K] float32: samples of a frame to the K real, then the K imaginary parts that the mel filters read."""
    frame = np.arange(_WINDOW)
    if preset == "kaldi":
        remove_mean = np.eye(_WINDOW) - 1 / _WINDOW
        pre_emphasis = np.eye(_WINDOW) - 0.97 * np.eye(_WINDOW, k=-1)
        pre_emphasis[0, 0] -= 0.97  # the first sample stands in for its missing predecessor
        window = (0.5 - 0.5 * np.cos(2 * np.pi * frame / (_WINDOW - 1))) ** 0.85
        linear = _INT16_SCALE * window[:, None] * (pre_emphasis @ remove_mean)
    else:
        # A shift of the frame inside the FFT only turns phases, which the power forgets.
        linear = np.diag(0.5 - 0.5 * np.cos(2 * np.pi * frame / _WINDOW))
    bins = np.arange(_FFT // 2)  # no filter reads the Nyquist bin: every triangle has fallen to 0 there
    dft = np.exp(-2j * np.pi * frame[:, None] * bins / _FFT)
    spectrum = linear.T @ dft
    return np.concatenate([spectrum.real, spectrum.imag], axis=1).astype(np.float32)


@cache
def _mel_filters(preset: str, num_mels: int) -> np.ndarray:
    """[K, F] float32 triangular filters over the bins of ``_spectrum_matrix``."""
    hertz = np.arange(_FFT // 2) * SAMPLE_RATE / _FFT
    if preset == "kaldi":  # triangles are linear in mel
        points, position = np.linspace(_htk_mel(20.0), _htk_mel(8000.0), num_mels + 2), _htk_mel(hertz)
        heights = np.ones(num_mels)
    else:  # triangles are linear in Hz
        points, position = _slaney_hertz(np.linspace(0.0, _slaney_mel(8000.0), num_mels + 2)), hertz
        heights = 2.0 / (points[2:] - points[:-2])
    left, centre, right = points[:-2], points[1:-1], points[2:]
    rising = (position[:, None] - left) / (centre - left)
    falling = (right - position[:, None]) / (right - centre)
    return (np.maximum(0.0, np.minimum(rising, falling)) * heights).astype(np.float32)


def _htk_mel(hertz: Hertz) -> Hertz:
    return 1127.0 * np.log1p(hertz / 700.0)


_SLANEY_LINEAR, _SLANEY_CORNER, _SLANEY_STEP = 200.0 / 3.0, 15.0, np.log(6.4) / 27.0  # Hz a mel; mel; log-Hz a mel


def _slaney_mel(hertz: float) -> float:
    corner = _SLANEY_CORNER * _SLANEY_LINEAR
    return hertz / _SLANEY_LINEAR if hertz < corner else _SLANEY_CORNER + np.log(hertz / corner) / _SLANEY_STEP


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    above = np.exp(_SLANEY_STEP * np.maximum(mel - _SLANEY_CORNER, 0.0))  # 1 at and below the corner
    return _SLANEY_LINEAR * np.minimum(mel, _SLANEY_CORNER) * above


class GlobalStats(NamedTuple):
    """Statistics of a training set's features.

    Attributes:
      mean: [F] float32.
      std: [F] float32, population standard deviation.
    """

    mean: Array
    std: Array


class StatsSums(NamedTuple):
    """Running float64 sums over valid frames, on the host.

    Attributes:
      frames: valid frames.
      total: [F] sum.
      squares: [F] sum of squares.
    """

    frames: int
    total: np.ndarray
    squares: np.ndarray


def accumulate_stats(sums: StatsSums | None, features: Array, mask: Array) -> StatsSums:
    """Adds a batch of un-normalised features [B, T, F] with mask [B, T] to ``sums`` (None to begin)."""
    valid = np.asarray(features)[np.asarray(mask)].astype(np.float64)
    added = StatsSums(len(valid), valid.sum(axis=0), np.square(valid).sum(axis=0))
    if sums is None:
        return added
    return StatsSums(sums.frames + added.frames, sums.total + added.total, sums.squares + added.squares)


def finish_stats(sums: StatsSums | None) -> GlobalStats:
    """Turns sums over a corpus into its statistics.

    Raises:
      ValueError: the sums hold no frame.
    """
    if sums is None or not sums.frames:
        raise ValueError("global feature statistics need at least one valid frame; is the training set empty?")
    mean = sums.total / sums.frames
    variance = np.maximum(sums.squares / sums.frames - mean**2, 0.0)
    return GlobalStats(mean.astype(np.float32), np.sqrt(variance).astype(np.float32))


_SMALLEST_STD = 1e-3  # keeps the rounding noise of constant channels (digital silence) small


def normalize(config: FrontendConfig, features: Array, mask: Array, stats: GlobalStats | None = None) -> jax.Array:
    """Mean (and, if configured, variance) normalisation over valid frames.

    Args:
      config: static.
      features: [B, T, F] from ``log_mel``.
      mask: [B, T] bool.
      stats: of the training set; read only if ``config.normalization`` is ``global``.

    Returns:
      [B, T, F] float32, exactly 0 in padded frames.

    Raises:
      ValueError: ``global`` without statistics, or statistics of another number of channels.
    """
    features, valid = jnp.asarray(features), jnp.asarray(mask)[:, :, None]
    features = jnp.where(valid, features, 0.0)
    if config.normalization == "none":
        return features
    if config.normalization == "global":
        if stats is None:
            raise ValueError(
                "frontend.normalization is 'global' but no statistics were given; compute them over the training set "
                "(accumulate_stats, finish_stats) or choose 'utterance'"
            )
        if np.shape(stats.mean) != features.shape[2:]:
            raise ValueError(
                f"global statistics are for {np.shape(stats.mean)} mel channels, the features have "
                f"{features.shape[2:]}; recompute them with the same frontend.num_mels"
            )
        mean, std = jnp.asarray(stats.mean)[None, None, :], jnp.asarray(stats.std)[None, None, :]
        centred = jnp.where(valid, features - mean, 0.0)
        return centred / jnp.maximum(std, _SMALLEST_STD) if config.normalize_variance else centred
    count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred = jnp.where(valid, features - features.sum(axis=1, keepdims=True) / count, 0.0)
    if not config.normalize_variance:
        return centred
    variance = jnp.square(centred).sum(axis=1, keepdims=True) / count
    return centred / jnp.sqrt(jnp.maximum(variance, _SMALLEST_STD**2))
