"""Bundles: what is damaged or does not belong together is one error that names the file and the remedy."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import i3d_jax
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.asr import ASRModel, ModelConfig
from i3d_jax.model.encoder import EncoderConfig
from i3d_jax.model.subsampling import SubsamplingConfig
from tests.damage import flip

FILES = ("recognizer.json", "params.npz", "tokenizer.model", "manifest.json")


def recognizer(texts):
    model = ModelConfig(SubsamplingConfig(channels=2), EncoderConfig(num_layers=1, d_model=4, num_heads=1, ffn_dim=4))
    config = RecognizerConfig(model=model)
    tokenizer = Tokenizer.train(texts, TokenizerConfig(kind="char"))
    params = ASRModel(model, config.frontend.num_mels, tokenizer.vocab_size).init(jax.random.key(0))
    return Recognizer(config, params, tokenizer)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    recognizer(["ABC"]).save(path)
    i3d_jax.load(path)
    return path


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def damage(data, path):
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        flip(path, position)
    else:
        path.write_bytes(whole[:position])
    return whole


@given(st.data())
def test_any_damage_is_found_and_named(bundle, data):
    name = data.draw(st.sampled_from(FILES))
    whole = damage(data, bundle / name)
    try:
        with pytest.raises(ValueError, match=f"{bundle} is damaged: {name} has .*; copy or pack the bundle again"):
            i3d_jax.load(bundle)
    finally:
        (bundle / name).write_bytes(whole)


@settings(max_examples=40)
@given(st.data())
def test_without_digests_damaged_parameters_are_refused_or_unharmed(bundle, data):
    digests = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").unlink()
    expected = jax.tree.map(np.asarray, i3d_jax.load(bundle).params)
    whole = damage(data, bundle / "params.npz")
    try:
        loaded = i3d_jax.load(bundle).params
    except ValueError as error:
        assert "params.npz" in str(error)
    else:  # a byte that says nothing, such as a date
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    finally:
        (bundle / "params.npz").write_bytes(whole)
        (bundle / "manifest.json").write_bytes(digests)


@pytest.mark.parametrize("name", ["params.npz", "tokenizer.model"])
@pytest.mark.parametrize("digests", [True, False])
def test_a_lost_file_is_named(copy, name, digests):
    (copy / name).unlink()
    if not digests:
        (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=f"{copy} is damaged: {name} is missing; copy or pack"):
        i3d_jax.load(copy)


def test_the_tokenizer_of_another_model_is_named(copy, tmp_path):
    recognizer(["ABCDEFG"]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.model", copy)
    with pytest.raises(ValueError, match=r"is damaged: tokenizer.model has \d+ bytes, \d+ were written"):
        i3d_jax.load(copy)
    (copy / "manifest.json").unlink()
    message = r"does not fit recognizer.json and tokenizer.model \(11 tokens\): head/\S+ is \(.*7.*\) there, \(.*11.*\)"
    with pytest.raises(ValueError, match=message):
        i3d_jax.load(copy)
    (copy / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"is damaged: tokenizer.model: not a SentencePiece model"):
        i3d_jax.load(copy)


def test_a_save_after_one_that_was_killed_replaces_the_bundle(copy):
    (copy.parent / "copy.old").mkdir()
    (copy.parent / "copy.old" / "recognizer.json").write_text("{}")
    recognizer(["AB"]).save(copy)
    assert i3d_jax.load(copy).tokenizer.vocab_size == 6
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_type_that_cannot_be_read_back_is_refused(copy, tmp_path, dtype):
    with pytest.raises(ValueError, match=f"dtype='{dtype}': expected float32 or float16"):
        i3d_jax.load(copy).save(tmp_path / "other", dtype)
    assert not (tmp_path / "other").exists()
