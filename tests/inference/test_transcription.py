"""Several recordings at once, warm-up, and the choice of execution."""

import numpy as np
import pytest

from i3d_jax.audio.io import read_audio
from i3d_jax.inference import transcription
from i3d_jax.inference.execution import best_execution
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.transcription import batch_rows, padded, padded_length
from tests.trainings import ROOT

SAMPLE = ROOT / "docs" / "demo_model" / "sample.flac"


@pytest.fixture(scope="module")
def asr():
    return load(ROOT / "docs" / "demo_model")


@pytest.fixture(scope="module")
def recordings():
    """The sample whole and cut, one too long for a window, another of silence."""
    sample = read_audio(SAMPLE, 16000)
    pieces = [sample[: len(sample) * part // 8] for part in (8, 6, 7, 8)]
    return [*pieces, np.tile(sample, 4), np.zeros(9000, np.float32), sample[:16000]]


@pytest.mark.parametrize("execution", [None, "masked", "conditional", "eager"])
def test_a_list_is_transcribed_as_each_alone(asr, recordings, execution, monkeypatch):
    monkeypatch.setattr(transcription, "_HELD_SECONDS", 4.0)  # several rounds
    together = asr.transcribe(recordings, sample_rate=16000, execution=execution)
    assert len(together) == len(recordings)
    for samples, result in zip(recordings, together, strict=True):
        alone = asr.transcribe(samples, sample_rate=16000)
        assert result.text == alone.text and len(result.segments) == len(alone.segments)
        np.testing.assert_array_equal(result.gates, alone.gates)
        assert result.audio_seconds == alone.audio_seconds and result.compute_seconds > 0
        if execution != "masked":
            assert result.gflops == pytest.approx(alone.gflops)


def test_paths_and_empty_lists(asr):
    one, other = asr.transcribe([str(SAMPLE), SAMPLE])
    assert one.text == other.text == asr.transcribe(SAMPLE).text != ""
    assert asr.transcribe([]) == []


def test_a_missing_file_of_a_list_is_told_before_anything_is_recognised(asr, tmp_path, monkeypatch):
    monkeypatch.setattr(asr, "recognize", lambda *_: pytest.fail("recognised before the check"))
    with pytest.raises(FileNotFoundError, match="missing"):
        asr.transcribe([SAMPLE, tmp_path / "missing.flac"])


def test_shapes_are_few_and_hold_what_is_given():
    lengths = {padded_length(samples) for samples in range(1, 30 * 16000, 100)}
    assert len(lengths) <= 24
    waveform, num_samples = padded([np.ones(5, np.float32), np.ones(9000, np.float32)], 3)
    assert waveform.shape == (3, 16000) and num_samples.tolist() == [5, 9000, 0] and waveform.sum() == 9005
    assert batch_rows(0.5) == 32 and batch_rows(15.0) == 1


def test_warm_up_compiles_what_comes_next(asr):
    fresh = load(ROOT / "docs" / "demo_model")
    assert fresh.warm_up(1.0, 2.5) > 0
    programs = fresh.pipeline.conditional._cache_size()
    assert programs == 2
    fresh.transcribe(read_audio(SAMPLE, 16000)[:16000], sample_rate=16000)
    assert fresh.pipeline.conditional._cache_size() == programs


@pytest.mark.parametrize(
    "rows, predictor, execution",
    [(1, "global", "conditional"), (8, "local", "compacted"), (8, "global", "compacted"), (8, "none", "masked")],
)
def test_the_fastest_execution(rows, predictor, execution):
    assert best_execution(rows, predictor) == execution
