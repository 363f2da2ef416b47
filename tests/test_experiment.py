"""Configurations: golden files, round trips, and what each mistake is told.

After a change of a configuration on purpose, refresh the golden files and commit them with it:
``UPDATE_GOLDEN=1 python -m pytest tests/test_experiment.py``
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.experiment import (
    ExperimentConfig,
    find_config,
    from_dict,
    load_config,
    load_saved_config,
    parse_experiment,
    save_config,
    to_dict,
)
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.schema import leaves
from i3d_jax.validation import RULES, flatten, validate_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@dataclass(frozen=True)
class NoFlags:
    pass


def load(path):
    """Of the kind that the name says."""
    return load_config(path, LanguageModelExperiment if path.stem.startswith("lm_") else ExperimentConfig)


RECOGNISERS = [path for path in CONFIGS if not path.stem.startswith("lm_")]


@pytest.fixture(autouse=True)
def project_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# -- Experiment files -------------------------------------------------------------------------------------------------


def test_the_promised_experiments_exist():
    kinds = ("transformer", "i3d_local", "i3d_global")
    wanted = {"demo", "lm_demo", "lm_an4", "lm_librispeech100"}
    wanted |= {f"{corpus}_{kind}" for corpus in ("an4", "librispeech100") for kind in kinds}
    assert wanted <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_equals_its_golden_file(path):
    golden = ROOT / "tests" / "golden" / f"{path.stem}.json"
    resolved = to_dict(load(path))
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(resolved, indent=2) + "\n")
    assert golden.exists(), f"{golden} is missing; {__doc__}"
    assert flatten(resolved) == flatten(json.loads(golden.read_text())), __doc__


def test_every_golden_file_has_its_config():
    assert {path.stem for path in (ROOT / "tests" / "golden").glob("*.json")} == {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_command_paper_and_time(path):
    text = path.read_text().split('"""')[1]
    assert f"python train.py --config=configs/{path.name}`" in text
    assert "Paper:" in text
    assert "Time:" in text
    assert load(path).name == path.stem


def test_language_models_take_the_pieces_of_the_run_that_their_name_says():
    runs = {"lm_demo": "demo", "lm_an4": "an4_transformer", "lm_librispeech100": "librispeech100_transformer"}
    for name, run in runs.items():
        config = load_config(f"configs/{name}.py", LanguageModelExperiment)
        assert config.text.run == f"runs/{load_config(f'configs/{run}.py').name}"
        assert config.text.transcripts and not config.text.train


@pytest.mark.parametrize("path", RECOGNISERS, ids=lambda path: path.stem)
def test_gated_configs_derive_from_their_dense_one(path):
    config = load_config(path)
    if not config.warm_start.config:
        assert config.model.gates.predictor == "none"
        return
    dense = load_config(config.warm_start.config)
    assert dense.model.gates.predictor == "none"
    for part in ("seed", "data", "tokenizer", "frontend"):
        assert getattr(config, part) == getattr(dense, part)
    assert config.model.encoder == dense.model.encoder
    assert config.model.subsampling == dense.model.subsampling
    assert config.model.decoder == dense.model.decoder


@pytest.mark.parametrize("finetuned, gated", [("demo_finetuned", "demo"), ("an4_finetuned", "an4_i3d_global")])
def test_the_fine_tuned_dense_model_differs_from_the_gated_one_by_its_gates_alone(finetuned, gated):
    ours, theirs = (flatten(to_dict(load_config(f"configs/{name}.py"))) for name in (finetuned, gated))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different - {"warm_start.run"} == {"name", "model.gates.predictor", "loss.utility_weight"}
    assert (ours["model.gates.predictor"], ours["loss.utility_weight"]) == ("none", 0)
    # Where the gated run of its default folder keeps the dense model.
    assert ours["warm_start.run"] == (theirs["warm_start.run"] or f"runs/{gated}/dense")


def test_librispeech_configs_state_the_papers_recipe():
    for kind, rate in {"transformer": 2e-3, "i3d_local": 1e-3, "i3d_global": 1e-3}.items():
        config = load_config(f"configs/librispeech100_{kind}.py")
        encoder, augment, optimizer = config.model.encoder, config.augment, config.optimizer
        assert (encoder.num_layers, encoder.d_model, encoder.num_heads, encoder.ffn_dim) == (36, 256, 4, 1024)
        assert encoder.dropout == encoder.attention_dropout == encoder.positional_dropout == 0.1
        assert (config.tokenizer.kind, config.tokenizer.vocab_size) == ("bpe", 5000)
        assert (config.frontend.preset, config.frontend.num_mels) == ("espnet", 80)
        assert augment.speeds == (0.9, 1.0, 1.1)
        assert (augment.time_warp, augment.num_frequency_masks, augment.frequency_mask_width) == (5, 2, 27)
        assert (augment.num_time_masks, augment.time_mask_ratio) == (5, 0.05)
        assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.schedule) == (rate, 15000, "inverse_sqrt")
        assert (optimizer.weight_decay, optimizer.decoupled, optimizer.beta2) == (1e-6, False, 0.999)
        assert config.training.average_best == 10
        assert kind == "transformer" or 1 <= config.loss.utility_weight <= 13


def test_load_config_names_what_is_wrong(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"configs/dmo\.py; the nearest existing one is configs/demo\.py"):
        load_config("configs/dmo.py")
    with pytest.raises(FileNotFoundError, match=r"nearest existing one is configs/an4_transformer\.py"):
        load_config(tmp_path / "an4_transformr.py")

    def written(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(f"from i3d_jax.experiment import ExperimentConfig\n{text}\n")
        return path

    with pytest.raises(ValueError, match=r"mine\.py defines no get_config\(\)"):
        load_config(written(""))
    with pytest.raises(ValueError, match=r"mine\.py: get_config\(\) returned dict, expected an ExperimentConfig$"):
        load_config(written("def get_config(): return {}"))
    with pytest.raises(SystemExit):
        parse_experiment([f"--config={written('def get_config(): return {}')}"], NoFlags, "")
    both = "expected an ExperimentConfig or a LanguageModelExperiment"
    assert f"mine.py: get_config() returned dict, {both}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="returned LanguageModelExperiment, expected an ExperimentConfig"):
        load_config("configs/lm_demo.py")
    with pytest.raises(ValueError, match="returned ExperimentConfig, expected a LanguageModelExperiment"):
        load_config("configs/demo.py", LanguageModelExperiment)
    with pytest.raises(ValueError, match=r"mine\.py: seed=-1: expected 0 or more"):
        load_config(written("def get_config(): return ExperimentConfig(seed=-1)"))
    with pytest.raises(ValueError, match=r"mine\.py: key 'seed': expected an integer, got '1'"):
        load_config(written("def get_config(): return ExperimentConfig(seed='1')"))
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="expected a Python file"):
        load_config(tmp_path / "mine.txt")


def test_warm_start_config_is_found_from_the_root_or_beside_its_file(tmp_path, monkeypatch):
    # From the project's root the name stays as written, wherever the current directory is.
    monkeypatch.chdir(tmp_path)
    assert load_config(ROOT / "configs" / "demo.py").warm_start.config == "configs/demo_transformer.py"
    assert load_config("configs/demo.py").name == "demo"
    assert find_config("configs/demo.py") == ROOT / "configs" / "demo.py"

    folder = tmp_path / "elsewhere" / "configs"
    folder.mkdir(parents=True)
    (folder / "plain.py").write_text(
        "from i3d_jax.experiment import ExperimentConfig\ndef get_config(): return ExperimentConfig(name='plain')\n"
    )
    gated = folder / "gated.py"
    for name in ("configs/plain.py", "plain.py"):
        gated.write_text(
            "from i3d_jax.experiment import ExperimentConfig\nfrom i3d_jax.training.warm_start import WarmStartConfig\n"
            f"def get_config(): return ExperimentConfig(warm_start=WarmStartConfig(config='{name}'))\n"
        )
        assert load_config(gated).warm_start.config == str(folder / "plain.py")
    gated.write_text(gated.read_text().replace("plain.py", "plan.py"))
    with pytest.raises(FileNotFoundError, match=r"warm_start\.config: no experiment file plan\.py"):
        load_config(gated)


# -- Validation -------------------------------------------------------------------------------------------------------


def changed(key, value, config=None):
    """A copy with one dotted key changed."""

    def put(node, parts):
        head, *rest = parts
        return replace(node, **{head: put(getattr(node, head), rest) if rest else value})

    return put(config or ExperimentConfig(), key.split("."))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.encoder.d_model", 254, "a multiple of num_heads=4"),
        ("model.encoder.num_heads", 0, "at least 1"),
        ("model.encoder.dropout", 1.0, "below 1"),
        ("model.gates.threshold", 1.5, "between 0 and 1"),
        ("model.gates.temperature", 0.0, "more than 0"),
        ("model.gates.layer_drop.rate", 1.0, "below 1"),
        ("model.gates.final_temperature", 0.0, "more than 0"),
        ("model.gates.final_temperature", 0.5, "predictor to local or global"),
        ("training.trainable", "predictor", "set that to local or global"),
        ("training.trainable", "predictor", "expected a trained model in warm_start.run or warm_start.config"),
        ("loss.utility_target", 1.5, "a share between 0 and 1"),
        ("loss.utility_target", 0.5, "expected loss.utility_weight above 0"),
        ("loss.utility_weight", -1.0, "0 or more"),
        ("loss.utility_weight", 1.0, "predictor to local or global"),
        ("loss.utility_weight", float("nan"), "finite"),
        ("loss.interctc_weight", 1.0, "below 1"),
        ("loss.interctc_layers", (0, 4), "ascending numbers from 1 to model.encoder.num_layers - 1 = 11"),
        ("loss.interctc_layers", (4, 12), "ascending numbers"),
        ("loss.interctc_layers", (8, 4), "ascending numbers"),
        ("loss.interctc_layers", (4, 4), "ascending numbers"),
        ("loss.ctc_weight", 0.3, "expected 1 without an attention decoder"),
        ("loss.label_smoothing", 1.0, "below 1"),
        ("model.decoder.num_layers", -1, "0 or more"),
        ("warm_start.new_decoder", True, "expected"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("optimizer.warmup_steps", 0, "at least 1"),
        ("batching.seconds_per_batch", 0.0, "more than 0"),
        ("batching.batch_multiple", 0, "at least 1"),
        ("training.epochs", 0, "at least 1"),
        ("training.keep_last", 1, "at least 2"),
        ("training.keep_every_steps", -1000, "0 or more"),
        ("training.keep_every_steps", 1500, "a multiple of training.checkpoint_every_steps=1000"),
        ("tokenizer.vocab_size", 3, "4 or more"),
        ("data.max_seconds", 0.05, "more than data.min_seconds=0.1"),
        ("data.train", " ", "text"),
        ("augment.frequency_mask_width", 81, "at most frontend.num_mels=80"),
        ("name", "a/b", "name a folder"),
        ("name", "..", "name a folder"),
        ("seed", True, "an integer"),
        ("seed", 2**63, "below 2**63"),
        ("augment.concatenate_seconds", 61.0, "at most batching.seconds_per_batch=60.0"),
        ("optimizer.schedule", "cosin", "one of 'inverse_sqrt', 'cosine', 'linear', 'constant'"),
    ],
)
def test_validation_names_key_value_and_expectation(key, value, expected):
    with pytest.raises(ValueError, match="expected|set") as caught:
        validate_config(changed(key, value))
    assert key in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.num_layers", 0, "at least 1"),
        ("model.width", 0, "at least 1"),
        ("model.dropout", 1.0, "below 1"),
        ("batching.tokens_per_batch", 0, "at least 1"),
        ("batching.batch_multiple", 0, "at least 1"),
        ("text.run", " ", "text"),
        ("text.max_tokens", 0, "at least 1"),
        ("text.transcripts", False, "text files, or text.transcripts=True"),
        ("training.best_by", "wer", "one of 'perplexity', 'latest'"),
        ("training.keep_every_steps", 1500, "a multiple of training.checkpoint_every_steps=1000"),
        ("optimizer.warmup_steps", 0, "at least 1"),
        ("parallel.fsdp", 2, "holds a language model whole"),
        ("parallel.coordinator", "auto", "trained by one process"),
        ("seed", -1, "0 or more"),
        ("name", "a b", "name a folder"),
    ],
)
def test_a_language_models_fields_are_checked_too(key, value, expected):
    with pytest.raises(ValueError, match="expected") as caught:
        validate_config(changed(key, value, LanguageModelExperiment()))
    assert key in str(caught.value)
    assert expected in str(caught.value)


def test_every_key_of_a_range_is_one_of_a_configuration():
    known = leaves(ExperimentConfig).keys() | leaves(LanguageModelExperiment).keys()
    assert {key for keys, _, _ in RULES for key in keys} <= known


def test_a_decoder_and_its_weight_agree():
    aed = changed("loss.ctc_weight", 0.3, changed("model.decoder.num_layers", 2))
    validate_config(aed)
    for key, value, expected in (
        ("loss.ctc_weight", 1.0, "more than 0 and less than 1"),
        ("loss.ctc_weight", 0.0, "more than 0 and less than 1"),
        ("model.decoder.num_heads", 3, "a divisor of model.encoder.d_model=256"),
        ("warm_start.new_decoder", True, "a warm start"),
    ):
        with pytest.raises(ValueError, match=f"{key}=.*{expected}"):
            validate_config(changed(key, value, aed))


def test_layer_drop_and_a_predictor_exclude_each_other():
    dropping = changed("model.gates.layer_drop.rate", 0.2)
    validate_config(dropping)
    with pytest.raises(ValueError, match=r"layer_drop.rate=0.2: expected 0 with model.gates.predictor=local"):
        validate_config(changed("model.gates.predictor", "local", dropping))


def test_validation_reports_all_violations_at_once():
    with pytest.raises(ValueError, match="seed=-1.*\n.*d_model=0|d_model=0.*\nseed=-1"):
        validate_config(changed("seed", -1, changed("model.encoder.d_model", 0)))


# -- Saved configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_saved_config_reads_back_equal(path, tmp_path):
    config = load(path)
    save_config(config, tmp_path / "run" / "config.json")
    assert load_saved_config(tmp_path / "run" / "config.json", type(config)) == config
    other, named = {
        ExperimentConfig: (LanguageModelExperiment, "of a recogniser, expected one of a language model"),
        LanguageModelExperiment: (ExperimentConfig, "of a language model, expected one of a recogniser"),
    }[type(config)]
    with pytest.raises(ValueError, match=rf"config\.json: a configuration {named}; give another folder"):
        load_saved_config(tmp_path / "run" / "config.json", other)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.json"]


@given(
    st.integers(0, 2**40),
    st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    st.sampled_from(["none", "local", "global"]),
    st.floats(0, 1),
)
def test_dictionary_round_trip(seed, speeds, predictor, threshold):
    config = changed("augment.speeds", tuple(speeds), ExperimentConfig(seed=seed))
    config = changed("model.gates.predictor", predictor, changed("model.gates.threshold", threshold, config))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sed": 1}, "unknown key 'sed'; the nearest valid key is 'seed'"),
        ({"optimizer": {"lr": 1}}, "unknown key 'optimizer.lr'; the nearest valid key is 'optimizer.learning_rate'"),
        ({"model": {"gates": {"treshold": 1}}}, "'model.gates.treshold'; .* 'model.gates.threshold'"),
        ({"optimizer": 3}, "key 'optimizer': expected a mapping"),
        ({"seed": 1.0}, "key 'seed': expected an integer, got 1.0"),
        ({"seed": True}, "key 'seed': expected an integer, got True"),
        ({"optimizer": {"learning_rate": True}}, "key 'optimizer.learning_rate': expected a number, got True"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "key 'optimizer.learning_rate': expected a number, got '1e-3'"),
        ({"optimizer": {"decoupled": 1}}, "key 'optimizer.decoupled': expected true or false, got 1"),
        ({"model": {"gates": {"predictor": "both"}}}, "one of 'none', 'local', 'global', got 'both'"),
        ({"augment": {"speeds": 1.0}}, "key 'augment.speeds': expected a list, each a number, got 1.0"),
        ({"augment": {"speeds": ["1"]}}, "key 'augment.speeds': expected a number, got '1'"),
        ([], "expected a mapping"),
    ],
)
def test_from_dict_is_strict(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(data)


def test_from_dict_takes_lists_as_tuples_integers_as_floats_and_defaults():
    config = from_dict({"augment": {"speeds": [1, 1.1]}, "loss": {"utility_weight": 0}})
    assert config.augment.speeds == (1.0, 1.1)
    assert type(config.loss.utility_weight) is float
    assert config.optimizer == ExperimentConfig().optimizer


def test_unreadable_saved_configs_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_saved_config(tmp_path / "none.json")
    path = tmp_path / "config.json"
    for text in ("{", '{"sed": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: "):
            load_saved_config(path)
