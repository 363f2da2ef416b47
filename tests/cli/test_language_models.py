"""Evaluation with prefix beam search and language models: the commands, on the demo model."""

import hashlib
import importlib.util
import json
import shlex
from dataclasses import replace

import jax
import pytest

import eval as eval_script
from i3d_jax.cli import ngram, tune_decoder
from i3d_jax.cli.tune_decoder import TunedPoint, TuneFlags, best_point, weights_to_try
from i3d_jax.data.corpora import load_corpus
from i3d_jax.data.demo_corpus import sentences
from i3d_jax.data.ngram_training import read_unigrams
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import load_saved_config, save_config
from i3d_jax.inference.decoding_config import DecodingConfig
from i3d_jax.inference.evaluation import real_time_factor
from i3d_jax.inference.language_model_bundle import LanguageModelBundle, LanguageModelInfo, save_language_model
from i3d_jax.inference.recognizer import Recognizer, load
from i3d_jax.model.decoder import Decoder as AttentionDecoder
from i3d_jax.model.decoder import DecoderConfig
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from i3d_jax.split_evaluation import load_split
from tests.test_threshold_sweep import run as demo_run  # noqa: F401

needs_flashlight = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text is not installed: no language models"
)


@pytest.fixture(scope="module")
def text(demo_run, tmp_path_factory):  # noqa: F811
    """Sentences of the demo's grammar that are not in the dev set."""
    dev = {utterance.text for utterance in load_split(load_saved_config(demo_run / "config.json"), "dev").utterances}
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("\n".join(line for line in sentences(800, 5) if line not in dev) + "\n\n")
    return path


def report(folder):
    found = json.loads((folder / "report.json").read_text())
    return found["rows"][0], found["meta"]


def test_evaluation_with_a_beam(demo_run, capsys):  # noqa: F811
    rows = {}
    for execution in ("compacted", "eager"):
        eval_script.main(
            [str(demo_run), "--split=dev", f"--execution={execution}", "--decoder=prefix_beam", "--beam=4"]
        )
        assert "prefix_beam4" in capsys.readouterr().out
        rows[execution], meta = report(demo_run / "eval" / f"dev-{execution}-prefix_beam4")
        assert rows[execution]["decoder"] == "prefix_beam4" and meta["decoder"]["beam"] == 4
    assert rows["compacted"]["wer"] == rows["eager"]["wer"]
    asr = load(demo_run)
    corpus = load_split(load_saved_config(demo_run / "config.json"), "dev")
    lines = (demo_run / "eval" / "dev-eager-prefix_beam4" / "hyp.trn").read_text().splitlines()
    for decoding, apart in ((asr, False), (asr.with_decoder(DecodingConfig("prefix_beam", 4)), True)):
        factor = real_time_factor(decoding, corpus, asr.decision(), "conditional", 2)
        assert (factor.decoder is not None) == apart and 0 < (factor.decoder or 1e-9) < factor.total
    for index in (0, 7):
        wanted = asr.transcribe(corpus.load_audio(index), sample_rate=16000, decoder="prefix_beam", beam=4).text
        assert lines[index] == f"{wanted} ({corpus.utterances[index].id})"
    eval_script.main([str(demo_run), "--split=dev"])
    greedy, meta = report(demo_run / "eval" / "dev-compacted")
    assert greedy["decoder"] == "greedy" and greedy["decoder_real_time_factor"] is None and "decoder" not in meta


@pytest.mark.parametrize(
    "options, error",
    [
        (["--beam=5"], "--beam: greedy decoding has no such option; add --decoder=prefix_beam"),
        (["--lm=x.arpa"], "--lm: greedy decoding has no such option"),
        (["--lexicon=x.txt", "--beam=3"], "--lexicon, --beam: greedy decoding has no such option"),
        (["--decoder=prefix_beam", "--word-score=1"], "word_score=1.0 weighs a language model: give one"),
        (["--decoder=prefix_beam", f"--lexicon={__file__}", "--lm-weight=0.5"], "lm_weight=0.5 weighs a language"),
        (["--decoder=joint", "--lexicon=x.txt"], "decoder 'joint' has no such option; take decoder 'prefix_beam'"),
        (["--decoder=attention", "--ctc-weight=0.3"], "ctc_weight=0.3: decoder 'attention' has no such option"),
        (["--decoder=prefix_beam", "--beam=0"], "beam=0: expected at least 1"),
        (["--decoder=prefix_beam", "--sweep-threshold"], "a sweep decodes greedily"),
    ],
)
def test_bad_options(demo_run, options, error):  # noqa: F811
    with pytest.raises(ValueError, match=error):
        eval_script.main([str(demo_run), "--split=dev", *options])


@needs_flashlight
@pytest.mark.parametrize("unit", ["word", "piece"])
def test_a_language_model_is_trained_tuned_and_used(demo_run, text, tmp_path, unit, capsys):  # noqa: F811
    lm, words = tmp_path / f"{unit}.arpa", tmp_path / "words.txt"
    tokenizer = [f"--tokenizer={demo_run / 'tokenizer.model'}"] if unit == "piece" else []
    ngram.main([str(text), str(lm), "--order=3", f"--unit={unit}", f"--lexicon={words}", *tokenizer])
    lexicon = words.read_text().split()
    assert lexicon == sorted(set(text.read_text().split()))
    assert "n-grams of orders 1 to 3" in capsys.readouterr().out
    constrained = [f"--lexicon={words}"] if unit == "word" else []
    tune_decoder.main([str(demo_run), f"--lm={lm}", "--beam=5", "--lm-weights=0,0.5", *constrained])
    printed = capsys.readouterr().out
    digest = hashlib.sha256(lm.read_bytes()).hexdigest()
    (tuned,) = (demo_run / "eval").glob(f"tuned-prefix_beam5-lm{digest[:6]}*.json")
    table = json.loads(tuned.read_text())
    assert len(table["rows"]) == 6 and table["decoder"]["beam"] == 5
    plain, best = table["rows"][0], table["best"]
    assert best in table["rows"] and best["wer"] <= min(row["wer"] for row in table["rows"]) <= plain["wer"]
    options = printed.strip().splitlines()[-1].partition("--decoder")[2]
    assert f"--beam=5 --lm={lm}" in options and f"--lm-weight={best['weights']['lm_weight']:g}" in options
    eval_script.main([str(demo_run), "--split=dev", *f"--decoder{options}".split()])
    (folder,) = (demo_run / "eval").glob(f"dev-compacted-prefix_beam5-lm*-{best['weights']['lm_weight']:g}*")
    row, meta = report(folder)
    assert row["wer"] == pytest.approx(best["wer"]) and meta["decoder"]["lm"] == str(lm)
    assert meta["decoder"]["digests"] == table["decoder"]["digests"] and digest[:6] in folder.name
    assert meta["decoder"]["digests"]["lm"] == digest
    assert meta["decoder"]["lexicon"] == table["decoder"]["lexicon"] == (str(words) if constrained else "")
    assert ("lexicon" in folder.name) == ("lexicon" in meta["decoder"]["digests"]) == bool(constrained)
    assert row["decoder"].startswith("prefix_beam5-lm")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@needs_flashlight
def test_evaluation_with_a_lexicon_alone(demo_run, text, tmp_path):  # noqa: F811
    words = tmp_path / "few.txt"
    few = sorted(set(text.read_text().split()))[::2]
    words.write_text("\n".join(few))
    eval_script.main([str(demo_run), "--split=dev", "--decoder=prefix_beam", f"--lexicon={words}", "--word-score=0.5"])
    (folder,) = (demo_run / "eval").glob("dev-compacted-prefix_beam10-lexicon*-0.5")
    said = [line.rpartition(" (")[0].split() for line in (folder / "hyp.trn").read_text().splitlines()]
    assert any(said) and {word for line in said for word in line} <= set(few)


@pytest.fixture(scope="module")
def attending(demo_run, tmp_path_factory):  # noqa: F811
    """The demo's run with an attention decoder that has learned nothing, and a language model that has not either."""
    folder = tmp_path_factory.mktemp("attending")
    config, asr = load_saved_config(demo_run / "config.json"), load(demo_run)
    decoder = DecoderConfig(1, 2, 32)
    vocabulary, width = asr.tokenizer.vocab_size, asr.config.model.encoder.d_model
    params = asr.params | {"decoder": AttentionDecoder(decoder, width, vocabulary).init(jax.random.key(0))}
    own = replace(asr.config, model=replace(asr.config.model, decoder=decoder))
    Recognizer(own, params, asr.tokenizer, asr.stats).save(folder / "run" / "model")
    save_config(replace(config, model=own.model, loss=replace(config.loss, ctc_weight=0.3)), folder / "run/config.json")
    asr.tokenizer.save(folder / "run" / "tokenizer.model")
    model = LanguageModel(LanguageModelConfig(width=8), vocabulary)
    info = LanguageModelInfo("lm", model.config)
    save_language_model(LanguageModelBundle(info, model.init(jax.random.key(1)), asr.tokenizer), folder / "lm")
    return folder / "run", folder / "lm"


def test_joint_decoding_with_a_neural_model_is_tuned_and_used(attending, capsys):
    run, lm = attending
    options = ["--decoder=joint", f"--lm={lm}", "--beam=2", "--max-length-ratio=0.4", "--threshold=0.4"]
    grid = ["--ctc-weights=0.3,0.9", "--length-bonuses=1", "--lm-weights=0.2"]
    tune_decoder.main([str(run), *options, *grid])
    (tuned,) = (run / "eval").glob("tuned-0.4-joint2-max0.4-lm*.json")
    table = json.loads(tuned.read_text())
    assert [row["weights"]["ctc_weight"] for row in table["rows"]] == [0.3, 0.9]
    assert table["best"]["weights"] == {"ctc_weight": 0.9, "length_bonus": 1, "lm_weight": 0.2, "word_score": 0}
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1].partition("python eval.py ")[2])
    assert set(options) < set(command)
    eval_script.main([*command, "--split=dev", "--n-best=2"])
    (folder,) = (run / "eval").glob("dev-compacted-0.4-joint2-max0.4-lm*-0.9-1-0.2-0")
    assert report(folder)[0]["wer"] == pytest.approx(table["best"]["wer"])
    for line in (folder / "utterances.jsonl").read_text().splitlines():
        utterance = json.loads(line)
        first, second = utterance["alternatives"]
        assert first["text"] == utterance["hypothesis"] and first["score"] >= second["score"]


def test_a_runs_own_transcripts(demo_run, tmp_path):  # noqa: F811
    ngram.main([str(demo_run), str(tmp_path / "lm.arpa")])
    corpus = load_corpus(load_saved_config(demo_run / "config.json").data, "train")
    assert set(read_unigrams(tmp_path / "lm.arpa")) == {w for u in corpus.utterances for w in u.text.split()}
    ngram.main([str(demo_run), str(tmp_path / "pieces.arpa"), "--unit=piece"])
    tokenizer = Tokenizer.load(demo_run / "tokenizer.model")
    assert len(read_unigrams(tmp_path / "pieces.arpa")) == tokenizer.vocab_size - 3


def test_bad_sources(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Ä\n".encode("latin-1"))
    for source, options, error in (
        (tmp_path, [], "neither a run directory"),
        (latin, [], "is not a text file in UTF-8"),
        (tmp_path / "none.txt", [], "neither a run directory"),
        (tmp_path, ["--order=9"], "neither a run"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            ngram.main([str(source), str(tmp_path / "out.arpa"), *options])
    good = tmp_path / "good.txt"
    good.write_text("\ufeffA B\n", encoding="utf-8")
    ngram.main([str(good), str(tmp_path / "marked.arpa")])
    assert read_unigrams(tmp_path / "marked.arpa") == ["A", "B"]
    for options, error in (
        (["--unit=piece"], "give the tokenizer's model: --tokenizer=FILE"),
        (["--tokenizer=x"], "--tokenizer is for --unit=piece"),
        (["--order=1"], "order=1: expected 2 to 6"),
    ):
        with pytest.raises(ValueError, match=error):
            ngram.main([str(good), str(tmp_path / "out.arpa"), *options])
    assert not (tmp_path / "out.arpa").exists()


def test_ties_go_to_the_smallest_weights():
    tried = [(0.0, 0.0, 10.0), (0.8, 0.0, 9.0), (0.4, -1.0, 9.0), (0.4, 0.0, 9.0)]
    points = [TunedPoint({"lm_weight": w, "word_score": s}, wer, 5.0) for w, s, wer in tried]
    assert best_point(points) is points[3]


def test_a_decoder_is_tuned_in_the_weights_that_it_has():
    joint, attention = DecodingConfig("joint"), DecodingConfig("attention")
    grid = weights_to_try(joint, TuneFlags("run", ctc_weights=(0.2, 0.4), length_bonuses=(0.0, 1.0)))
    assert grid[1] == {"ctc_weight": 0.2, "length_bonus": 1.0} and len(grid) == 4
    assert weights_to_try(attention, TuneFlags("run", length_bonuses=(2.0,))) == [{"length_bonus": 2.0}]
    for config, flags, error in (
        (attention, TuneFlags("run", ctc_weights=(0.2,)), "--ctc-weights: this decoder has no ctc weight to weigh"),
        (joint, TuneFlags("run", lm_weights=(0.2,)), "--lm-weights: this decoder has no lm weight"),
        (DecodingConfig("prefix_beam"), TuneFlags("run"), "no weights to try; give --lm"),
        (joint, TuneFlags("run", ctc_weights=()), "no weights to try"),
    ):
        with pytest.raises(ValueError, match=error):
            weights_to_try(config, flags)
