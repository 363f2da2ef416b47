"""Experiment configurations: loaded from a Python file, overridden by options, saved as JSON.

An experiment file is Python and defines ``get_config()``, which returns an `ExperimentConfig` for a recogniser or a
`LanguageModelExperiment`: what it returns says of which kind the run is. The options of the command line change single
fields of it, and the resolved result is saved in the run, where ``eval.py`` reads it back.

Paths of experiment files, on the command line and in ``warm_start.config``, are looked up relative to (1) the current
directory and (2) the project's root; a ``warm_start.config`` also relative to (3) the folder of the experiment file
that names it and (4) the folder above that.
"""

import dataclasses
import importlib.util
import io
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, overload

import tyro
from etils import epath

from i3d_jax import files, hosts, schema
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.recognizer_experiment import ExperimentConfig
from i3d_jax.schema import to_dict
from i3d_jax.training.loop import TrainingDiverged
from i3d_jax.training.preemption import RESUMABLE, Preempted
from i3d_jax.validation import validate_config

FlagsT = TypeVar("FlagsT")

_ROOTS = (Path(), Path(__file__).resolve().parents[1])


Experiment = ExperimentConfig | LanguageModelExperiment
ExperimentT = TypeVar("ExperimentT", ExperimentConfig, LanguageModelExperiment)
KINDS: dict[type[Experiment], str] = {ExperimentConfig: "a recogniser", LanguageModelExperiment: "a language model"}
"""Kinds of experiments, and what they train."""


# -- Saved configurations ---------------------------------------------------------------------------------------------


def kind_of(data: Any) -> type[Experiment] | None:
    """The kind of a saved configuration by its keys; None if they are those of no kind, or of several."""
    fitting = [kind for kind in KINDS if isinstance(data, dict) and data.keys() <= {f.name for f in fields(kind)}]
    return fitting[0] if len(fitting) == 1 else None


@overload
def from_dict(data: Any) -> ExperimentConfig: ...
@overload
def from_dict(data: Any, kind: type[ExperimentT]) -> ExperimentT: ...
def from_dict(data: Any, kind: type[Any] = ExperimentConfig) -> Any:
    """The inverse of `to_dict`: strict and validated. Keys that are missing take their defaults.

    Raises:
      ValueError: it is of another kind, an unknown key, a value of another type or out of range; the message names the
        dotted key.
    """
    found = kind_of(data)
    if found not in (None, kind):
        raise ValueError(f"a configuration of {KINDS[found]}, expected one of {KINDS[kind]}; give another folder")
    config = schema.from_dict(kind, data)
    validate_config(config)
    return config


def save_config(config: Experiment, path: epath.PathLike) -> None:
    """Writes the resolved configuration as JSON, atomically."""
    files.write_text(path, json.dumps(to_dict(config), indent=2) + "\n")


@overload
def load_saved_config(path: epath.PathLike) -> ExperimentConfig: ...
@overload
def load_saved_config(path: epath.PathLike, kind: type[ExperimentT]) -> ExperimentT: ...
def load_saved_config(path: epath.PathLike, kind: type[Any] = ExperimentConfig) -> Any:
    """Reads what `save_config` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, of another kind, an unknown key, or a value of another type or out of range.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no saved configuration at {path}: expected the config.json of a run")
    try:
        return from_dict(json.loads(path.read_text()), kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# -- Experiment files -------------------------------------------------------------------------------------------------


def find_config(path: str | os.PathLike[str], beside: Path | None = None) -> Path:
    """Finds an experiment file in the order that the module docstring states.

    Args:
      path: as written by the user.
      beside: folder of the experiment file that names it.

    Returns:
      A path to the file; relative if found in the current directory.

    Raises:
      FileNotFoundError: no such file; the message names the nearest existing one.
    """
    wanted = Path(path).expanduser()
    folders = [*_ROOTS, *((beside, beside.parent) if beside else ())]
    for folder in folders:
        if (folder / wanted).is_file():
            return folder / wanted
    near = [folder / wanted.parent for folder in folders] + [root / "configs" for root in _ROOTS]
    existing: dict[str, Path] = {}
    for folder in near:
        for file in sorted(folder.glob("*.py")):
            existing.setdefault(file.stem, file)
    if existing:
        remedy = f"the nearest existing one is {existing[schema.nearest(wanted.stem, list(existing))]}"
    else:
        remedy = f"there is none in {', '.join(dict.fromkeys(map(str, near)))}"
    raise FileNotFoundError(f"no experiment file {path}; {remedy}")


@overload
def load_config(path: str | os.PathLike[str]) -> ExperimentConfig: ...
@overload
def load_config(path: str | os.PathLike[str], kind: type[ExperimentT]) -> ExperimentT: ...
def load_config(path: str | os.PathLike[str], kind: type[Any] = ExperimentConfig) -> Any:
    """Runs an experiment file of a known kind and returns its validated configuration.

    A ``warm_start.config`` that is found only beside the experiment file is replaced by its absolute path.

    Raises:
      FileNotFoundError: no such file; the message names the nearest existing one.
      ValueError: no ``get_config()``, another return type, or an invalid configuration.
    """
    return _load(path, (kind,))


def _load(path: str | os.PathLike[str], kinds: tuple[type[Experiment], ...]) -> Experiment:
    file = find_config(path)
    # Not put into sys.modules: files of the same name in different folders stay apart.
    spec = importlib.util.spec_from_file_location(f"i3d_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file (*.py) with get_config()")
    module = importlib.util.module_from_spec(spec)
    _call(file, spec.loader.exec_module, module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{file} defines no get_config(): expected a function that returns {_names(kinds)}")
    config = _call(file, get_config)
    try:
        if not isinstance(config, kinds):
            raise ValueError(f"get_config() returned {type(config).__name__}, expected {_names(kinds)}")
        validate_config(config)
        return _resolve(config, file.resolve().parent)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _call(file: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs what an experiment file holds; an error in it (a misspelt field is a TypeError) is one line."""
    try:
        return function(*arguments)
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.resolve())]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{file}, line {line}: {type(error).__name__}: {text}; mend the experiment file") from error


def _names(kinds: tuple[type[Experiment], ...]) -> str:
    return " or ".join(f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}" for kind in kinds)


def _resolve(config: Experiment, beside: Path | None = None) -> Experiment:
    """With other experiment files found."""
    if not isinstance(config, ExperimentConfig) or not config.warm_start.config:
        return config
    try:
        found = find_config(config.warm_start.config, beside)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"warm_start.config: {error}") from error
    if any(found == root / config.warm_start.config for root in _ROOTS):
        return config
    return dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, config=str(found)))


# -- Command line -----------------------------------------------------------------------------------------------------


def parse_flags(argv: Sequence[str], flags: type[FlagsT], description: str, prog: str | None = None) -> FlagsT:
    """Parses the options of a program that reads no experiment file.

    Args:
      argv: arguments without the program's name.
      flags: frozen dataclass of the options; ``tyro.conf.Positional[str]`` fields are positional. Its field
        docstrings are the help texts.
      description: first lines of ``--help``.
      prog: name of the program in messages; by default that of the running script.

    Raises:
      SystemExit: 0 after ``--help``; 2 after one line on standard error for an unknown key or a wrong value.
    """
    prog = prog or Path(sys.argv[0]).name
    try:
        arguments = schema.normalize_arguments(argv, schema.leaves(flags))
    except ValueError as error:
        _exit(prog, error)
    return tyro.cli(flags, args=arguments, prog=prog, description=description)


def parse_command_line(
    argv: Sequence[str], flags: type[FlagsT], description: str, prog: str | None = None
) -> tuple[FlagsT, ExperimentConfig]:
    """As `parse_experiment`, of a recogniser."""
    return _parse(argv, flags, description, prog, (ExperimentConfig,))


def parse_experiment(
    argv: Sequence[str], flags: type[FlagsT], description: str, prog: str | None = None
) -> tuple[FlagsT, Experiment]:
    """Parses ``--config=FILE``, the program's own flags and dotted overrides: ``--optimizer.learning-rate=1e-3``.

    Overrides apply to the configuration of the file, whose kind says what can be set, and ``--help`` shows its values
    as the defaults.

    Args:
      argv: arguments without the program's name.
      flags: frozen dataclass of the program's own flags, none of them named like a field of an experiment.
      description: first lines of ``--help``.
      prog: name of the program in messages; by default that of the running script.

    Returns:
      The flags and the resolved, validated configuration.

    Raises:
      SystemExit: 0 after ``--help``; 2 after one message on standard error.
    """
    return _parse(argv, flags, description, prog, tuple(KINDS))


def _parse(
    argv: Sequence[str],
    flags: type[FlagsT],
    description: str,
    prog: str | None,
    kinds: tuple[type[Experiment], ...],
) -> tuple[FlagsT, Any]:
    prog = prog or Path(sys.argv[0]).name
    try:
        file = _config_file(argv)
        base = _load(file, kinds) if file else kinds[0]()
        keys = {"config": str} | schema.leaves(flags) | schema.leaves(type(base))
        arguments = schema.normalize_arguments(argv, keys)
        asks_help = bool({"-h", "--help"} & set(arguments))
        if file:
            note = f"Defaults are those of {file}."
        elif asks_help:
            note = "--config is required: give it beside --help to see the values of that experiment as defaults."
        else:
            raise ValueError(f"--config=FILE is required; there are: {_experiment_files()}")
    except (ValueError, FileNotFoundError) as error:
        _exit(prog, error)
    options = [
        ("config_file", Annotated[str, tyro.conf.arg(name="config", help="Experiment file with get_config().")]),
        ("flags", Annotated[flags, tyro.conf.arg(name="")]),
        ("experiment", Annotated[type(base), tyro.conf.arg(name="")]),
    ]
    command_line = dataclasses.make_dataclass("CommandLine", options, frozen=True)
    defaults = command_line(file or "FILE", flags(), base)
    parsed: Any = tyro.cli(
        command_line, default=defaults, args=arguments, prog=prog, description=f"{description.strip()}\n\n{note}"
    )
    config: Experiment = parsed.experiment
    try:
        validate_config(config)
        return parsed.flags, _resolve(config)
    except (ValueError, FileNotFoundError) as error:
        _exit(prog, error)


def _config_file(argv: Sequence[str]) -> str:
    """What ``--config`` names last; empty without one. It says which other options there are."""
    file = ""
    for argument, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        key, has_value, value = argument.partition("=")
        if key == "--config" and (has_value or not after.startswith("-")):
            file = value if has_value else after
    return file


def run_program(main: Callable[[list[str]], None]) -> None:
    """Runs a program; what the user can mend ends in one line on standard error and exit code 2, not in a traceback.

    ``I3D_TRACEBACK=1`` shows the traceback. Characters that the output cannot hold are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # the reader of the output has gone: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails again
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if os.environ.get("I3D_TRACEBACK"):
            raise
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Preempted as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(RESUMABLE) from None
    except (ValueError, OSError, ModuleNotFoundError, TrainingDiverged) as error:
        if os.environ.get("I3D_TRACEBACK"):
            raise
        _exit(Path(sys.argv[0]).name, error)


def _experiment_files() -> str:
    found = [sorted((root / "configs").glob("*.py")) for root in _ROOTS]
    return ", ".join(map(str, found[0] or found[1])) or "none"


def _exit(prog: str, error: Exception) -> NoReturn:
    text = files.describe(error) if isinstance(error, OSError) else str(error)
    print(f"{prog}: error: {text}", file=sys.stderr)
    hosts.leave(2)
