"""Whatever lies in a folder: it is used, or counted under a reason, or ends in one line that names it."""

import inspect
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d_jax.data import corpora, durations
from i3d_jax.data import folder as layout
from i3d_jax.data.corpora import DataConfig, load_corpus


def encoded(format="WAV", subtype=None, seconds=0.5, rate=16000):
    buffer = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def not_finite():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, np.nan] * 4000), 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


WAV = encoded()


@pytest.fixture
def place(tmp_path):
    """A split with one good utterance."""
    place = tmp_path / "corpus" / "train"
    place.mkdir(parents=True)
    (place / "good.wav").write_bytes(WAV)
    (place / "a.trans.txt").write_text("good GOOD\n")
    return place


def load(place, split="train", **options):
    return load_corpus(
        DataConfig(source=str(place.parent), cache_dir=str(place.parents[1] / "cache"), **options), split
    )


def say(place, *lines):
    (place / "b.trans.txt").write_bytes("\n".join(lines).encode())


# -- Audio ------------------------------------------------------------------------------------------------------------

BAD_AUDIO = {
    "zero length": (b"", "no audio samples"),
    "no samples": (encoded(seconds=0), "no audio samples"),
    "one sample": (encoded(seconds=1 / 16000), corpora.TOO_SHORT),
    "random": (np.random.default_rng(0).bytes(5000), "unreadable audio"),
    "text": (b"this is text", "unreadable audio"),
    "truncated FLAC": (encoded("FLAC")[:-2000], "truncated or damaged audio"),
    "truncated WAV": (WAV[:-2000], "truncated or damaged audio"),
    "truncated Ogg": (encoded("OGG")[:-500], "truncated or damaged audio"),
    "NaN": (not_finite(), "NaN or infinite samples"),
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_counted(place, case):
    data, reason = BAD_AUDIO[case]
    (place / "bad.flac").write_bytes(data)
    say(place, "bad BAD")
    for _ in range(2):  # read, and from the cache
        corpus = load(place)
        assert [u.id for u in corpus.utterances] == ["good"] and corpus.rejected == {reason: ["bad"]}
    assert f"rejected: 1 {reason} (bad)" in corpus.describe()


def test_without_verification_only_headers_are_read(place):
    (place / "bad.flac").write_bytes(encoded("FLAC")[:-2000])
    say(place, "bad BAD")
    corpus = load(place, verify=False)
    assert not corpus.rejected
    with pytest.raises(ValueError, match=r"bad\.flac: the audio file is truncated or damaged"):
        corpus.load_audio(0)
    assert load(place).rejected == {"truncated or damaged audio": ["bad"]}  # headers in the cache do not verify
    assert load(place, verify=False).rejected  # what is known is known


@pytest.mark.parametrize("rate", [8000, 192000])
def test_any_rate_is_resampled(place, rate):
    (place / "other.wav").write_bytes(encoded(rate=rate))
    say(place, "other OTHER")
    corpus = load(place)
    assert corpus.utterances[1].num_samples == len(corpus.load_audio(1)) == 8000


def test_other_formats_and_names_are_counted_not_overlooked(place):
    (place / "film.m4a").write_bytes(b"")
    (place / "song.MP3").write_bytes(encoded("MP3"))
    say(place, "film A", "song B")
    corpus = load(place)
    assert [u.id for u in corpus.utterances] == ["good", "song"] and corpus.rejected == {layout.OTHER_FORMAT: ["film"]}


def test_results_are_cached_until_a_file_changes(place, monkeypatch):
    calls = []
    check = durations.audio_io.check_audio
    monkeypatch.setattr(durations.audio_io, "check_audio", lambda path: (calls.append(path.name), check(path))[1])
    (place / "bad.wav").write_bytes(b"no audio")
    say(place, "bad BAD")
    before = load(place)
    assert sorted(calls) == ["bad.wav", "good.wav"]
    assert load(place) == before and len(calls) == 2
    (place / "good.wav").write_bytes(encoded(seconds=1.5))
    assert load(place).utterances[0].num_samples == 24000 and calls[2:] == ["good.wav"]
    (cache,) = (place.parents[1] / "cache" / "measures").iterdir()
    key, entry = next(iter(json.loads(cache.read_text()).items()))
    for text in ("{broken", "[]", json.dumps({key: [1, 2, 3, 4]}), json.dumps({key: [*entry[:3], "1", *entry[4:]]})):
        cache.write_text(text)
        assert load(place).utterances[0].num_samples == 24000


def test_an_interrupted_check_keeps_what_it_has(place, monkeypatch):
    monkeypatch.setattr(durations.os, "cpu_count", lambda: 1)
    check = durations.audio_io.check_audio

    def interrupted(path):
        if path.name == "later.wav":
            raise KeyboardInterrupt
        return check(path)

    (place / "later.wav").write_bytes(WAV)
    say(place, "later LATER")
    monkeypatch.setattr(durations.audio_io, "check_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(place)
    (cache,) = (place.parents[1] / "cache" / "measures").iterdir()
    assert "good.wav" in cache.read_text() and "later.wav" not in cache.read_text()


def test_a_large_corpus_shows_its_progress(place, monkeypatch, capsys):
    monkeypatch.setattr(durations, "_SHOWN_FROM", 1)
    load(place)
    assert "checking audio 1/1" in capsys.readouterr().err


def test_what_may_not_be_read(place, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied")

    (place / "secret.wav").write_bytes(WAV)
    say(place, "secret S")
    with monkeypatch.context() as patch:
        patch.setattr(durations.audio_io, "check_audio", lambda p: refuse(p) if p.stem == "secret" else (8000, 16000))
        assert load(place).rejected == {durations.NO_PERMISSION: ["secret"]}
    assert not load(place).rejected  # not cached: permissions leave no trace in size and time
    kind = type(epath.Path(place))
    for method, message in (("read_bytes", r"a\.trans\.txt: no perm"), ("iterdir", r"train: no permission to list")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, refuse)
            with pytest.raises(PermissionError, match=message):
                load(place)
    with monkeypatch.context() as patch:
        patch.setattr(durations.files, "write_text", refuse)
        (place / "good.wav").write_bytes(encoded(seconds=1))
        with pytest.raises(OSError, match=r"measures/.*json: cannot be written .*; set data\.cache_dir"):
            load(place)


# -- Transcripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "texts", "rejected"),
    [
        ("x ÉTÉ\tnaïve", ["ÉTÉ naïve"], {}),
        ("x 語言 😀👩‍👩‍👧", ["語言 😀👩‍👩‍👧"], {}),
        ("x שלום e\u0301\u00a0a\u200bb", ["שלום e\u0301 a\u200bb"], {}),
        ("\ufeffx A\r\ny B\r\n", ["A"], {layout.NO_AUDIO: ["y"]}),
        ("y B\rx A", ["A"], {layout.NO_AUDIO: ["y"]}),
        ("x", [], {layout.EMPTY_TRANSCRIPT: ["x"]}),
        ("x \u200b\u200b", [], {layout.EMPTY_TRANSCRIPT: ["x"]}),
        ("x A▁B", [], {layout.RESERVED_CHARACTER: ["x"]}),
        ("x A\nx B\nx A", ["A"], {layout.REPEATED_LINE: ["x", "x"]}),
        ("y A\ny B", [], {layout.NO_AUDIO: ["y"], layout.REPEATED_LINE: ["y"], layout.NO_TRANSCRIPT: ["x"]}),
        ("\n \n", [], {layout.NO_TRANSCRIPT: ["x"]}),
    ],
)
def test_transcripts(place, content, texts, rejected):
    (place / "x.wav").write_bytes(WAV)
    say(place, content)
    corpus = load(place)
    assert [u.text for u in corpus.utterances] == ["GOOD", *texts]
    assert corpus.rejected == rejected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x CAFÉ".encode("latin-1"), r"b\.trans\.txt: expected UTF-8 text \(unexpected end of data at byte 5\)"),
        ("x CAFÉ".encode("utf-16"), r"b\.trans\.txt: expected UTF-8 text \(invalid start byte at byte 0\)"),
        ("x A".encode("utf-16-le"), r"b\.trans\.txt: expected UTF-8 text, found a zero byte"),
    ],
)
def test_other_encodings_stop_the_run(place, content, message):
    (place / "b.trans.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(place)


def test_accents_match_however_they_are_stored(place):
    (place / "cafe\u0301.wav").write_bytes(WAV)
    say(place, "caf\u00e9 CAFÉ")
    corpus = load(place)
    assert [u.text for u in corpus.utterances] == ["CAFÉ", "GOOD"] and not corpus.rejected


def test_only_audio_or_only_transcripts(place):
    (place / "a.trans.txt").unlink()
    with pytest.raises(ValueError, match=r"no utterance is left .* rejected: 1 audio without transcript \(good\)"):
        load(place)
    (place / "good.wav").unlink()
    say(place, "good GOOD")
    with pytest.raises(FileNotFoundError, match=r"train: no \.flac, .* file; unpack the audio there"):
        load(place)


# -- Names, links, lists ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-dash", "quote'\"", "take(1)", "語言", "a.b", "%25", "x" * 240, "a\\b", "$HOME"])
def test_unusual_names_are_used(place, name):
    (place / f"{name}.wav").write_bytes(WAV)
    say(place, f"{name} TEXT")
    corpus = load(place)
    assert not corpus.rejected and {u.id for u in corpus.utterances} == {"good", name}
    (place.parent / "list.txt").write_text(f"train/{name}.wav\n")
    assert [u.text for u in load(place, "list.txt").utterances] == ["TEXT"]


@pytest.mark.parametrize("name", [b"a b", b"a\nb", b" a", "a\u00a0b".encode(), b"a\xff"])
def test_names_that_no_transcript_can_hold_are_counted(place, name):
    (place / os.fsdecode(name + b".wav")).write_bytes(WAV)
    corpus = load(place)
    assert corpus.rejected == {layout.BAD_NAME: [os.fsdecode(name)]}
    assert corpus.describe().isprintable()
    corpus.describe().encode()  # any stream can take it


def test_folders_may_have_any_name(place):
    for name in (b"a b", b"a\xff", b"a\nb"):
        below = place / os.fsdecode(name)
        below.mkdir()
        stem = f"n{len(name)}{name[1]}"
        (below / f"{stem}.wav").write_bytes(WAV)
        (below / "a.trans.txt").write_text(f"{stem} A")
    assert len(load(place)) == 4 and not load(place).rejected


def test_folders_may_lie_deep(place):
    deep, depth, usual = place, 400, sys.getrecursionlimit()
    for _ in range(depth):
        deep = deep / "d"
        os.mkdir(deep)
    (deep / "low.wav").write_bytes(WAV)
    say(deep, "low LOW")
    sys.setrecursionlimit(len(inspect.stack(0)) + depth - 100)  # a walk that calls itself would not get there
    try:
        assert [u.id for u in load(place).utterances] == ["low", "good"]
    finally:
        sys.setrecursionlimit(usual)


def test_links(place, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.wav").write_bytes(WAV)
    (outside / "far.trans.txt").write_text("far FAR\nlink LINK\nbroken B\nself S\n")
    (place / "out").symlink_to(outside)
    (outside / "link.wav").symlink_to(outside / "far.wav")
    (outside / "broken.wav").symlink_to(outside / "nowhere.wav")
    (outside / "self.wav").symlink_to(outside / "self.wav")
    for name, target in (("up", place), ("upper", place.parent), ("again", outside), ("dangling", tmp_path / "no")):
        (outside / name).symlink_to(target)
    corpus = load(place)
    assert [u.id for u in corpus.utterances] == ["good", "far", "link"]
    assert corpus.rejected == {
        layout.FOLDER_AGAIN: ["again", "up", "upper"],
        durations.NOT_A_FILE: ["broken", "self"],
    }


def test_pipes_do_not_hang(place):
    os.mkfifo(place / "pipe.wav")
    say(place, "pipe A")
    assert load(place).rejected == {durations.NOT_A_FILE: ["pipe"]}
    os.mkfifo(place / "c.trans.txt")
    with pytest.raises(FileNotFoundError, match=r"c\.trans\.txt: a broken link or no file"):
        load(place)


def test_a_folder_named_like_audio_is_a_folder(place):
    (place / "x.wav").mkdir()
    shutil.copy(place / "good.wav", place / "x.wav" / "in.wav")
    (place / "x.wav" / "a.trans.txt").write_text("in IN")
    assert [u.id for u in load(place).utterances] == ["good", "in"]


def test_clashing_ids_and_overlapping_parts(place):
    for name in ("s1", "s2"):
        (place / name).mkdir()
        (place / name / "001.wav").write_bytes(WAV)
        (place / name / "a.trans.txt").write_text(f"001 {name}")
    corpus = load(place)
    assert [u.text for u in corpus.utterances] == ["GOOD", "s1"] and corpus.rejected == {corpora.DUPLICATE: ["001"]}
    twice = load(place, "train+train/s1")
    assert twice.rejected == {corpora.DUPLICATE: ["001", "001"]}


def test_lists(place):
    list_file = place.parent / "list.txt"
    list_file.write_text(f"train/../train/good.wav\n{place}/good.wav\ntrain/good.wav\n b.wav\ntrain/a.trans.txt")
    corpus = load(place, "list.txt")
    assert len(corpus) == 1
    assert corpus.rejected == {
        layout.NOT_FOUND: ["b"],
        layout.NO_TRANSCRIPT: ["a.trans"],
        corpora.DUPLICATE: ["good", "good"],
    }
    for text in ("", "\n\n"):
        list_file.write_text(text)
        with pytest.raises(FileNotFoundError, match=r"list\.txt: none of the listed .* \(empty list\)"):
            load(place, "list.txt")
    list_file.write_bytes(b"caf\xe9.wav")
    with pytest.raises(ValueError, match=r"list\.txt: expected UTF-8"):
        load(place, "list.txt")


@pytest.mark.parametrize("split", ["train+", "+train", " + "])
def test_empty_parts_do_not_mean_everything(place, split):
    with pytest.raises(ValueError, match="a part is empty"):
        load(place, split)


# -- Nothing is lost --------------------------------------------------------------------------------------------------

CONTENTS = [WAV, encoded("FLAC"), encoded("OGG"), *(data for data, _ in BAD_AUDIO.values())]
names = st.sampled_from(["a", "b", "c", "d e", "f(1)", "語"])
suffixes = st.sampled_from([".wav", ".flac", ".ogg", ".m4a"])
audio_files = st.dictionaries(st.tuples(st.sampled_from(["1", "2"]), names, suffixes), st.sampled_from(CONTENTS))
lines = st.lists(st.tuples(st.sampled_from(["1", "2"]), st.sampled_from("abcg語"), st.sampled_from(["", "X", "É ▁"])))


@settings(max_examples=60)
@given(audio_files, lines, st.booleans())
def test_every_file_and_line_is_used_or_counted(audio, transcript, verify):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        for part in "12":
            (root / "all" / part).mkdir(parents=True)
        (root / "all" / "ok.wav").write_bytes(WAV)
        (root / "all" / "ok.trans.txt").write_text("ok OK")
        for (part, name, suffix), data in audio.items():
            (root / "all" / part / f"{name}{suffix}").write_bytes(data)
        for part, name, text in transcript:
            with (root / "all" / part / "t.trans.txt").open("a") as file:
                file.write(f"{name} {text}\n")
        config = DataConfig(source=str(root), cache_dir=f"{folder}/cache", verify=verify)
        corpus = load_corpus(config, "all")
    used = Counter(u.id for u in corpus.utterances)
    assert max(used.values()) == 1
    ended = used + Counter(id for ids in corpus.rejected.values() for id in ids)
    stems = Counter(name for _, name, _ in audio) + Counter(["ok"])
    folders = {(part, name) for part, name, _ in audio}
    without_audio = Counter({(part, name) for part, name, _ in transcript if (part, name) not in folders})
    repeated = Counter((part, name) for part, name, _ in transcript)
    expected = Counter(stems)
    for (_, name), count in without_audio.items():
        expected[name] += count
    for (_, name), count in repeated.items():
        expected[name] += count - 1
    assert ended == expected
    lost = corpus.rejected.get(layout.NO_AUDIO, []), corpus.rejected.get(layout.REPEATED_LINE, [])
    assert len(lost[0]) == without_audio.total() and len(lost[1]) == len(transcript) - len(repeated)
