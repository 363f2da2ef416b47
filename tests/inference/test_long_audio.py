import dataclasses
import importlib.util
import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

import i3d_jax
from i3d_jax.audio.frontend import num_frames
from i3d_jax.audio.io import read_audio, resample
from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.data.demo_corpus import DemoCorpusConfig
from i3d_jax.experiment import load_config
from i3d_jax.inference.decoder import Decoder
from i3d_jax.inference.execution import EXECUTIONS
from i3d_jax.inference.long_audio import Segment, transcribe_stream
from i3d_jax.inference.recognition import Recognition
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.inference.scoring import score
from i3d_jax.inference.spans import token_spans
from i3d_jax.inference.timestamps import word_times
from i3d_jax.inference.windows import FRAME, WindowPlan, plan_windows
from i3d_jax.training_data import prepare_data
from tests.seams import joined, seam_quality

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "docs" / "demo_model"
TINY = ROOT / "tests" / "tiny_config.py"

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed: no demo speech"
)


@pytest.fixture(scope="module")
def asr():
    return i3d_jax.load(DEMO_MODEL)


@pytest.fixture(scope="module")
def sample():
    samples, rate = soundfile.read(DEMO_MODEL / "sample.flac", dtype="float32")
    assert rate == 16000
    return samples


@pytest.fixture(scope="module")
def long_sample(sample):
    """23 s: the sample ten times, each a little quieter."""
    return np.concatenate([sample * 0.95**i for i in range(10)])


# -- A recogniser without errors --------------------------------------------------------------------------------------


class Perfect(Recognizer):
    """Hears what is written into the samples: each frame of 640 holds its token / 1000."""

    def recognize(self, waveform, num_samples, decide, execution, fetch=None):
        features = num_frames(self.config.frontend, int(num_samples[0]))
        frames = self.model.num_encoder_frames(features)
        path = np.zeros((1, waveform.shape[1] // FRAME), np.int32)
        path[0, :frames] = np.round(waveform[0, : frames * FRAME : FRAME] * 1000)
        layers, branches = self.config.model.encoder.num_layers, len(self.gate_names)
        gates = np.ones((1, layers, branches), bool)
        margin = np.where(path == 0, 9.0, -9.0).astype(np.float32)
        result = Recognition(None, None, gates, gates * np.float32(0.75), np.array([features]), path, margin)
        return result._replace(path_log_probs=np.log(np.where(path % 2, 0.5, 0.75)))


@pytest.mark.parametrize("pause", [0, 1, 30])
@pytest.mark.parametrize("spread", [1, 2, 9])
def test_every_word_is_there_once(asr, pause, spread):
    perfect = Perfect(asr.config, {}, asr.tokenizer, decoder=Decoder(asr.tokenizer, timestamps=True))
    generator = np.random.default_rng(pause)
    text = " ".join(generator.choice(["THE HOUSE IS VERY NEW", "WE", "SEVEN SEVEN TOMORROW", "I PAINTED"], 300))
    path = []
    for token in asr.tokenizer.encode(text):
        path += [token] * int(generator.integers(1, spread + 1)) + [0] * int(generator.integers(1, spread + 1))
        path += [0] * pause * int(generator.random() < 0.2)
    samples = np.repeat(np.array([*path, 0, 0], np.float32) / 1000, FRAME)  # the last two are no encoder frames
    blocks = np.array_split(samples, 99)
    for window, overlap in ((5.0, 0.4), (5.0, 2.5), (17.3, 4.0)):
        plan = plan_windows(window, overlap, 16000)
        result = transcribe_stream(perfect, blocks, plan, perfect.decision(), "conditional")
        assert result.text == text
        assert len(result.segments) == plan.count(len(samples))
        whole = token_spans(np.array(path), np.log(np.where(np.array(path) % 2, 0.5, 0.75)))
        for word, wanted in zip(
            result.words, word_times(asr.tokenizer, whole, asr.config.frontend, len(samples)), strict=True
        ):
            assert word.word == wanted.word and word.confidence == pytest.approx(wanted.confidence)
            # The edge of a window may cut a token of several frames.
            assert word[1:3] == pytest.approx(wanted[1:3], abs=0.04 * (spread - 1) + 1e-9)


# -- The demo model ---------------------------------------------------------------------------------------------------


def test_audio_up_to_a_window_is_recognised_as_a_whole(asr, sample):
    whole = asr.transcribe(sample, sample_rate=16000)
    assert len(whole.segments) == 1
    assert whole.segments[0][:2] == (0.0, whole.audio_seconds)
    assert whole.segments[0].gates is whole.gates and whole.gates.dtype == bool
    just = asr.transcribe(sample, sample_rate=16000, window_seconds=whole.audio_seconds + 0.04)
    assert len(just.segments) == 1 and just.text == whole.text
    assert len(asr.transcribe(sample, sample_rate=16000, window_seconds=whole.audio_seconds - 0.04).segments) == 2


def test_long_audio_is_recognised_in_segments(asr, long_sample):
    result = asr.transcribe(long_sample, sample_rate=16000)
    plan = plan_windows(5.05, 5.05 / 4, 16000)  # the model's own, and the default
    assert len(result.segments) == plan.count(len(long_sample))
    assert result.segments[0].start_seconds == 0 and result.segments[-1].end_seconds == result.audio_seconds
    for before, after in itertools.pairwise(result.segments):
        assert before.end_seconds == after.start_seconds < after.end_seconds
    layers, branches = asr.config.model.encoder.num_layers, len(asr.gate_names)
    for segment in result.segments:
        assert isinstance(segment, Segment) and segment.gates.dtype == bool
        assert segment.gates.shape == segment.gate_probabilities.shape == (layers, branches)
    gates = np.mean([segment.gates for segment in result.segments], axis=0)
    np.testing.assert_allclose(result.gates, gates, atol=1e-6)
    assert result.gates.dtype == result.gate_probabilities.dtype == np.float32
    assert result.executed_layers == pytest.approx(gates.sum() / branches)
    one = asr.transcribe(long_sample[: plan.length], sample_rate=16000)
    assert 0.7 < result.gflops / (one.gflops * len(result.segments)) < 1.3  # gates differ between windows
    assert result.audio_seconds == len(long_sample) / 16000 and result.compute_seconds > 0


def test_files_and_samples_and_executions_agree(asr, long_sample, tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, long_sample, 16000)
    stored, _ = soundfile.read(path, dtype="float32")
    result = asr.transcribe(stored, sample_rate=16000)
    assert asr.transcribe(path).text == asr.transcribe(str(path)).text == result.text
    for execution in EXECUTIONS:
        other = asr.transcribe(path, execution=execution)
        assert other.text == result.text
        for ours, theirs in zip(other.segments, result.segments, strict=True):
            assert ours[:2] == theirs[:2]
            np.testing.assert_array_equal(ours.gates, theirs.gates)
    assert asr.transcribe(path, execution="masked").gflops > result.gflops
    assert asr.transcribe(path, threshold=1.0).executed_layers < result.executed_layers


def test_a_file_at_another_rate_is_resampled_in_blocks(asr, long_sample, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, resample(long_sample, 16000, 44100), 44100)
    whole = asr.transcribe(read_audio(path, 16000), sample_rate=16000)
    streamed = asr.transcribe(path)
    assert (streamed.text, streamed.audio_seconds) == (whole.text, whole.audio_seconds)


def test_one_program_serves_every_window(long_sample):
    asr = i3d_jax.load(DEMO_MODEL)
    asr.transcribe(long_sample, sample_rate=16000)
    asr.transcribe(long_sample[:-12345], sample_rate=16000)
    assert asr.pipeline.conditional._cache_size() == 1


def test_damage_late_in_a_file_is_named(asr, long_sample, tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, long_sample, 16000)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"cut\.flac: the audio file is truncated"):
        asr.transcribe(path)


def test_progress_is_told_when_it_is_asked_for(asr, long_sample, capsys):
    asr.transcribe(long_sample, sample_rate=16000)
    assert capsys.readouterr().err == ""
    result = asr.transcribe(long_sample, sample_rate=16000, show_progress=True)
    count = len(result.segments)
    assert f"transcribing {count}/{count} windows" in capsys.readouterr().err


def test_samples_in_memory_do_not_grow_with_the_recording(asr):
    perfect = Perfect(asr.config, {}, asr.tokenizer)
    plan = WindowPlan(125 * FRAME, 100 * FRAME)

    def peak(minutes):
        blocks = (np.zeros(16000, np.float32) for _ in range(60 * minutes))
        tracemalloc.start()
        result = transcribe_stream(perfect, blocks, plan, perfect.decision(), "conditional")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.audio_seconds == 60 * minutes
        return most

    peak(1)
    window = plan.length * 4
    # What may grow, text and gates, is 0.7 kB a window: far less than the samples of these 17 minutes, 65 MB.
    assert peak(20) < peak(3) + window and peak(3) < 8 * window


# -- Words at the seams -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    config = DemoCorpusConfig(train_utterances=1, dev_utterances=1, test_utterances=80)
    folder = tmp_path_factory.mktemp("speech")
    return load_corpus(DataConfig(source="demo", demo=config, cache_dir=str(folder)), "test")


@speaks
@pytest.mark.parametrize("pause", [0.0, 0.4])
@pytest.mark.parametrize(("window", "overlap"), [(5.05, 5.05 / 4), (8.0, 2.0)])
def test_seams_neither_lose_nor_double_words(asr, speech, pause, window, overlap):
    recording, plan = joined(speech, pause), plan_windows(window, overlap, 16000)
    result = seam_quality(asr, recording, plan)
    # What is merged from two windows differs from what a third one hears as much as either of the two does. A word lost
    # or doubled at every tenth seam would be too much.
    assert result.seams > 25 and result.tokens > 2
    assert result.merged_differs <= result.window_differs + 0.1
    # The whole text: against utterances that have a window for themselves, with all of their words in it.
    assert result.merged.wer <= result.without_seams.wer + 5
    text = asr.transcribe(
        recording.samples, sample_rate=16000, window_seconds=window, overlap_seconds=overlap, execution="conditional"
    ).text
    assert score([recording.text], [text]).wer == result.merged.wer


# -- The model's own window -------------------------------------------------------------------------------------------


def test_bundles_keep_the_window_and_old_ones_have_one(asr, tmp_path, long_sample):
    assert asr.config.window_seconds == 5.05
    asr.save(tmp_path / "new")
    assert i3d_jax.load(tmp_path / "new").config.window_seconds == 5.05
    path = tmp_path / "new" / "recognizer.json"
    told = json.loads(path.read_text())
    del told["window_seconds"]
    path.write_text(json.dumps(told))
    (tmp_path / "new" / "manifest.json").unlink()
    old = i3d_jax.load(tmp_path / "new")
    assert old.config.window_seconds == 30.0
    assert len(old.transcribe(long_sample, sample_rate=16000).segments) == 1


@pytest.mark.parametrize(
    ("seconds", "speeds", "expected"), [(0.0, (1.0,), 5.0), (8.0, (1.0,), 8.0), (12.0, (0.9,), 12.0)]
)
def test_the_window_is_the_longest_row_of_the_training(seconds, speeds, expected):
    config = load_config(TINY)
    augment = dataclasses.replace(config.augment, concatenate_seconds=seconds, speeds=speeds)
    assert prepare_data(dataclasses.replace(config, augment=augment), None).window_seconds == expected
