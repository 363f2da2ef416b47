"""Typed fields of nested frozen dataclasses, as dictionaries and as command-line options.

A leaf has a dotted name, ``optimizer.learning_rate``, spelt ``--optimizer.learning-rate`` on the command line. Every
error names the full key, what was expected and, for an unknown key, the nearest valid one.
Types of leaves: ``str``, ``int``, ``float``, ``bool``, ``Literal``, ``tuple[X, ...]`` and ``X | None``.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")

_PLAIN = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "none"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]


def leaves(cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> annotation of every leaf field of a dataclass type, in order of declaration."""
    found: dict[str, Any] = {}
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            found |= leaves(annotation, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = annotation
    return found


def nearest(name: str, names: Sequence[str]) -> str:
    """The entry of ``names`` most like ``name``: by the whole, by its last part, or by its initials (``lr``)."""

    def similarity(candidate: str) -> float:
        part, leaf = name.rpartition(".")[2], candidate.rpartition(".")[2]
        initials = "".join(word[:1] for word in leaf.split("_"))
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, part, leaf).ratio()
        return max(whole, 0.95 * last, 0.9 * (part == initials))

    return max(names, key=similarity)


def describe(annotation: Any) -> str:
    """What a value of this type looks like, for error messages."""
    origin, args = _strip(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in args)
    if origin is tuple:
        return f"a list, each {describe(args[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    return _PLAIN.get(origin, str(origin))


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries that JSON can hold: tuples become lists."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item):
            return {field.name: plain(getattr(item, field.name)) for field in dataclasses.fields(item)}
        return [plain(entry) for entry in item] if isinstance(item, (tuple, list)) else item

    result: dict[str, Any] = plain(value)
    return result


def from_dict(cls: type[T], data: Any) -> T:
    """The inverse of `to_dict`, strict. A missing key takes its default, so that a file written before the key existed
    still reads.

    Raises:
      ValueError: an unknown key or a value of another type; the message names the dotted key.
    """
    return _build(cls, data, "", list(leaves(cls)))


def _build(cls: type[T], data: Any, prefix: str, names: Sequence[str]) -> T:
    if not isinstance(data, Mapping):
        where = f"key {prefix[:-1]!r}" if prefix else f"a {cls.__name__}"
        raise ValueError(f"{where}: expected a mapping of keys to values, got {data!r}")
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ValueError(f"unknown key {name!r}; the nearest valid key is {nearest(name, names)!r}")
        nested = isinstance(hints[key], type) and dataclasses.is_dataclass(hints[key])
        values[key] = _build(hints[key], value, f"{name}.", names) if nested else _convert(hints[key], value, name)
    return cls(**values)


def check_types(value: Any, prefix: str = "") -> None:
    """Raises ValueError, naming the dotted key, if a field of a dataclass holds a value of another type."""
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        entry, annotation, name = getattr(value, field.name), hints[field.name], prefix + field.name
        if not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
            _convert(annotation, entry, name)
        elif isinstance(entry, annotation):
            check_types(entry, f"{name}.")
        else:
            raise ValueError(f"key {name!r}: expected a {annotation.__name__}, got {entry!r}")


def _strip(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of a type, without ``Annotated``; a plain type is its own origin."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation, get_args(annotation)


def _convert(annotation: Any, value: Any, name: str) -> Any:
    """A value read from JSON as a value of the field's type."""
    origin, args = _strip(annotation)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _convert(arg, value, name)
            except ValueError:
                continue
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], entry, name) for entry in value)
    elif origin is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif type(value) is origin:
        return value
    raise ValueError(f"key {name!r}: expected {describe(annotation)}, got {value!r}")


def normalize_arguments(arguments: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """Checks a command line against the leaves of a dataclass and spells it the one way that tyro reads.

    ``--a.b_c=1`` and ``--a.b-c 1`` are the same; lists may be separated by spaces or commas; switches are
    ``--flag``, ``--no-flag`` or ``--flag=false``. A list without values is empty, which is not the None of
    ``tuple[X, ...] | None``: it says that the option was given. A positional list takes any number of arguments.

    Args:
      arguments: the command line, without the program's name.
      fields: dotted name -> annotation, from `leaves`.

    Returns:
      The arguments, values apart from their keys.

    Raises:
      ValueError: an unknown key, a missing value or one of another type.
    """
    wanted = [annotation for annotation in fields.values() if _is_positional(annotation)]
    wanted_positionals = len(arguments) if any(map(_is_list, wanted)) else len(wanted)
    options = {name: annotation for name, annotation in fields.items() if not _is_positional(annotation)}
    queue, positionals, result = list(arguments), [], []
    while queue:
        token = queue.pop(0)
        if token in ("-h", "--help"):
            result.append(token)
            continue
        if not token.startswith("-"):
            positionals.append(token)
            continue
        spelling, has_value, text = token.partition("=")
        name = spelling.lstrip("-").replace("-", "_")
        negated = _negated(name, options)
        if name not in options and negated is None:
            raise ValueError(_unknown(spelling, name, options))
        name = negated or name
        annotation = options[name]
        is_list = _is_list(annotation)
        if _strip(annotation)[0] is bool:
            state = not negated
            if has_value:
                if negated or text.lower() not in _BOOLEANS:
                    raise ValueError(
                        f"{token}: expected --{_option(name)}, {_no(name)} or --{_option(name)}=true|false"
                    )
                state = _BOOLEANS[text.lower()]
            result.append(f"--{_option(name)}" if state else _no(name))
            continue
        if has_value:
            values = [text]
        elif is_list:
            values = []
            while queue and not queue[0].startswith("--"):
                values.append(queue.pop(0))
        else:
            values = [queue.pop(0)] if queue and not queue[0].startswith("--") else []
        if is_list:
            values = [part for value in values for part in value.split(",") if part]
        if not values and not is_list:
            raise ValueError(f"--{_option(name)}: expected {describe(annotation)}, got nothing")
        for value in values:
            if not _reads(annotation, value):
                raise ValueError(f"--{_option(name)}: expected {describe(annotation)}, got {value!r}")
        # Attached where possible: a value may begin with a hyphen.
        result += [f"--{_option(name)}={values[0]}"] if not is_list else [f"--{_option(name)}", *values]
    if len(positionals) > wanted_positionals:
        raise ValueError(f"unexpected argument {positionals[wanted_positionals]!r}; options are written --key=value")
    return positionals + result


def _option(name: str) -> str:
    return name.replace("_", "-")


def _no(name: str) -> str:
    head, dot, leaf = name.rpartition(".")
    return f"--{_option(head + dot)}no-{_option(leaf)}"


def _negated(name: str, options: Mapping[str, Any]) -> str | None:
    """``a.no_b`` and ``no_a.b`` -> ``a.b`` when that is a switch."""
    head, dot, leaf = name.rpartition(".")
    for candidate in (head + dot + leaf.removeprefix("no_"), name.removeprefix("no_")):
        if candidate != name and candidate in options and _strip(options[candidate])[0] is bool:
            return candidate
    return None


def _is_positional(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and _POSITIONAL in get_args(annotation)[1:]


def _is_list(annotation: Any) -> bool:
    origin, args = _strip(annotation)
    return origin is tuple or (origin in (Union, types.UnionType) and any(get_origin(arg) is tuple for arg in args))


def _unknown(spelling: str, name: str, options: Mapping[str, Any]) -> str:
    members = [f"--{_option(key)}" for key in options if key.startswith(f"{name}.")]
    if members:
        return f"{spelling} is a group of options; set one of its own: {', '.join(members)}"
    key = nearest(name, list(options))
    return f"unknown option {spelling}; the nearest valid one is --{_option(key)} ({describe(options[key])})"


def _reads(annotation: Any, text: str) -> bool:
    origin, args = _strip(annotation)
    if origin in (Union, types.UnionType):
        return any(_reads(arg, text) for arg in args)
    if origin is Literal:
        return text in map(str, args)
    if origin is tuple:
        return _reads(args[0], text)
    if origin is type(None):
        return text == "None"
    if origin in (int, float):
        try:
            origin(text)
        except ValueError:
            return False
    return True
