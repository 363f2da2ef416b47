"""Several recordings at once, warm-up, and the choice of execution."""

import jax
import numpy as np
import pytest
import soundfile

from i3d_jax.audio.io import read_audio
from i3d_jax.inference import transcription
from i3d_jax.inference.execution import best_execution
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.transcription import batch_rows, padded, padded_length
from i3d_jax.model.encoder import Encoder
from i3d_jax.model.gates import SoftMean
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


@pytest.mark.parametrize(
    "bad, options, error",
    [
        ("missing.flac", {}, "no such audio file"),
        ("short.wav", {}, r"short\.wav: 0.000 s of audio are too short"),
        (np.zeros(5, np.float32), {"sample_rate": 16000}, "the samples: 0.000 s of audio are too short"),
        (np.full(16000, np.nan, np.float32), {"sample_rate": 16000}, "NaN or infinite"),
        (np.zeros(16000, np.float32), {}, "samples need sample_rate"),
        (SAMPLE, {"execution": "fast"}, "execution 'fast' is unknown"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_before_anything_is_recognised(
    asr, tmp_path, monkeypatch, bad, options, error
):
    monkeypatch.setattr(transcription, "_HELD_SECONDS", 0.1)
    for name in ("transcribe_one", "recognize_batches"):
        monkeypatch.setattr(transcription, name, lambda *_: pytest.fail("recognised before the check"))
    soundfile.write(tmp_path / "short.wav", np.zeros(5), 16000)
    bad = tmp_path / bad if isinstance(bad, str) else bad
    good = np.zeros(16000, np.float32) if "sample_rate" in options else SAMPLE
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        asr.transcribe([good, good, bad], **options)


@pytest.mark.parametrize("execution", [None, "conditional", "compacted", "eager"])
def test_float_gates_are_refused_by_what_skips(asr, execution):
    short = np.zeros(8000, np.float32)
    for audio in (short, [short, short]):
        with pytest.raises(TypeError, match="needs boolean gates, got float32: float gates need masked"):
            asr.transcribe(audio, sample_rate=16000, decide=SoftMean(), execution=execution)
    assert asr.transcribe(short, sample_rate=16000, decide=SoftMean(), execution="masked").gates.dtype == np.float32


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


@pytest.mark.parametrize("seconds", [(), (60.0,)])
def test_warm_up_compiles_the_window_of_long_recordings(seconds):
    fresh = load(ROOT / "docs" / "demo_model")
    fresh.warm_up(*seconds)
    fresh.transcribe(np.zeros(200_000, np.float32), sample_rate=16000)
    assert fresh.pipeline.conditional._cache_size() == 1


def test_parameters_are_unstacked_once_for_all_executions(monkeypatch):
    fresh = load(ROOT / "docs" / "demo_model")
    stacked = []
    unstack = Encoder.unstack
    monkeypatch.setattr(
        Encoder,
        "unstack",
        lambda self, params: (stacked.append(not isinstance(params["layers"], tuple)), unstack(self, params))[1],
    )
    texts = {fresh.transcribe(SAMPLE, execution=execution).text for execution in ("eager", "conditional", "eager")}
    assert len(texts) == 1 and sum(stacked) == 1
    fresh.params = jax.tree.map(np.zeros_like, fresh.params)
    assert fresh.transcribe(SAMPLE).text not in texts and sum(stacked) == 2


@pytest.mark.parametrize(
    "rows, predictor, execution",
    [(1, "global", "conditional"), (8, "local", "compacted"), (8, "global", "compacted"), (8, "none", "masked")],
)
def test_the_fastest_execution(rows, predictor, execution):
    assert best_execution(rows, predictor) == execution
