import numpy as np
import pytest
import soundfile
from etils import epath

from i3d_jax.audio.integrity import AudioError
from i3d_jax.cli import segment
from i3d_jax.data import stm
from i3d_jax.data.corpora import DataConfig, load_corpus

LINES = """\
;; a comment
Talk_1 1 Ann_Lee 0.50 1.25 <o,f0,female> it 's <sil> a(2) talk
Talk_1 1 Ann_Lee 1.25 1.50 <o,f0,female> ignore_time_segment_in_scoring
Talk_1 1 Ann_Lee 1.50 2.00 <o,f0,female> <unk> {NOISE}

Talk_1 1 inter_segment_gap 2.00 2.10 <o,,> ignore_time_segment_in_scoring
Talk_1 1 Bob 2.10 9.00 <o,f0,male> they 've said don 't
Talk_1 1 Bob 3.50 4.00 <o,f0,male> too late
Talk_2 1 Eve 0.10 0.50 <o,f0,female> of another talk
"""


def talks(folder, lines=LINES, suffix="sph"):
    """A split ``dev`` with one talk of 3 s at 16 kHz; returns its samples."""
    for part in ("stm", "sph"):
        (folder / "dev" / part).mkdir(parents=True, exist_ok=True)
    (folder / "dev" / "stm" / "Talk_1.stm").write_text(lines, encoding="utf-8")
    samples = np.random.default_rng(0).integers(-9000, 9000, 48000).astype(np.int16)
    kind = {"sph": "NIST", "wav": "WAV"}[suffix]
    soundfile.write(folder / "dev" / "sph" / f"Talk_1.{suffix}", samples, 16000, format=kind, subtype="PCM_16")
    return samples


@pytest.mark.parametrize("suffix", ["sph", "wav"])
def test_a_talk_is_cut_to_the_sample_and_read_as_a_corpus(tmp_path, capsys, suffix):
    samples = talks(tmp_path / "in", suffix=suffix)
    command = [str(tmp_path / "in"), str(tmp_path / "out"), "--splits=dev"]
    segment.main(command)
    report = capsys.readouterr().out
    assert "dev: 1 recordings, 2 utterances, 0.00 h" in report
    for expected in (
        "2 segment ignored in scoring (Ann_Lee-0000125-0000150, inter_segment_gap-0000200-0000210)",
        "1 segment without words (Ann_Lee-0000150-0000200)",
        "1 segment beyond its recording (Bob-0000350-0000400)",
        "1 segment of another recording (Eve-0000010-0000050)",
    ):
        assert expected in report
    config = DataConfig(source=str(tmp_path / "out"), dev="dev", cache_dir=str(tmp_path / "cache"))
    corpus = load_corpus(config, "dev")
    assert {u.id: u.text for u in corpus.utterances} == {
        "Ann_Lee-0000050-0000125": "it's a talk",
        "Bob-0000210-0000900": "they've said don't",
    }
    assert {u.speaker for u in corpus.utterances} == {"Ann_Lee", "Bob"}
    for index, (first, last) in enumerate([(8000, 20000), (33600, 48000)]):  # the second ends with its recording
        np.testing.assert_array_equal(np.round(corpus.load_audio(index) * 32768), samples[first:last])
    segment.main(command)
    assert "dev: 0 recordings, 0 utterances, 0.00 h; rejected: none, 1 recordings kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "Talk_1 1 Ann 2.0 1.0 <o> back in time",
        "Talk_1 1 Ann x 1.0 <o> no number",
        "Talk_1 3 Ann 0.0 1.0 <o> no such channel",
        "Talk_1 1 Ann",
        "Talk_1 1 Ann 0.0 inf <o> for ever",
    ],
)
def test_a_damaged_line_is_named_and_nothing_appears(tmp_path, line):
    talks(tmp_path, LINES + line + "\n")
    with pytest.raises(ValueError, match=r"Talk_1\.stm, line 10: .* is no segment; expected <recording>"):
        stm.cut_recording(
            epath.Path(tmp_path / "dev/stm/Talk_1.stm"),
            epath.Path(tmp_path / "dev/sph/Talk_1.sph"),
            epath.Path(tmp_path / "out/Talk_1"),
        )
    assert not (tmp_path / "out" / "Talk_1").exists()


def test_what_is_missing_or_no_audio_is_named(tmp_path):
    talks(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train.stm: no transcripts"):
        segment.main([str(tmp_path), str(tmp_path / "out")])
    recording = tmp_path / "dev" / "sph" / "Talk_1.sph"
    recording.write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"Talk_1\.sph: not readable as audio"):
        segment.main([str(tmp_path), str(tmp_path / "out"), "--splits=dev"])
    recording.unlink()
    with pytest.raises(FileNotFoundError, match=r"no recordings for 1 transcripts: Talk_1\.stm"):
        segment.main([str(tmp_path), str(tmp_path / "out"), "--splits=dev"])
    assert not list((tmp_path / "out" / "dev").glob("Talk_1"))


def test_one_name_for_two_segments_is_an_error(tmp_path):
    talks(tmp_path, LINES + LINES.splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="two segments are called Ann_Lee-0000050-0000125"):
        segment.main([str(tmp_path), str(tmp_path / "out"), "--splits=dev"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("we 're here", "we're here"),
        ("rock 'n roll", "rock 'n roll"),
        ("<NA> [laughter] {COUGH}", ""),
        ("read(2) it(1) (aside)", "read it (aside)"),
        ("I 'M SURE", "I'M SURE"),
    ],
)
def test_words_only(text, expected):
    assert stm.words_only(text) == expected


def test_a_byte_order_mark_is_passed_over_and_another_encoding_named(tmp_path):
    file = epath.Path(tmp_path / "talk.stm")
    file.write_bytes(("\ufeff" + LINES.partition("\n")[2]).encode())
    assert [one.recording for one in stm.read_stm(file)][:1] == ["Talk_1"]
    file.write_bytes("Talk_1 1 Ann 0.5 1.0 <o> Ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match="talk.stm is not a text file in UTF-8"):
        list(stm.read_stm(file))
