"""Greedy pruning against a search that is written another way."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.inference.pruning import Cost, Pruning, prune, read_pruning, write_pruning


def table_evaluator(count, words, characters):
    """Costs of all subsets from two lists of numbers; equal ones are frequent."""

    def evaluate(kept):
        calls.append(tuple(np.flatnonzero(kept)))
        place = int(np.sum(2 ** np.flatnonzero(kept)))
        w, c = words[place % len(words)], characters[place % len(characters)]
        return Cost(w, c, float(w), float(c), float(kept.sum()))

    calls = []
    return evaluate, calls


def brute_force(count, evaluate):
    """The order of removal, by looking at all subsets that are one smaller than the last."""
    kept = tuple(range(count))
    order = []
    while kept:
        options = []
        for subset in combinations(kept, len(kept) - 1):
            (removed,) = set(kept) - set(subset)
            mask = np.isin(np.arange(count), subset)
            cost = evaluate(mask)
            options.append((cost.word_errors, cost.character_errors, removed, subset))
        _, _, removed, kept = min(options)
        order.append(removed)
    return order


costs = st.lists(st.integers(0, 3), min_size=1, max_size=33)


@given(st.integers(1, 5), costs, costs)
def test_the_cheapest_goes_first_and_of_equal_ones_the_lowest(count, words, characters):
    evaluate, calls = table_evaluator(count, words, characters)
    steps = list(prune(count, evaluate))
    assert len(calls) == 1 + count * (count + 1) // 2
    assert [step.unit for step in steps[1:]] == brute_force(count, evaluate)
    kept = np.ones(count, bool)
    assert steps[0].unit is None and steps[0].cost == evaluate(kept)
    for step in steps[1:]:
        assert step.candidates.keys() == set(np.flatnonzero(kept))
        kept[step.unit] = False
        assert step.cost == evaluate(kept) == step.candidates[step.unit]


@given(st.integers(1, 5), costs, costs, st.integers(0, 5))
def test_an_interrupted_pruning_ends_as_one_in_one_go(tmp_path_factory, count, words, characters, stop):
    path = tmp_path_factory.mktemp("pruning") / "pruning.json"
    whole = list(prune(count, table_evaluator(count, words, characters)[0]))
    pruning = Pruning("m", "layer", "dev", "digest", count, ("mha", "ffn"), tuple(whole[:stop]))
    write_pruning(path, pruning, {})
    read = read_pruning(path)
    assert read == pruning
    evaluate, calls = table_evaluator(count, words, characters)
    rest = list(prune(count, evaluate, read.steps))
    assert [*read.steps, *rest] == whole
    done, total = pruning.evaluations
    assert len(calls) == total - done


def test_units_are_layers_or_single_blocks():
    layers = Pruning("m", "layer", "dev", "", 3, ("mha", "ffn"))
    blocks = Pruning("m", "block", "dev", "", 3, ("mha", "ffn"))
    assert (layers.count, blocks.count) == (3, 6)
    np.testing.assert_array_equal(layers.gates(np.array([1, 0, 1], bool)), [[1, 1], [0, 0], [1, 1]])
    kept = np.array([1, 1, 1, 0, 1, 1], bool)
    np.testing.assert_array_equal(blocks.gates(kept), [[1, 1], [1, 0], [1, 1]])
    assert (layers.unit_name(1), blocks.unit_name(3)) == ("layer 2", "ffn 2")


def test_patterns_follow_the_removals(tmp_path):
    steps = prune(4, table_evaluator(4, [3, 1, 2, 0, 2], [1, 0])[0])
    pruning = Pruning("m", "block", "dev", "d", 2, ("mha", "ffn"), tuple(steps))
    assert pruning.is_finished
    patterns = pruning.patterns()
    assert [pattern.executed_layers for pattern in patterns] == [2, 1.5, 1, 0.5, 0]
    for before, after, step in zip(patterns, patterns[1:], pruning.steps[1:], strict=False):
        changed = np.flatnonzero((before.gates != after.gates).reshape(-1))
        assert changed.tolist() == [step.unit]
    assert patterns[1].origin == "m, pruned block by block on dev to 1.5 layers"


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "pruning.json"
    with pytest.raises(FileNotFoundError, match="nothing has been pruned there"):
        read_pruning(path)
    steps = prune(2, table_evaluator(2, [0, 1], [0])[0])
    write_pruning(path, Pruning("m", "layer", "dev", "d", 2, ("mha", "ffn"), tuple(steps)), {})
    good = json.loads(path.read_text())
    twice = good | {"rows": [*good["rows"][:2], good["rows"][1]]}
    headless = good | {"rows": [good["rows"][1], good["rows"][0]]}
    for bad in (twice, headless, good | {"unit": "head"}, good | {"rows": [{}]}, [], {}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="pruning.json is damaged"):
            read_pruning(path)
    path.write_text(json.dumps(good)[:-30])
    with pytest.raises(ValueError, match="pruning.json is damaged"):
        read_pruning(path)
