"""The command lines of the programs: options over experiments, help, and how errors end."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from i3d_jax import schema
from i3d_jax.experiment import (
    ExperimentConfig,
    load_config,
    parse_command_line,
    parse_experiment,
    parse_flags,
    run_program,
    to_dict,
)
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.validation import flatten
from tests.test_experiment import changed

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Flags:
    """Flags of a program."""

    workdir: str = ""
    """Run directory."""
    resume: bool = True
    """Continue a run."""


@dataclass(frozen=True)
class ReadFlags:
    """Flags of a program without an experiment."""

    run: Annotated[str, tyro.conf.Positional]
    """Run directory."""
    execution: Literal["masked", "eager"] = "masked"
    """How."""
    threshold: float | None = None
    """Beta."""


@pytest.fixture(autouse=True)
def project_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parse(*argv: str) -> tuple[Flags, ExperimentConfig]:
    return parse_command_line(argv, Flags, "Trains.", prog="train.py")


def test_overrides_change_their_field_only():
    flags, config = parse(
        "--config=configs/demo.py",
        "--optimizer.learning-rate=1e-3",
        "--optimizer.beta2",
        "0.95",
        "--model.gates.initial_logit",
        "-2",
        "--model.gates.straight-through",
        "--optimizer.decoupled=false",
        "--augment.speeds=0.9,1",
        "--data.source=",
        "--data.source=/with space/-x",
        "--workdir",
        "runs/x",
        "--no-resume",
    )
    expected = load_config("configs/demo.py")
    for key, value in {
        "optimizer.learning_rate": 1e-3,
        "optimizer.beta2": 0.95,
        "model.gates.initial_logit": -2.0,
        "model.gates.straight_through": True,
        "optimizer.decoupled": False,
        "augment.speeds": (0.9, 1.0),
        "data.source": "/with space/-x",
    }.items():
        expected = changed(key, value, expected)
    assert config == expected
    assert flags == Flags(workdir="runs/x", resume=False)
    assert parse("--config", "configs/demo.py") == (Flags(), load_config("configs/demo.py"))
    assert parse("--config=configs/demo.py", "--augment.speeds", "0.9", "1.1", "--seed=2")[1].augment.speeds == (
        0.9,
        1.1,
    )


def test_a_language_models_file_has_options_of_its_own(capsys):
    def both(*argv):
        return parse_experiment(argv, Flags, "Trains.", prog="train.py")

    assert both("--config=configs/demo.py", "--seed=3") == parse("--config=configs/demo.py", "--seed=3")
    base = load_config("configs/lm_demo.py", LanguageModelExperiment)
    options = ["--text.train", "a.txt", "b.txt", "--model.width=64", "--no-text.transcripts", "--text.dev=c.txt"]
    for config in (["--config=configs/lm_demo.py"], ["--config", "configs/lm_demo.py"]):
        flags, found = both("--workdir=w", *config, *options)
        assert flags.workdir == "w"
        text = dataclasses.replace(base.text, train=("a.txt", "b.txt"), dev=("c.txt",), transcripts=False)
        assert found == dataclasses.replace(base, text=text, model=dataclasses.replace(base.model, width=64))
    for key, value in flatten(to_dict(base)).items():
        written = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        assert both("--config=configs/lm_demo.py", f"--{key}={written}")[1] == base
    for argument, message in (
        ("--model.widht=1", "nearest valid one is --model.width (an integer)"),
        ("--data.source=x", "unknown option --data.source"),
        ("--model.dropout=1", "model.dropout=1.0: expected at least 0 and below 1"),
        ("--training.best-by=wer", "one of 'perplexity', 'latest', got 'wer'"),
    ):
        with pytest.raises(SystemExit) as caught:
            both("--config=configs/lm_demo.py", argument)
        assert caught.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        both("--config=configs/lm_demo.py", "--help")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--text.train" in words and "one sentence a line" in words and "--data.source" not in words
    with pytest.raises(SystemExit) as caught:
        parse("--config=configs/lm_demo.py")
    assert "returned LanguageModelExperiment, expected an ExperimentConfig" in capsys.readouterr().err


LEAVES = {key: value for key, value in schema.leaves(ExperimentConfig).items() if key not in ("warm_start.config",)}


@pytest.mark.parametrize("key", LEAVES)
def test_every_field_can_be_overridden(key):
    """Each leaf, by its value of the file written out, in both spellings, leaves the configuration as it is."""
    config = load_config("configs/demo.py")
    value = flatten(to_dict(config))[key]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    for spelling in (key, key.replace("_", "-")):
        assert parse("--config=configs/demo.py", f"--{spelling}={text}")[1] == config


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--optimizer.learning-rat=1", "nearest valid one is --optimizer.learning-rate (a number)"),
        ("--learning_rate=1", "nearest valid one is --optimizer.learning-rate (a number)"),
        ("--lr=1", "nearest valid one is --optimizer.learning-rate (a number)"),
        ("--workdr=x", "nearest valid one is --workdir (a string)"),
        ("--optimizer=x", "set one of its own: --optimizer.learning-rate, "),
        ("--optimizer.learning-rate=abc", "--optimizer.learning-rate: expected a number, got 'abc'"),
        ("--seed=1.5", "--seed: expected an integer, got '1.5'"),
        ("--seed", "--seed: expected an integer, got nothing"),
        ("--seed=-1", "seed=-1: expected 0 or more"),
        ("--model.gates.predictor=both", "expected one of 'none', 'local', 'global', got 'both'"),
        ("--optimizer.decoupled=perhaps", "--optimizer.decoupled=true|false"),
        ("--augment.speeds=0.9,x", "--augment.speeds: expected a list, each a number, got 'x'"),
        ("--augment.speeds=", "augment.speeds (): expected at least one factor"),
        ("demo", "unexpected argument 'demo'"),
        ("--model.gates.predictor=none", "set the predictor to local or global"),
        ("--warm-start.config=configs/demo_transformr.py", "nearest existing one is configs/demo_transformer.py"),
        ("--config=configs/dmo.py", "nearest existing one is configs/demo.py"),
    ],
)
def test_a_bad_option_ends_with_code_2_and_one_message(argument, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--config=configs/demo.py", argument)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    # A dataclass's own check is reported inside tyro's frame, with wrapped lines.
    assert message in " ".join(printed.err.replace("│", " ").split())
    assert "Traceback" not in printed.err


def test_config_is_required(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--seed=1")
    assert caught.value.code == 2
    assert "--config=FILE is required" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["--config=configs/demo.py", "-h"]], ids=["bare", "with config"])
def test_help_explains_every_field_with_its_default(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for key in [*LEAVES, "workdir", "resume", "config"]:
        assert f"--{key.replace('_', '-')}" in text
    words = " ".join(text.replace("│", " ").split())
    assert "Run directory. (default: '')" in words
    assert "--loss.utility-weight FLOAT lambda of Eq. 5" in words
    if len(argv) == 1:
        assert "--config is required" in words
    else:
        weight = load_config("configs/demo.py").loss.utility_weight
        assert f"(default: {weight})" in words
        assert "Defaults are those of configs/demo.py." in words


def test_every_field_is_documented():
    """The help text of a field is the string literal under it."""

    def undocumented(cls, prefix=""):
        for field in dataclasses.fields(cls):
            owner = next(base for base in cls.__mro__ if field.name in base.__annotations__)  # the field's last words
            source = Path(sys.modules[owner.__module__].__file__).read_text()
            value = getattr(cls(), field.name)
            if dataclasses.is_dataclass(value):
                yield from undocumented(type(value), f"{prefix}{field.name}.")
            else:
                lines = [line.strip() for line in source[source.index(f"class {owner.__name__}") :].splitlines()]
                at = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name}:"))
                if not any(line.startswith('"""') for line in lines[at + 1 : at + 3]):
                    yield prefix + field.name

    assert list(undocumented(ExperimentConfig)) == list(undocumented(LanguageModelExperiment)) == []


def test_flags_without_an_experiment(capsys):
    parsed = parse_flags(["runs/x", "--threshold=0.3", "--execution", "eager"], ReadFlags, "Reads.", prog="eval.py")
    assert parsed == ReadFlags(run="runs/x", execution="eager", threshold=0.3)
    assert parse_flags(["--threshold=None", "runs/x"], ReadFlags, "Reads.", prog="eval.py") == ReadFlags(run="runs/x")
    for argv, message in [
        (
            ["runs/x", "--treshold=0.3"],
            "eval.py: error: unknown option --treshold; the nearest valid one is --threshold",
        ),
        (["runs/x", "--threshold=high"], "eval.py: error: --threshold: expected a number or none, got 'high'"),
        (["runs/x", "runs/y"], "eval.py: error: unexpected argument 'runs/y'"),
        ([], "run"),
    ]:
        with pytest.raises(SystemExit) as caught:
            parse_flags(argv, ReadFlags, "Reads.", prog="eval.py")
        assert caught.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_nearest_key_by_whole_last_part_or_initials():
    names = list(schema.leaves(ExperimentConfig))
    for wrong, right in {
        "optimiser.learning_rate": "optimizer.learning_rate",
        "learningrate": "optimizer.learning_rate",
        "wd": "optimizer.weight_decay",
        "model.num_layers": "model.encoder.num_layers",
    }.items():
        assert schema.nearest(wrong, names) == right


def test_the_package_is_lazy():
    code = (
        "import sys, i3d_jax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules); i3d_jax.__version__; dir(i3d_jax)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "error, line",
    [
        (
            OSError(28, "No space left on device", "runs/a/log.jsonl"),
            "runs/a/log.jsonl: No space left on device; free ",
        ),
        (
            PermissionError(13, "Permission denied", "runs/a"),
            "runs/a: Permission denied; make it writable and run again",
        ),
        (OSError("one line already"), "one line already"),
    ],
)
def test_errors_of_the_system_end_in_one_line(error, line, capsys):
    def main(_):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    assert f"error: {line}" in (printed := capsys.readouterr().err) and printed.count("\n") == 1


def test_an_interrupt_ends_in_one_line(capsys):
    def main(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 130 and capsys.readouterr().err.endswith(": interrupted\n")


@dataclass(frozen=True)
class ListFlags:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("runs",)
    """Runs."""
    betas: tuple[float, ...] | None = None
    """Thresholds."""
    top: int = 3
    """Count."""


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], ListFlags()),
        (["a", "b", "--top=2"], ListFlags(runs=("a", "b"), top=2)),
        (["a", "--betas"], ListFlags(runs=("a",), betas=())),
        (["a", "--betas", "--top=2"], ListFlags(runs=("a",), betas=(), top=2)),
        (["a", "--betas=0.3,0.5"], ListFlags(runs=("a",), betas=(0.3, 0.5))),
        (["a", "--betas", "0.3", "0.5", "--top", "2"], ListFlags(runs=("a",), betas=(0.3, 0.5), top=2)),
    ],
)
def test_lists_of_flags_tell_given_without_values_from_not_given(argv, expected):
    assert parse_flags(argv, ListFlags, "Lists.", prog="x") == expected


def test_a_wrong_entry_of_an_optional_list_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["a", "--betas=0.3,high"], ListFlags, "Lists.", prog="x")
    assert "--betas: expected a list, each a number or none, got 'high'" in " ".join(capsys.readouterr().err.split())
