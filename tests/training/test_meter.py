"""What the log says of the machine, against counts by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from i3d_jax.audio.frontend import FrontendConfig, num_frames
from i3d_jax.data.corpora import Corpus, Utterance
from i3d_jax.data.epoch_plan import Bucket, PlannedBatch
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.flops import count_flops_by_part, decoder_flops
from i3d_jax.training import meter as meters
from i3d_jax.training.hardware import peak_flops
from i3d_jax.training.losses import LossTotals
from i3d_jax.training.meter import Meter, step_flops
from i3d_jax.training.step import StepMetrics

LENGTHS = (16000, 8000, 24000)
LABELS = np.array([5, 6, 7])
CORPUS = Corpus("c", tuple(Utterance(f"u{n}", "A", n, "s", np.zeros(n, np.float32)) for n in LENGTHS), 16000)
# Row 0: utterances 0 and 2 joined, the first of them slowed down to 10/9; row 1: utterance 1.
PLANNED = PlannedBatch(
    Bucket(48000, 4, 4), np.array([0, 2, 1]), np.array([0.9, 1.0, 1.0]), np.array([0, 0, 1]), np.zeros(2, np.uint32)
)
MODEL = ASRModel(ModelConfig(encoder=EncoderConfig(2, 32, 2, 64)), 80, 50)


def forward(samples):
    frames = num_frames(FrontendConfig(), np.array(samples))
    return count_flops_by_part(MODEL.config, num_mels=80, vocab_size=50, num_frames=frames, executed=None)


def test_flops_are_three_forwards_of_the_rows_without_padding():
    expected = forward([17778 + 24000, 8000])
    plain = step_flops(MODEL, FrontendConfig(), CORPUS, LABELS)(PLANNED)
    assert plain == pytest.approx(3 * expected.total.sum(), rel=1e-12)
    with_taps = 3 * (expected.total + 2 * expected.ctc_head).sum()
    assert step_flops(MODEL, FrontendConfig(), CORPUS, LABELS, heads=3)(PLANNED) == pytest.approx(with_taps, rel=1e-12)
    aed = replace(MODEL, config=replace(MODEL.config, decoder=DecoderConfig(3, 2, 48)))
    frames = num_frames(FrontendConfig(), np.array([17778 + 24000, 8000]))
    decoder = decoder_flops(aed.config, vocab_size=50, num_frames=frames, tokens=np.array([5 + 7 + 1, 6 + 1]))
    assert step_flops(aed, FrontendConfig(), CORPUS, LABELS)(PLANNED) == pytest.approx(plain + 3 * decoder.sum())


def test_the_log_tells_how_often_the_decoder_is_right():
    meter = Meter(CORPUS)
    totals = LossTotals(*(np.float32(x) for x in (12, 8, 0, 2, 3, 2, 10, 6, 8)))
    meter.add(StepMetrics(totals, np.float32(4), np.int32(0)), PLANNED)
    found = meter.summary()
    assert (found["attention"], found["attention_accuracy"]) == (5.0, 0.75)


def test_shares_are_of_the_time_without_compiling(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(meters.time, "monotonic", lambda: clock.now)

    def batches():
        for _ in range(2):
            clock.now += 1.0  # the loader
            yield PLANNED

    meter = Meter(CORPUS, lambda planned: 5e9, peak=1e10)
    totals = LossTotals(*(np.float32(x) for x in (12, 8, 0, 2, 3, 2, 0, 0, 0)))
    for planned in meter.waiting(batches()):
        clock.now += 6.0  # of which 2 went into compiling
        meter.pause(2.0)
        meter.add(StepMetrics(totals, np.float32(4), np.int32(0)), planned)
    found = meter.summary()
    assert found["input_wait"] == pytest.approx(2 / 10)
    assert found["mfu"] == pytest.approx(1e10 / 10 / 1e10)
    assert found["audio_per_second"] == pytest.approx(2 * 3.0 / 10)
    assert (found["loss"], found["ctc"], found["layers"], found["grad_norm"]) == (6.0, 4.0, 1.5, 4.0)
    assert not {"interctc", "attention", "attention_accuracy"} & set(found)
    meter.reset()
    meter.add(StepMetrics(totals, np.float32(4), np.int32(0)), PLANNED)
    clock.now += 1.0
    assert meter.summary()["input_wait"] == 0.0


def test_peaks_are_those_of_the_kind_of_device():
    def devices(kind, count, platform="tpu"):
        return [SimpleNamespace(device_kind=kind, platform=platform)] * count

    assert peak_flops(devices("TPU v5 lite", 8)) == 8 * 197e12
    assert peak_flops(devices("TPU v5", 4)) == 4 * 459e12
    assert peak_flops(devices("NVIDIA H100 80GB HBM3", 1, "gpu")) == 989e12
    assert peak_flops(devices("NVIDIA Unheard", 1, "gpu")) is None
    assert 1e8 < peak_flops(devices("cpu", 8, "cpu")) < 1e14
