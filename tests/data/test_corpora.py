import os
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.audio.frontend import FrontendConfig, num_frames
from i3d_jax.data import corpora
from i3d_jax.data import folder as layout
from i3d_jax.data.corpora import Corpus, DataConfig, Utterance, load_corpus, reject_infeasible
from i3d_jax.data.synthetic import tone_words
from i3d_jax.model.subsampling import num_subsampled_frames


def write_audio(path, seconds=1.0, rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, samples, rate)


@pytest.fixture
def folder(tmp_path):
    """Two chapters in LibriSpeech layout."""
    root = tmp_path / "corpus"
    for chapter, speaker in (("train/1/10", "1"), ("train/2/20", "2")):
        place = root / chapter
        for i, suffix in enumerate(("flac", "ogg", "wav")):
            write_audio(place / f"{speaker}-{place.name}-{i:04d}.{suffix}", seconds=1 + i)
        lines = [f"{speaker}-{place.name}-{i:04d} WORD NUMBER{i}\n" for i in range(3)]
        (place / f"{speaker}-{place.name}.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture
def config(folder, tmp_path):
    return DataConfig(source=str(folder), cache_dir=str(tmp_path / "cache"))


def test_reads_a_folder(config):
    corpus = load_corpus(config, "train")
    assert [u.id for u in corpus.utterances] == [f"{s}-{s}0-{i:04d}" for s in "12" for i in range(3)]
    assert corpus.utterances[4] == Utterance(
        "2-20-0001", "WORD NUMBER1", 32000, "2", os.path.join(config.source, "train/2/20/2-20-0001.ogg")
    )
    assert not corpus.rejected
    assert corpus.hours == pytest.approx(12 / 3600)
    assert corpus.describe() == "corpus/train: 6 utterances, 0.00 h, 2 speakers"
    for i, utterance in enumerate(corpus.utterances):
        audio = corpus.load_audio(i)
        assert audio.dtype == np.float32 and audio.shape == (utterance.num_samples,)


def test_list_files_keep_their_order(config, folder):
    (folder / "splits").mkdir()
    (folder / "splits/dev.txt").write_text("train/2/20/2-20-0001.ogg\r\n\ntrain/1/10/1-10-0000.flac\n")
    corpus = load_corpus(config, "splits/dev.txt")
    assert [u.id for u in corpus.utterances] == ["2-20-0001", "1-10-0000"]
    assert not corpus.rejected  # transcripts of unlisted audio are not missing audio


def test_listed_files_that_are_missing_are_named(config, folder):
    (folder / "dev.txt").write_text("train/2/20/2-20-0001.flac\ntrain/1/10/1-10-0000.flac\nnowhere/9-9-9.flac\n")
    corpus = load_corpus(config, "dev.txt")
    assert len(corpus) == 1
    assert corpus.rejected == {layout.NOT_FOUND: ["2-20-0001", "9-9-9"]}
    (folder / "dev.txt").write_text("nowhere/9-9-9.flac\n")
    with pytest.raises(FileNotFoundError, match=r"none of the listed audio files exists.*9-9-9"):
        load_corpus(config, "dev.txt")


def test_joined_splits_and_openslr_folders(config, folder, tmp_path):
    shutil.move(folder / "train/2", folder / "LibriSpeech/dev-other/2")
    corpus = load_corpus(config, "train+dev-other")
    assert [u.speaker for u in corpus.utterances] == ["1", "1", "1", "2", "2", "2"]
    assert not corpus.rejected
    twice = load_corpus(config, "train+train")
    assert len(twice) == 3 and len(twice.rejected[corpora.DUPLICATE]) == 3


def test_what_cannot_be_used_is_counted_and_named(config, folder):
    place = folder / "train/1/10"
    write_audio(place / "1-10-0003.flac")
    write_audio(place / "1-10-0004.flac")
    (place / "1-10-0005.flac").write_bytes(b"")
    (place / "1-10-0006.flac").write_bytes(b"no audio at all")
    write_audio(place / "1-10-0007.wav", seconds=0.05)
    write_audio(place / "1-10-0008.wav", seconds=0)
    (place / "._1-10-0000.flac").write_bytes(b"a resource fork")
    (place / "README.txt").write_text("not a transcript")
    with (place / "1-10.trans.txt").open("a") as file:
        file.write("1-10-0004\n\n1-10-0005 A\n1-10-0006 A\n1-10-0007 A\n1-10-0008 A\n1-10-0009 GONE\n")
    expected = {
        layout.NO_AUDIO: ["1-10-0009"],
        layout.NO_TRANSCRIPT: ["1-10-0003"],
        layout.EMPTY_TRANSCRIPT: ["1-10-0004"],
        "no audio samples": ["1-10-0005", "1-10-0008"],
        "unreadable audio": ["1-10-0006"],
        corpora.TOO_SHORT: ["1-10-0007"],
    }
    corpus = load_corpus(config, "train")
    assert corpus.rejected == expected
    assert len(corpus) == 6
    assert "2 no audio samples (1-10-0005, 1-10-0008), 1 unreadable audio (1-10-0006)" in corpus.describe()


def test_long_utterances_are_rejected_from_training_only(folder, tmp_path):
    config = DataConfig(source=str(folder), dev="train", max_seconds=2, cache_dir=str(tmp_path))
    train, dev = load_corpus(config, "train"), load_corpus(config, "dev")
    assert train.rejected == {corpora.TOO_LONG: ["1-10-0002", "2-20-0002"]}
    assert len(train) == 4 and len(dev) == 6 and not dev.rejected
    with pytest.raises(ValueError, match="no utterance is left of corpus/train: .*6 too short"):
        load_corpus(DataConfig(source=str(folder), min_seconds=5, cache_dir=str(tmp_path)), "train")


def test_awkward_transcripts(config, folder):
    place = folder / "train/1/10"
    content = "1-10-0000\tTABS\t AND   SPACES \r\n1-10-0001 CAFÉ\r\n1-10-0002 C\u2028D"
    (place / "1-10.trans.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    texts = [u.text for u in load_corpus(config, "train").utterances[:3]]
    assert texts == ["TABS AND SPACES", "CAFÉ", "C D"]
    (place / "1-10.trans.txt").write_bytes("1-10-0000 CAFÉ".encode("latin-1"))
    with pytest.raises(ValueError, match=r"1-10\.trans\.txt: expected UTF-8"):
        load_corpus(config, "train")


@pytest.mark.parametrize(("rate", "channels", "samples"), [(8000, 1, 7999), (44100, 2, 44103), (16000, 3, 16001)])
def test_lengths_are_those_of_the_audio(folder, tmp_path, rate, channels, samples):
    write_audio(folder / "odd/3/30/3-30-0000.wav", samples / rate, rate, channels)
    (folder / "odd/3/30/3-30.trans.txt").write_text("3-30-0000 ODD")
    config = DataConfig(source=str(folder), cache_dir=str(tmp_path))
    for sample_rate in (16000, 8000):
        corpus = load_corpus(
            DataConfig(source=config.source, sample_rate=sample_rate, cache_dir=config.cache_dir), "odd"
        )
        assert corpus.load_audio(0).shape == (corpus.utterances[0].num_samples,)


def test_environment_variables(config, folder, monkeypatch):
    monkeypatch.setenv("SOME_SPEECH", str(folder.parent))
    for source in ("${SOME_SPEECH}/corpus", "$SOME_SPEECH/corpus"):
        assert len(load_corpus(DataConfig(source=source, cache_dir=config.cache_dir), "train")) == 6
    monkeypatch.delenv("SOME_SPEECH")
    with pytest.raises(ValueError, match=r"data\.source.*SOME_SPEECH is not set; export SOME_SPEECH="):
        load_corpus(DataConfig(source="${SOME_SPEECH}/corpus"), "train")


def test_missing_places_are_explained(config, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.source = .*/nowhere'.*no folder.*LibriSpeech layout"):
        load_corpus(DataConfig(source=str(tmp_path / "nowhere")), "train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*corpus/dev nor .*LibriSpeech/dev; .* holds train/\."):
        load_corpus(config, "dev")
    with pytest.raises(FileNotFoundError, match=r"no list .*corpus/splits/dev\.txt"):
        load_corpus(config, "splits/dev.txt")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no \.flac, \.wav, .* file; unpack"):
        load_corpus(config, "empty")


def test_synthetic(tmp_path):
    config = DataConfig(source="synthetic")
    train, dev = load_corpus(config, "train"), load_corpus(config, "dev")
    assert (len(train), len(dev)) == (64, 16)
    again = load_corpus(config, "train")
    for i, (one, other) in enumerate(zip(train.utterances, again.utterances, strict=True)):
        assert (one.id, one.text) == (other.id, other.text)
        np.testing.assert_array_equal(one.audio, other.audio)
        assert train.load_audio(i).dtype == np.float32 and abs(train.load_audio(i)).max() < 1
    assert not {u.id for u in train.utterances} & {u.id for u in dev.utterances}
    assert len(load_corpus(config, "train+dev")) == 80
    with pytest.raises(ValueError, match="train, dev, test, not 'other'"):
        load_corpus(config, "other")
    (only,) = tone_words("train", num_utterances=1, max_words=1, word_seconds=(0.1, 0.1), sample_rate=8000)
    assert only[2].shape == (400 + 800 + 400,)


def test_infeasible_labels_are_rejected():
    utterances = tuple(Utterance(f"1-1-{i}", "A", n, "1", np.zeros(n, np.float32)) for i, n in enumerate((40, 40, 50)))
    corpus = Corpus("tones", utterances, 16000)
    labels = [[1, 2, 3, 4], [1, 2, 2, 3], [5, 5, 5]]  # 4, 5 and 5 frames needed
    kept, kept_labels = reject_infeasible(corpus, labels, lambda n: n // 10)
    assert kept.rejected == {corpora.INFEASIBLE: ["1-1-1"]} and list(kept_labels) == [labels[0], labels[2]]
    kept, kept_labels = reject_infeasible(corpus, labels[:2] + [[7]], lambda n: n // 10, speeds=(0.9, 1.0, 1.1))
    assert kept.rejected == {corpora.INFEASIBLE: ["1-1-0", "1-1-1"]} and list(kept_labels) == [[7]]
    kept, _ = reject_infeasible(corpus, [*labels[:2], [5, 6, 5, 6]], lambda n: n // 10, joined=True)  # 5, 6, 5 frames
    assert kept.rejected == {corpora.INFEASIBLE: ["1-1-0", "1-1-1"]}
    with pytest.raises(ValueError, match="no utterance has enough frames"):
        reject_infeasible(corpus, [[1] * 50] * 3, lambda n: n // 10)
    with pytest.raises(ValueError, match="2 label sequences for 3 utterances"):
        reject_infeasible(corpus, labels[:2], lambda n: n)


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6))
def test_joined_utterances_have_the_frames_of_their_parts(lengths):
    def frames(samples):
        return num_subsampled_frames(int(num_frames(FrontendConfig(), samples)))

    assert frames(sum(lengths)) >= sum(map(frames, lengths))


REAL = {"an4": (768, 89, 91), "librispeech-train-clean-5": (1215, 78, 87)}


@pytest.mark.parametrize("name", REAL)
def test_real_corpora(name, tmp_path):
    speech = os.environ.get("I3D_SPEECH_DIR")
    if not speech:
        pytest.skip("I3D_SPEECH_DIR is not set: no real speech to read")
    config = DataConfig(
        source=f"${{I3D_SPEECH_DIR}}/{name}",
        train="splits/train.txt",
        dev="splits/dev.txt",
        test="splits/test.txt",
        cache_dir=str(tmp_path),
    )
    speakers: set[str] = set()
    for split, count in zip(("train", "dev", "test"), REAL[name], strict=True):
        corpus = load_corpus(config, split)
        assert len(corpus) == count and not corpus.rejected
        found = {u.speaker for u in corpus.utterances}
        assert not speakers & found
        speakers |= found
        assert all(u.text and u.text == u.text.upper() for u in corpus.utterances)
        for i in range(0, count, 20):
            assert corpus.load_audio(i).shape == (corpus.utterances[i].num_samples,)
    everything = load_corpus(config, "an4" if name == "an4" else "train-clean-5")
    assert len(everything) == sum(REAL[name]) and not everything.rejected
