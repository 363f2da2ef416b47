"""Decoders and timestamps on the demo model, through every execution."""

import contextlib
import difflib
import hashlib
import importlib.util

import jax
import numpy as np
import pytest

from i3d_jax.audio.io import read_audio
from i3d_jax.data import demo_corpus
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.execution import EXECUTIONS
from i3d_jax.inference.joint_decoding import JointDecodingConfig
from i3d_jax.inference.recognizer import load
from i3d_jax.inference.scheduler import Work, recognize_batches
from i3d_jax.inference.transcription import alone, padded
from i3d_jax.inference.windows import FRAME
from i3d_jax.training.compiled import compilations
from tests.trainings import ROOT

SAMPLE = ROOT / "docs" / "demo_model" / "sample.flac"


@pytest.fixture(scope="module")
def asr():
    return load(ROOT / "docs" / "demo_model")


@pytest.fixture(scope="module")
def noisy():
    """The sample with noise over it, of which the model is not sure."""
    sample = read_audio(SAMPLE, 16000)
    return sample + 0.02 * np.random.default_rng(0).standard_normal(len(sample)).astype(np.float32)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_every_execution_gives_the_same_beam_and_times(asr, noisy, execution):
    config = DecodingConfig("prefix_beam", beam=8, n_best=4)
    wanted = asr.transcribe(noisy, sample_rate=16000, decoder=config, timestamps=True)
    result = asr.transcribe(noisy, sample_rate=16000, decoder=config, timestamps=True, execution=execution)
    assert [one.text for one in result.alternatives] == [one.text for one in wanted.alternatives]
    assert result.text == result.alternatives[0].text and len(result.alternatives) == 4
    scores = [one.score for one in result.alternatives]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    assert [word[:3] for word in result.words] == [word[:3] for word in wanted.words]
    np.testing.assert_allclose([w.confidence for w in result.words], [w.confidence for w in wanted.words], atol=1e-3)


def test_words_spell_the_text_and_lie_in_the_recording(asr, noisy):
    for audio in (noisy, np.tile(noisy, 6)):  # 2 s, and windows
        for decoder in ("greedy", "prefix_beam"):
            result = asr.transcribe(audio, sample_rate=16000, decoder=decoder, timestamps=True)
            plain = asr.transcribe(audio, sample_rate=16000, decoder=decoder)
            assert result.text == plain.text and plain.words is None
            assert " ".join(word.word for word in result.words) == result.text != ""
            times = [edge for word in result.words for edge in word[1:3]]
            assert times == sorted(times) and times[0] >= 0 and times[-1] <= result.audio_seconds
            assert all(0 < word.confidence <= 1 for word in result.words)


def test_words_of_windows_are_where_the_speech_is(asr):
    sample = read_audio(SAMPLE, 16000)
    once = asr.transcribe(sample, sample_rate=16000, timestamps=True).words
    step = -(-(len(sample) + 6000) // FRAME) * FRAME  # every window begins with a sentence
    pause = 1e-3 * np.random.default_rng(0).standard_normal(step - len(sample)).astype(np.float32)
    period = step / 16000
    result = asr.transcribe(
        np.concatenate([sample, pause] * 8),
        sample_rate=16000,
        timestamps=True,
        window_seconds=2 * period,
        overlap_seconds=period,
    )
    assert len(result.segments) == 7
    expected = [(word.word, word.begin + i * period) for i in range(8) for word in once]
    found = [(word.word, word.begin) for word in result.words]
    same = difflib.SequenceMatcher(None, *([word for word, _ in each] for each in (found, expected)), autojunk=False)
    pairs = [
        (found[block.a + i][1], expected[block.b + i][1])
        for block in same.get_matching_blocks()
        for i in range(block.size)
    ]
    assert len(pairs) >= 0.6 * len(expected)  # two sentences at once cost the small model some words
    assert np.abs(np.subtract(*np.transpose(pairs))).max() < 0.12


def test_the_paths_of_a_beam_hold_its_tokens(asr, noisy):
    decoding = asr.with_decoder(DecodingConfig("prefix_beam", beam=5))
    batch = padded([noisy, noisy[:16000]], 3)
    recognition = decoding.recognize(*batch, decoding.decision(), "masked")
    assert recognition.scores is None  # it is large, and stays on the device
    for row in range(3):
        path = recognition.path[row]
        runs = path[np.flatnonzero((path != 0) & (path != np.pad(path[:-1], (1, 0))))]
        np.testing.assert_array_equal(runs, recognition.tokens[row, : recognition.num_tokens[row]])
    assert (recognition.blank_margin[recognition.path != 0] <= 0).all()
    assert recognition.num_tokens[2] == 0 and recognition.n_best.scores[2, 0] == 0


def test_devices_and_regrouped_batches_decode_alike(asr, noisy):
    config = DecodingConfig("prefix_beam", beam=4)
    decide = asr.decision()
    lengths = [len(noisy) - 400 * i for i in range(8)]
    batch = padded([noisy[:length] for length in lengths], 8)
    wanted = [
        asr.with_decoder(config).recognize(*alone(noisy[:length]), decide, "conditional").tokens for length in lengths
    ]
    split = asr.over_devices(jax.devices()[:4]).with_decoder(config)
    assert split.split is not None
    together = split.recognize(*batch, decide, "conditional")
    regrouped = dict.fromkeys(range(8))
    decoding = asr.with_decoder(config)
    assert decoding.regroups((8, *batch[0].shape[1:]), "compacted")
    for indices, found in recognize_batches(decoding, [Work(np.arange(8), *batch)], decide, "compacted"):
        for row, index in enumerate(indices):
            regrouped[int(index)] = found.tokens[row]
    for row, tokens in enumerate(wanted):
        own = tokens[0][tokens[0] != 0]
        for other in (together.tokens[row], regrouped[row]):
            np.testing.assert_array_equal(other[other != 0], own)


def test_what_is_compiled_for_a_decoder_is_kept(asr):
    config = DecodingConfig("prefix_beam", beam=5)
    assert asr.with_decoder(config) is asr.with_decoder(config) is not asr
    assert asr.with_decoder(None) is asr.with_decoder(DecodingConfig()) is asr
    assert asr.with_decoder(config).with_decoder(None) is asr.with_decoder(config)
    assert asr.pipeline.keep == "tokens" and asr.with_decoder(None, timestamps=True).pipeline.keep == "scores"


@pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed: no demo speech"
)
def test_words_begin_about_when_the_synthesiser_says_them(asr):
    takes = [
        take for take in demo_corpus._plan(demo_corpus.DemoCorpusConfig(1, 1, 40, seed=77)) if take.split == "test"
    ]
    generator = np.random.default_rng(0)
    with contextlib.closing(demo_corpus.speak([take.job for take in takes])) as spoken:
        known = [(demo_corpus._finish(one.pcm, one.rate, generator), one.word_begins) for one in spoken]
    results = asr.transcribe([audio for audio, _ in known], sample_rate=16000, timestamps=True)
    errors = []
    for take, (_, begins), result in zip(takes, known, results, strict=True):
        assert (np.diff(begins) >= 0).all() and begins[0] == 0 and len(begins) <= len(take.text.split())
        if result.text == take.text and len(begins) == len(result.words):  # eSpeak runs some words together
            errors += [word.begin - begin for word, begin in zip(result.words, begins, strict=True)]
    assert len(errors) > 40
    assert np.abs(errors).mean() < 0.15 and np.abs(np.median(errors)) < 0.1


@pytest.mark.parametrize(
    "options, error",
    [
        ({"decoder": "viterbi"}, "decoder 'viterbi' is unknown: choose one of greedy, prefix_beam"),
        ({"decoder": "prefix_beam", "beam": 0}, "beam=0: expected at least 1, at most 1000"),
        ({"beam": 5}, 'beam=5: greedy decoding has none; take decoder="prefix_beam"'),
        ({"decoder": DecodingConfig("prefix_beam"), "beam": 5}, "beam=5: the DecodingConfig has its own, 10"),
        ({"decoder": "greedy", "beam": 5}, "greedy decoding has none; take"),
    ],
)
def test_bad_settings_are_told_before_anything_is_recognised(asr, monkeypatch, options, error):
    monkeypatch.setattr(asr, "recognize", lambda *_: pytest.fail("recognised before the check"))
    with pytest.raises(ValueError, match=error):
        asr.transcribe(SAMPLE, **options)


def test_n_best_is_within_the_beam():
    with pytest.raises(ValueError, match="n_best=6: expected 1 to 5, the beam"):
        DecodingConfig("prefix_beam", beam=5, n_best=6)
    with pytest.raises(ValueError, match="tokens_per_frame=0: expected at least 1"):
        DecodingConfig("prefix_beam", tokens_per_frame=0)


def test_an_attention_decoder_has_its_own_options():
    assert DecodingConfig("prefix_beam").joint is None
    assert DecodingConfig("prefix_beam", tokens_per_frame=5).label == "prefix_beam10-tokens5"
    joint = DecodingConfig("joint", beam=4, ctc_weight=0.5, length_bonus=1.0, max_length_ratio=0.3)
    assert joint.joint == JointDecodingConfig(4, 0.5, 1.0, 0.3) and joint.label == "joint4-max0.3-0.5-1"
    assert DecodingConfig("attention").joint == JointDecodingConfig(10, 0.0)
    for options, error in (
        ({"decoder": "greedy", "length_bonus": 1.0}, "length_bonus=1.0: decoder 'greedy' has no such option"),
        ({"decoder": "attention", "ctc_weight": 0.5}, "ctc_weight=0.5: decoder 'attention' has no such option"),
        ({"decoder": "joint", "tokens_per_frame": 5}, "tokens_per_frame=5: decoder 'joint' has no such option"),
        ({"decoder": "joint", "beam": 2, "n_best": 3}, "n_best=3: expected 1 to 2, the beam"),
        ({"decoder": "joint", "lm": __file__}, "takes the folder of a neural language model"),
        ({"decoder": "joint", "ctc_weight": 1.0}, "ctc_weight=1.0: expected at least 0 and below 1"),
        ({"decoder": "joint", "beam": 0}, "beam=0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=error):
            DecodingConfig(**options)


def test_evaluations_are_named_by_what_is_read_not_where(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.arpa", "b.arpa", "c.arpa")]
    for path, text in zip(paths, ("one", "two", "one"), strict=True):
        (tmp_path / path).write_text(text)
    first, second, third = (DecodingConfig("prefix_beam", lm=path, lm_weight=0.25).label for path in paths)
    assert first == third != second and first == f"prefix_beam10-lm{hashlib.sha256(b'one').hexdigest()[:6]}-0.25-0"
    both = DecodingConfig("prefix_beam", lm=paths[0], word_score=1.5, lexicon=paths[1])
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert both.label == f"prefix_beam10-lm{one[:6]}-lexicon{two[:6]}-0.5-1.5"
    assert both.digests == {"lm": one, "lexicon": two}
    assert DecodingConfig("prefix_beam", lexicon=paths[1], word_score=-1.0).label == (
        f"prefix_beam10-lexicon{two[:6]}--1"
    )
    assert DecodingConfig("prefix_beam").label == "prefix_beam10" and not DecodingConfig("prefix_beam").digests


def test_paths_are_made_absolute_and_have_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm.arpa").write_text("one")
    for path in ("lm.arpa", "~/lm.arpa", str(tmp_path / "lm.arpa")):
        assert DecodingConfig("prefix_beam", lm=path).lm == str(tmp_path / "lm.arpa")
    for decoder in ("prefix_beam", "joint"):
        with pytest.raises(FileNotFoundError, match="lm=runs/none: no such file or folder; .* configs/lm_"):
            DecodingConfig(decoder, lm="runs/none")
    with pytest.raises(FileNotFoundError, match="lexicon=gs://none/words.txt: no such file"):
        monkeypatch.setattr("etils.epath.gpath.PosixGPath.exists", lambda self: False)
        DecodingConfig("prefix_beam", lexicon="gs://none/words.txt")


def test_a_language_model_that_was_replaced_is_read_again(asr, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("i3d_jax.inference.decoder.NGramModel", lambda tokenizer, path: read.append(path))
    lm = tmp_path / "lm.arpa"
    lm.write_text("one")
    config = DecodingConfig("prefix_beam", lm=str(lm))
    first = asr.with_decoder(config)
    assert asr.with_decoder(config) is first and len(read) == 1
    lm.write_text("another")
    assert asr.with_decoder(config) is not first and len(read) == 2


def test_other_weights_share_programs_and_language_model(asr, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("i3d_jax.inference.decoder.NGramModel", lambda tokenizer, path: read.append(path))
    (tmp_path / "lm.arpa").write_text("one")
    both = [
        asr.with_decoder(DecodingConfig("prefix_beam", lm=str(tmp_path / "lm.arpa"), lm_weight=weight))
        for weight in (0.1, 0.2)
    ]
    assert len(read) == 1 and both[0].decoder is not both[1].decoder
    plain = asr.with_decoder(DecodingConfig("prefix_beam"))
    assert both[0].pipeline is both[1].pipeline is plain.pipeline is not asr.pipeline
    for weight in range(40):
        asr.with_decoder(DecodingConfig("prefix_beam", beam=1 + weight))
    assert len(asr._family) <= 16


def test_nothing_is_compiled_after_warming_up(asr, noisy):
    decoding = asr.with_decoder(DecodingConfig("prefix_beam", beam=3))
    compilations()
    decoding.warm_up(len(noisy) / 16000)
    scored = decoding.run(*alone(noisy), decoding.decision(), "conditional")
    found = decoding.finish(scored).n_best
    long = found._replace(tokens=found.tokens * 0 + np.arange(found.tokens.shape[2]) % 9 + 1,
                          num_tokens=found.num_tokens * 0 + 20)  # fmt: skip
    before = compilations()
    decoding.finish(scored)
    decoding.decoder.search = lambda *_: long
    assert decoding.finish(scored).num_tokens == 20 and compilations() == before


def test_a_model_of_ctc_alone_has_no_attention_decoder(asr):
    with pytest.raises(ValueError, match="'attention' needs an attention decoder, and this model was trained with CTC"):
        asr.with_decoder(DecodingConfig("attention"))


def test_a_recogniser_keeps_its_timestamps(asr, noisy):
    own = asr.with_decoder(None, timestamps=True)
    assert own.transcribe(noisy, sample_rate=16000).words and own.with_decoder(None) is own
    assert own.transcribe(noisy, sample_rate=16000, timestamps=False).words is None


@pytest.mark.parametrize("options", [{"beam": 5}, {"n_best": 2}, {"tokens_per_frame": 3}])
def test_greedy_decoding_has_no_options_of_a_beam(options):
    with pytest.raises(ValueError, match="decoder 'greedy' has no such option; take decoder 'prefix_beam'"):
        DecodingConfig("greedy", **options)
