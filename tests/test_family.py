"""A family in one run: run folders like any other, the same trajectories as alone, killed and resumed."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import eval as eval_script
import i3d_jax
import train as train_script
from i3d_jax import runner
from i3d_jax.cli.runs import main as list_runs
from i3d_jax.data.corpora import load_corpus
from i3d_jax.data.tokenizer import Tokenizer
from i3d_jax.experiment import load_config, load_saved_config, parse_command_line, save_config
from i3d_jax.family import members
from i3d_jax.folder_lock import FolderLock
from i3d_jax.inference.bundle import RecognizerConfig
from i3d_jax.inference.recognizer import Recognizer
from i3d_jax.model.asr import ASRModel
from i3d_jax.model.gates import GateConfig
from i3d_jax.runs import find_runs, summarize
from i3d_jax.training.family import FamilyConfig
from i3d_jax.training.losses import LossConfig
from i3d_jax.training.warm_start import WarmStartConfig
from i3d_jax.validation import validate_config
from tests.trainings import log_lines, losses, same_parameters

CONFIG = Path(__file__).with_name("tiny_config.py")
NAMES = ["seed0-lambda4", "seed1-lambda4"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense run whose model has learnt nothing."""
    folder = epath.Path(tmp_path_factory.mktemp("dense"))
    config = load_config(CONFIG)
    config = replace(config, name="dense", model=replace(config.model, gates=GateConfig()), loss=LossConfig())
    texts = [u.text for u in load_corpus(config.data, "train").utterances]
    tokenizer = Tokenizer.train(texts, config.tokenizer)
    model = ASRModel(config.model, config.frontend.num_mels, tokenizer.vocab_size)
    recognizer = RecognizerConfig(config.name, config.data.sample_rate, config.frontend, config.model)
    Recognizer(recognizer, jax.jit(model.init)(jax.random.key(7)), tokenizer).save(folder / "model")
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def settings(dense):
    """Of a family of two: eight steps an epoch, small ones (see tests/training/test_step.py on kinks)."""
    return (
        f"--config={CONFIG}",
        "--no-test",
        f"--warm-start.run={dense}",
        "--training.epochs=2",
        "--optimizer.learning-rate=2e-3",
        "--evaluation.timed-utterances=0",
        "--family.seeds=2",
        "--family.lambdas=4.0",
    )


@pytest.fixture(scope="module")
def family(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("family")
    train_script.main([*settings, f"--workdir={workdir}"])
    return workdir


def test_every_member_is_a_run_and_one_table_is_over_all(family, dense, capsys):
    rows = json.loads((family / "report.json").read_text())["rows"]
    assert [(row["model"], row["split"]) for row in rows] == [
        (name, "dev") for name in ("dense", "tiny-seed0-lambda4", "tiny-seed1-lambda4")
    ]
    for name in NAMES:
        assert summarize(epath.Path(family / name)).state == "finished"
        own = json.loads((family / name / "report.json").read_text())
        assert own["rows"] == [rows[0], rows[1 + NAMES.index(name)]] and own["meta"]["seed"] == NAMES.index(name)
        eval_script.main([str(family / name), "--split=dev", "--execution=masked", "--threshold=0.6"])
        assert (family / name / "eval" / "dev-masked-0.6" / "utterances.jsonl").exists()
        assert i3d_jax.load(family / name).config.name == f"tiny-{name}"
        assert len({line["compilations"] for line in log_lines(family / name, "train") if line["step"] > 8}) == 1
    assert summarize(epath.Path(family)).state == "family of 2, 2 of them finished"
    assert [path.name for path in find_runs([family])] == [family.name, *NAMES]
    list_runs([str(family), "--format=csv"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "seed" in printed
    with pytest.raises(FileNotFoundError, match=f"a family of runs; give one of them, such as {family}/{NAMES[0]}"):
        i3d_jax.load(family)


def test_a_member_is_what_its_configuration_makes_alone(family, dense, tmp_path):
    member = family / NAMES[1]
    config = load_saved_config(member / "config.json")
    assert (config.seed, config.batching.seed, config.loss.utility_weight) == (1, 0, 4.0)
    assert config.family == FamilyConfig() and config.warm_start == WarmStartConfig(run=str(dense))
    with pytest.raises(ValueError, match=rf"{NAMES[1]} is a member of the family in {family}, which trains it"):
        runner.train(config, epath.Path(member))
    runner.train(config, epath.Path(tmp_path))
    ours, theirs = losses(member), losses(tmp_path)
    assert list(ours) == list(theirs) == list(range(1, 17))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    assert not np.allclose(list(ours.values()), list(losses(family / NAMES[0]).values()), rtol=1e-3)
    ours, theirs = log_lines(member, "dev"), log_lines(tmp_path, "dev")
    for key in ("wer", "executed_layers", "soft_layers"):
        np.testing.assert_allclose([line[key] for line in ours], [line[key] for line in theirs], rtol=1e-3)
    with np.load(member / "model/params.npz") as a, np.load(tmp_path / "model/params.npz") as b:
        assert a.files == b.files
        for name in set(a.files) - {"params/layers/mha/qkv/bias"}:  # softmax ignores the key bias: Adam scales noise
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_member_that_is_trained_elsewhere_is_left_to_it(settings, tmp_path):
    member = epath.Path(tmp_path / NAMES[1])
    member.mkdir()
    with FolderLock(member), pytest.raises(ValueError, match=f"{member} is being trained by process"):
        train_script.main([*settings, f"--workdir={tmp_path}"])


def test_a_killed_family_is_resumed_bit_equal(family, settings, tmp_path, monkeypatch, capsys):
    evaluated, dev_metrics = [], runner.dev_metrics

    def killed_in_the_fourth(*arguments):
        evaluated.append(arguments)
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return dev_metrics(*arguments)

    arguments = [*settings, f"--workdir={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "dev_metrics", killed_in_the_fourth)
        train_script.main(arguments)
    # The first member has a candidate of the last step, the second has not, and there is no checkpoint of it.
    steps = [sorted(int(path.name) for path in (tmp_path / name / "best").iterdir()) for name in NAMES]
    assert steps == [[8, 16], [8]] and not (tmp_path / "checkpoints" / "16").exists()
    with pytest.raises(ValueError, match=r"cannot go on with other members of the family.*family.seeds is 2 there, 3"):
        train_script.main([*arguments, "--family.seeds=3", "--accept-changes"])
    train_script.main(arguments)
    assert "resumed from step 15" in capsys.readouterr().out
    for name in NAMES:
        assert same_parameters(tmp_path / name, family / name)
        assert losses(tmp_path / name) == losses(family / name)
        assert [line["step"] for line in log_lines(tmp_path / name, "dev")] == [8, 16]
    # Killed before the model of the second was written: the same settings complete it, others do not.
    (tmp_path / NAMES[1] / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is finished and holds a run with other settings"):
        train_script.main([*arguments, "--training.epochs=3", "--accept-changes"])
    (tmp_path / "elsewhere").rename(tmp_path / NAMES[1] / "model")
    before = (tmp_path / NAMES[0] / "log.jsonl").read_text()
    finished = load_saved_config(tmp_path / "config.json")
    assert len(runner.train_family(finished, epath.Path(tmp_path))) == 2
    assert (tmp_path / NAMES[0] / "log.jsonl").read_text() == before
    with pytest.raises(ValueError, match="is finished and holds a run with other settings"):
        runner.train_family(replace(finished, training=replace(finished.training, epochs=3)), epath.Path(tmp_path))


def family_of(**changes):
    config = load_config(CONFIG)
    seed, fsdp, gates = changes.pop("seed", 0), changes.pop("fsdp", 1), changes.pop("gates", "global")
    loss = LossConfig(utility_weight=1.0 if gates == "global" else 0.0)
    model = replace(config.model, gates=GateConfig(predictor=gates))
    parallel = replace(config.parallel, fsdp=fsdp)
    return replace(config, seed=seed, loss=loss, model=model, parallel=parallel, family=FamilyConfig(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": 0}, "family.seeds=0: expected at least 1"),
        ({"lambdas": (1.0, 1.0)}, r"family.lambdas=\(1.0, 1.0\): expected different numbers, 0 or more"),
        ({"lambdas": (-1.0,)}, "family.lambdas=.*expected different numbers, 0 or more"),
        ({"lambdas": (float("nan"),)}, "family.lambdas=.*expected different numbers, 0 or more"),
        ({"lambdas": (1.0,), "gates": "none"}, "there is no gate to close with model.gates.predictor=none"),
        ({"seeds": 2, "fsdp": 2}, "parallel.fsdp=2: expected 1 for a family of 2"),
        ({"seeds": 2, "seed": 2**63 - 1}, "family.seeds=2: expected seeds below"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        validate_config(family_of(**changes))
    with pytest.raises(ValueError, match="batching.seed=-2: expected 0 or more"):
        config = load_config(CONFIG)
        validate_config(replace(config, batching=replace(config.batching, seed=-2)))


def test_members_are_every_seed_with_every_lambda(tmp_path):
    workdir = epath.Path(tmp_path)
    line = ["--config=configs/demo.py", "--family.seeds=2", "--family.lambdas=1.0,2.5", "--seed=3"]
    _, config = parse_command_line(line, train_script.TrainFlags, "")
    found = members(config, workdir)
    assert [member.name for member in found] == [f"seed{s}-lambda{w}" for w in ("1", "2.5") for s in (3, 4)]
    assert [member.folder for member in found] == [workdir / member.name for member in found]
    for member in found:
        validate_config(member.config)
        assert member.config.data_seed == 3 and member.config.warm_start.run == str(workdir / "dense")
    assert members(family_of(seeds=2), workdir)[0].config.warm_start == WarmStartConfig()
    (one,) = members(family_of(lambdas=(2.0,)), workdir)
    assert one.folder == workdir and one.config == replace(load_config(CONFIG), loss=LossConfig(utility_weight=2.0))
