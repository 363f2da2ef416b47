import dataclasses
import time

import numpy as np
import pytest
import soundfile

from i3d_jax.audio.io import change_speed
from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.corpora import Corpus, DataConfig, Utterance, load_corpus
from i3d_jax.data.epoch_plan import Bucket, PlannedBatch
from i3d_jax.data.loader import iterate_batches, iterate_eval, load_batch

CORPUS = load_corpus(DataConfig(source="synthetic"), "train")
LABELS = [[2 + len(word) for word in u.text.split()] for u in CORPUS.utterances]
CONFIG = BatchingConfig(seconds_per_batch=15.0, num_buckets=2, batch_multiple=4)


def make_planner(corpus=CORPUS, labels=LABELS, config=CONFIG, **options):
    lengths = np.array([u.num_samples for u in corpus.utterances])
    return BatchPlanner(lengths, np.array([len(ids) for ids in labels]), config, seed=1, **options)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_holds_the_utterances_and_fillers():
    bucket = Bucket(40000, 6, 4)
    planned = PlannedBatch(bucket, np.array([5, 0]), np.array([1.0, 0.9]), np.arange(2), np.array([7, 9], np.uint32))
    batch = load_batch(CORPUS, LABELS, planned)
    assert batch.waveform.shape == (4, 40000) and batch.waveform.dtype == np.float32
    assert batch.labels.shape == (4, 6) and batch.labels.dtype == np.int32
    for row, audio in enumerate((CORPUS.load_audio(5), change_speed(CORPUS.load_audio(0), 0.9))):
        assert batch.num_samples[row] == audio.size
        np.testing.assert_array_equal(batch.waveform[row, : audio.size], audio)
        assert not batch.waveform[row, audio.size :].any()
    assert batch.labels[0].tolist() == LABELS[5] + [0] * (6 - len(LABELS[5]))
    assert batch.num_labels.tolist() == [len(LABELS[5]), len(LABELS[0]), 0, 0]
    assert batch.valid.tolist() == [True, True, False, False]
    assert batch.num_samples[2:].tolist() == [0, 0] and not batch.waveform[2:].any()
    assert batch.augment_seed.tolist() == [7, 9, 0, 0] and batch.augment_seed.dtype == np.uint32


def test_a_row_holds_its_utterances_one_after_another():
    bucket = Bucket(90000, 15, 4)
    speeds, seeds = np.array([1.0, 0.9, 1.0]), np.array([7, 9], np.uint32)
    batch = load_batch(CORPUS, LABELS, PlannedBatch(bucket, np.array([5, 0, 3]), speeds, np.array([0, 0, 1]), seeds))
    audio = [CORPUS.load_audio(5), change_speed(CORPUS.load_audio(0), 0.9), CORPUS.load_audio(3)]
    for row, parts in enumerate((audio[:2], audio[2:])):
        joined = np.concatenate(parts)
        assert batch.num_samples[row] == joined.size
        np.testing.assert_array_equal(batch.waveform[row, : joined.size], joined)
        assert not batch.waveform[row, joined.size :].any()
    for row, ids in enumerate((LABELS[5] + LABELS[0], LABELS[3])):
        assert batch.num_labels[row] == len(ids) and batch.labels[row].tolist() == ids + [0] * (15 - len(ids))
    assert batch.valid.tolist() == [True, True, False, False] and batch.augment_seed.tolist() == [7, 9, 0, 0]


@pytest.mark.parametrize("options", [{}, {"speeds": (0.9, 1.0, 1.1)}, {"concatenate_seconds": 5.0}])
def test_an_epoch_is_the_plan(options):
    planner = make_planner(**options)
    seen = []
    for step, planned, batch in iterate_batches(CORPUS, LABELS, planner, range(planner.steps_before(1))):
        assert step == len(seen)
        assert_same(planned, planner.epoch(0)[step])
        assert_same(batch, load_batch(CORPUS, LABELS, planned))
        seen.append(planned)
    assert len(seen) == planner.steps_in_epoch(0)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_order_does_not_depend_on_threads_or_memory(threads):
    planner = make_planner(speeds=(0.9, 1.1))
    config = dataclasses.replace(CONFIG, num_threads=threads, prefetch=3, cache_gigabytes=0.001 * threads)
    expected = list(iterate_batches(CORPUS, LABELS, planner, range(25)))
    got = list(iterate_batches(CORPUS, LABELS, make_planner(speeds=(0.9, 1.1)), range(25), config=config))
    for (step, _, batch), (other_step, _, other) in zip(expected, got, strict=True):
        assert step == other_step
        assert_same(batch, other)


def test_resumes_at_any_step():
    planner = make_planner()
    everything = list(iterate_batches(CORPUS, LABELS, planner, range(planner.steps_before(3))))
    assert len(everything) == planner.steps_before(3)
    start = planner.steps_before(1) + 2
    resumed = list(iterate_batches(CORPUS, LABELS, make_planner(), range(start, planner.steps_before(3))))
    assert [step for step, _, _ in resumed] == list(range(start, planner.steps_before(3)))
    for (_, _, batch), (_, _, other) in zip(everything[start:], resumed, strict=True):
        assert_same(batch, other)
    assert list(iterate_batches(CORPUS, LABELS, planner, range(7, 7))) == []


def test_evaluation_sees_every_utterance_once():
    planner = make_planner(shuffle=False)
    seen = []
    for planned, batch in iterate_eval(CORPUS, LABELS, planner):
        for row, index in enumerate(planned.indices):
            assert batch.num_samples[row] == CORPUS.utterances[index].num_samples
            seen.append(int(index))
        assert batch.valid.sum() == len(planned.indices)
    assert sorted(seen) == list(range(len(CORPUS)))


@pytest.fixture
def files(tmp_path):
    """A corpus of eight files."""
    utterances = []
    for i in range(8):
        path = tmp_path / f"1-1-{i}.wav"
        soundfile.write(path, np.full(1600, 0.1), 16000)
        utterances.append(Utterance(f"1-1-{i}", "A", 1600, "1", str(path)))
    return Corpus("files", tuple(utterances), 16000)


@pytest.mark.parametrize("threads", [0, 2])
def test_unreadable_files_are_named(files, tmp_path, threads):
    planner = make_planner(files, [[2]] * 8, dataclasses.replace(CONFIG, num_threads=threads, batch_multiple=1))
    (tmp_path / "1-1-3.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"1-1-3\.wav"):
        list(iterate_batches(files, [[2]] * 8, planner, range(planner.steps_before(1))))
    (tmp_path / "1-1-3.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"1-1-3\.wav"):
        list(iterate_eval(files, [[2]] * 8, planner))


def test_files_that_grew_are_named(files, tmp_path):
    planner = make_planner(files, [[2]] * 8)
    soundfile.write(tmp_path / "1-1-5.wav", np.zeros(16000), 16000)
    with pytest.raises(ValueError, match=r"1-1-5 \(.*1-1-5\.wav\) has 16000 samples .* the file changed"):
        list(iterate_batches(files, [[2]] * 8, planner, range(planner.steps_before(1))))


def test_audio_stays_in_memory_up_to_the_limit(files, tmp_path):
    reads = []

    class Counting(Corpus):
        def load_audio(self, index):
            reads.append(index)
            return super().load_audio(index)

    corpus = Counting(files.name, files.utterances, files.sample_rate)
    planner = make_planner(corpus, [[2]] * 8)
    for utterances, expected in ((8, 8), (4.5, 8 + 2 * 4), (0, 24)):
        # one thread: two may read the same file at the same time
        config = dataclasses.replace(CONFIG, cache_gigabytes=utterances * 1600 * 4 / 1e9, num_threads=1)
        reads.clear()
        list(iterate_batches(corpus, [[2]] * 8, planner, range(planner.steps_before(3)), config=config))
        assert len(reads) == expected


def test_worker_processes_give_the_batches_of_the_plan():
    planner = make_planner(speeds=(0.9, 1.1))
    expected = list(iterate_batches(CORPUS, LABELS, planner, range(2, 9)))
    config = dataclasses.replace(CONFIG, num_workers=2, prefetch=2)
    loaded = list(iterate_batches(CORPUS, LABELS, planner, range(2, 9), config=config))
    assert [step for step, _, _ in loaded] == list(range(2, 9))
    for (_, planned, batch), (_, its_planned, its_batch) in zip(expected, loaded, strict=True):
        assert_same(planned, its_planned)
        assert_same(batch, its_batch)


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_placed_ahead_in_order(ahead, workers):
    config = dataclasses.replace(CONFIG, device_prefetch=ahead, num_workers=workers)
    placed = []

    def place(batch):
        placed.append(batch)
        return batch._replace(valid=len(placed))

    planner = make_planner()
    expected = iterate_batches(CORPUS, LABELS, planner, range(2, 9))
    batches = iterate_batches(CORPUS, LABELS, planner, range(2, 9), config=config, place=place)
    for number, ((step, planned, batch), (its_step, its_planned, its_batch)) in enumerate(
        zip(expected, batches, strict=True), start=1
    ):
        assert its_step == step and its_batch.valid == number
        assert_same(its_planned, planned)
        assert_same(its_batch._replace(valid=batch.valid), batch)
        most = number + (ahead + 1 if ahead else 0)  # one more is on its way
        deadline = time.monotonic() + 60
        while len(placed) < min(most, 7) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(placed) == min(most, 7)


def test_a_batch_that_cannot_be_placed_ends_the_iteration():
    def place(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(iterate_batches(CORPUS, LABELS, make_planner(), range(9), place=place))


def test_errors_of_worker_processes_name_the_file(files, tmp_path):
    (tmp_path / "1-1-3.wav").write_bytes(b"no audio")
    config = dataclasses.replace(CONFIG, num_workers=1, batch_multiple=1)
    with pytest.raises(ValueError, match=r"1-1-3\.wav: not readable as audio"):
        planner = make_planner(files, [[2]] * 8)
        list(iterate_batches(files, [[2]] * 8, planner, range(planner.steps_before(1)), config=config))
