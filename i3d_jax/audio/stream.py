"""Reading audio files block by block, at the rate of the model: what a file holds is never in memory as a whole."""

from collections.abc import Iterable, Iterator
from os import PathLike

import numpy as np
import soxr
from etils import epath

from i3d_jax.audio.io import decode_blocks, mix_channels, resampled_length, unreadable


def stream_audio(path: str | PathLike[str], sample_rate: int, block_seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Reads a file as `read_audio` does, block by block: what it yields is together equal to what that returns, but for
    the rounding of the decoder of MP3.

    What `read_audio` refuses is refused here when it is met: headers and the ends of WAV and Ogg files before the first
    block, samples that are damaged, not finite or out of scale in their place.

    Args:
      path: local or remote (``gs://``) file.
      sample_rate: wanted rate in Hz; another rate is resampled (soxr, HQ).
      block_seconds: longest block that is decoded at a time.

    Yields:
      [n] float32 in [-1, 1], n > 0.

    Raises:
      FileNotFoundError: no such file.
      AudioError: see `read_audio`.
    """
    file = epath.Path(path)
    try:
        handle = file.open("rb")
    except OSError as error:
        raise unreadable(file, error) from error
    with handle:
        for block in _resampled(decode_blocks(handle, str(file), block_seconds), sample_rate):
            if len(block):
                yield np.clip(block, -1.0, 1.0)


def _resampled(decoded: Iterable[tuple[np.ndarray, int]], sample_rate: int) -> Iterator[np.ndarray]:
    stream: soxr.ResampleStream | None = None
    heard = given = rate = 0
    for block, rate in decoded:
        mono = mix_channels(block)
        if rate == sample_rate:
            yield mono
            continue
        stream = stream or soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        resampled = stream.resample_chunk(mono)
        heard, given = heard + len(mono), given + len(resampled)
        yield resampled
    if stream:
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        missing = resampled_length(heard, rate, sample_rate) - given
        yield np.pad(rest[:missing], (0, max(missing - len(rest), 0)))
