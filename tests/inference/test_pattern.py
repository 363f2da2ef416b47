"""Pattern files, and patterns of single utterances."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.inference.pattern import Pattern, PerUtterance, decision_of, read_pattern, write_pattern
from i3d_jax.model.gates import Open

NAMES = ("mha", "ffn")
GATES = np.array([[1, 0], [0, 0], [1, 1]], bool)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 5), st.just(2))), st.text(max_size=5))
def test_a_file_gives_back_what_was_written(tmp_path_factory, gates, origin):
    path = tmp_path_factory.mktemp("pattern") / "p.json"
    write_pattern(path, Pattern(gates, NAMES, origin))
    read = read_pattern(path, len(gates), NAMES)
    np.testing.assert_array_equal(read.gates, gates)
    assert (read.gate_names, read.origin) == (NAMES, origin)


def test_a_file_holds_a_column_for_each_gate(tmp_path):
    write_pattern(tmp_path / "p.json", Pattern(GATES, NAMES, "by hand"))
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["gates"] == {"mha": [1, 0, 1], "ffn": [0, 0, 1]}
    assert Pattern(GATES, NAMES, "").executed_layers == 1.5


@given(hnp.arrays(bool, (3, 2)), hnp.arrays(bool, (3, 2)))
def test_digests_tell_patterns_apart_and_no_origins(a, b):
    first, second = Pattern(a, NAMES, "x"), Pattern(b, NAMES, "y")
    assert (first.digest == second.digest) == np.array_equal(a, b)


def changed(**changes):
    return {"gate_names": ["mha", "ffn"], "gates": {"mha": [1, 0, 1], "ffn": [0, 0, 1]}, "origin": ""} | changes


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "no pattern file: .*expected JSON"),
        ([1], "expected an object with gate_names, gates and origin"),
        ({"gates": {}}, "expected an object with gate_names, gates and origin"),
        (changed(gate_names=["ffn", "mha"]), r"gate_names=\['ffn', 'mha'\]: the model has \['mha', 'ffn'\]"),
        (changed(gates={"mha": [1, 0, 1]}), "one list for each of mha, ffn"),
        (changed(gates={"mha": [1, 0], "ffn": [0, 0, 1]}), r"gates.mha: 2 values: expected a list of 3"),
        (changed(gates={"mha": [1, 0, 1], "ffn": 7}), r"gates.ffn: 7: expected a list of 3"),
        (changed(gates={"mha": [1, 2, 1], "ffn": [0, 0, 1]}), r"gates.mha, layer 2: 2: expected 0 or 1"),
        (changed(gates={"mha": [1, 0, 1], "ffn": [0, 0, True]}), r"gates.ffn, layer 3: True: expected 0 or 1"),
        (changed(gates={"mha": [1, 0, 1], "ffn": [0, 0.0, 1]}), r"gates.ffn, layer 2: 0.0: expected 0 or 1"),
        (changed(origin=3), "origin=3: expected text"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"p.json.*{message}"):
        read_pattern(path, 3, NAMES)


def test_a_missing_file_is_named_with_the_commands_that_write_some(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.json: no pattern file there; .*cli.prune"):
        read_pattern(tmp_path / "none.json", 3, NAMES)


def test_rows_get_their_utterances_patterns_and_fillers_none():
    gates = np.random.default_rng(0).random((5, 3, 2)) < 0.5
    gates[2] = True
    mask = decision_of(PerUtterance(gates), np.array([4, 2]), 4).mask
    np.testing.assert_array_equal(mask, [gates[4], gates[2], np.zeros((3, 2)), np.zeros((3, 2))])
    assert decision_of(Open(), np.array([4, 2]), 4) == Open()
