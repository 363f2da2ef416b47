"""Bundles of language models: what is written is read, in float32, and nothing else is taken for one."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from i3d_jax.cli import bundle as bundle_command
from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
from i3d_jax.inference.bundle_files import bundle_folder
from i3d_jax.inference.language_model_bundle import (
    LanguageModelBundle,
    LanguageModelInfo,
    load_language_model,
    save_language_model,
)
from i3d_jax.inference.recognizer import load
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from tests.trainings import ROOT

DEMO_MODEL = ROOT / "docs" / "demo_model"
FILES = ("language_model.json", "params.npz", "tokenizer.model", "manifest.json")


@pytest.fixture(scope="module")
def bundle():
    config = LanguageModelInfo("small", LanguageModelConfig(1, 16, 0.1))
    tokenizer = Tokenizer.train(["ABC"], TokenizerConfig(kind="char"))
    params = jax.jit(LanguageModel(config.model, tokenizer.vocab_size).init)(jax.random.key(0))
    return LanguageModelBundle(config, params, tokenizer)


@pytest.fixture
def folder(bundle, tmp_path):
    save_language_model(bundle, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_bundle_round_trips_and_replaces_nothing_else(bundle, folder, tmp_path):
    assert {file.name for file in folder.iterdir()} == set(FILES)
    save_language_model(bundle, folder)
    again = load_language_model(folder)
    jax.tree.map(np.testing.assert_array_equal, bundle.params, again.params)
    assert again.config == bundle.config and again.tokenizer.digest == bundle.tokenizer.digest
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something that is not a model bundle"):
        save_language_model(bundle, tmp_path)


def test_halved_parameters_are_loaded_as_float32(bundle, folder, tmp_path):
    half = tmp_path / "half"
    bundle_command.main([str(folder), str(half), "--dtype=float16"])
    with np.load(half / "params.npz") as stored:
        assert {array.dtype for array in map(stored.get, stored.files)} == {np.dtype("float16")}
    assert (half / "params.npz").stat().st_size < 0.7 * (folder / "params.npz").stat().st_size  # names take some
    again = load_language_model(half)
    for ours, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(bundle.params), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    tokens = np.array([[5, 2, 3]], np.int32)
    logits = [np.asarray(jax.jit(bundle.model.apply)(params, tokens)) for params in (bundle.params, again.params)]
    spelt = np.isfinite(logits[0])
    np.testing.assert_allclose(logits[0][spelt], logits[1][spelt], atol=1e-2)
    with pytest.raises(ValueError, match="dtype='int8': expected float32 or float16"):
        save_language_model(bundle, tmp_path / "other", "int8")
    assert not (tmp_path / "other").exists()


def test_a_run_is_packed_and_samples_are_of_recognisers(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    bundle_command.main([str(run), str(tmp_path / "packed")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'packed'}: 0.0")
    assert {file.name for file in (tmp_path / "packed").iterdir()} == set(FILES)
    assert (tmp_path / "packed" / "params.npz").read_bytes() == (folder / "params.npz").read_bytes()
    with pytest.raises(ValueError, match=r"--sample: .*run is a language model, which has no recordings; leave --sam"):
        bundle_command.main([str(run), str(tmp_path / "other"), "--sample"])
    assert not (tmp_path / "other").exists()
    bundle_command.main([str(DEMO_MODEL), str(tmp_path / "other"), "--dtype=float16"])
    assert load(tmp_path / "other").tokenizer.digest == load(DEMO_MODEL).tokenizer.digest


def test_a_folder_of_something_else_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"demo_model: this is a recogniser, expected a language model; give another"):
        load_language_model(DEMO_MODEL)
    with pytest.raises(ValueError, match=r"copy: this is a language model, expected a recogniser; give another"):
        load(folder)
    with pytest.raises(FileNotFoundError, match=r"neither a finished run nor a model bundle \(no language_model.json"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"copy is damaged: {name} .*; copy or pack the bundle again"):
        load_language_model(folder)


def test_parameters_of_another_size_are_named(folder):
    (folder / "manifest.json").unlink()
    load_language_model(folder)
    (folder / "language_model.json").write_text('{"model": {"width": 8}}')
    with pytest.raises(ValueError, match=r"does not fit language_model.json .*: ends/\S+ is \(.*16\) there, \(.*8\)"):
        load_language_model(folder)


def test_a_bundle_is_found_by_itself_by_its_run_and_at_home(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "run" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = {str(folder): folder, "~/copy": folder, "~/run": tmp_path / "run/model", "~/none": tmp_path / "none"}
    for given, found in wanted.items():
        assert bundle_folder(given) == epath.Path(found)
    assert bundle_folder(Path("~/run/model")) == epath.Path(tmp_path / "run/model")
    assert load_language_model("~/run").config.name == "small"
