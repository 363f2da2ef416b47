import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from i3d_jax.analysis.regression import regress


def data(seed=0, utterances=120, speakers=8):
    rng = np.random.default_rng(seed)
    who = rng.integers(0, speakers, utterances)
    offsets = rng.normal(0, 2, speakers)
    a = rng.normal(5, 2, utterances) + offsets[who]  # confounded with the speaker
    b = rng.normal(0, 3, utterances)
    y = 0.7 * a - 0.2 * b + 3 * offsets[who] + rng.normal(0, 0.3, utterances)
    return y, {"a": a, "b": b}, who


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_one_quantity_is_scipys_line(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 15))
    found, line = regress(y, {"x": x}, samples=2), stats.linregress(x, y)
    assert found.coefficients["x"].slope == pytest.approx(line.slope)
    assert found.coefficients["x"].standardised == pytest.approx(line.rvalue)
    assert found.r_squared == pytest.approx(line.rvalue**2)
    assert found.r_squared_groups == pytest.approx(0, abs=1e-12)


def test_dummies_are_those_of_the_full_design():
    y, x, who = data()
    found = regress(y, x, groups=who, samples=2)
    design = np.stack([*x.values(), *(who == s for s in np.unique(who))], axis=1).astype(float)
    solution = np.linalg.solve(design.T @ design, design.T @ y)
    left = y - design @ solution
    for name, slope in zip(x, solution, strict=False):
        assert found.coefficients[name].slope == pytest.approx(slope)
        assert found.coefficients[name].standardised == pytest.approx(slope * x[name].std() / y.std())
    assert found.r_squared == pytest.approx(1 - left @ left / ((y - y.mean()) @ (y - y.mean())))
    means = np.array([y[who == s].mean() for s in who])
    assert found.r_squared_groups == pytest.approx(means.var() / y.var())


def test_known_effects_are_found_and_confounding_is_taken_out():
    y, x, who = data()
    found = regress(y, x, groups=who, clusters=who, samples=300)
    assert found.coefficients["a"].slope == pytest.approx(0.7, abs=0.05)
    assert found.coefficients["b"].slope == pytest.approx(-0.2, abs=0.03)
    assert found.coefficients["a"].interval[0] > 0 > found.coefficients["b"].interval[1]
    assert found.r_squared > 0.97 and found.clusters == 8 and found.utterances == 120
    assert regress(y, x, samples=2).coefficients["a"].slope > 1.5, "without the speakers a stands for them too"


@settings(max_examples=20)
@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_units_do_not_matter(scale, shift):
    y, x, who = data(utterances=40)
    plain = regress(y, x, groups=who, samples=5)
    other = regress(y * 3 - 1, {"a": x["a"] * scale + shift, "b": x["b"]}, groups=who, samples=5)
    for name in x:
        assert other.coefficients[name].standardised == pytest.approx(plain.coefficients[name].standardised, rel=1e-5)
    assert other.r_squared == pytest.approx(plain.r_squared, rel=1e-6)


def test_what_cannot_be_explained_is_said():
    y, x, who = data()
    with pytest.raises(ValueError, match="depth is the same for all 120 utterances"):
        regress(np.ones(120), x, name="depth")
    with pytest.raises(ValueError, match="c is constant within every group"):
        regress(y, x | {"c": who.astype(float)}, groups=who)
    with pytest.raises(ValueError, match="linear combinations"):
        regress(y, x | {"c": x["a"] - 2 * x["b"]})
    with pytest.raises(ValueError, match="3 utterances cannot tell 3 unknowns apart"):
        regress(y[:3], {k: v[:3] for k, v in x.items()})
    with pytest.raises(ValueError, match="do not fit"):
        regress(y[:5], x)


def test_a_target_that_the_groups_explain_whole_is_said():
    speakers = np.repeat(np.arange(5), 8)
    quantity = np.random.default_rng(0).normal(size=40)
    with pytest.raises(ValueError, match="depth is the same for all utterances of each group"):
        regress(speakers * 2.0, {"length": quantity}, name="depth", groups=speakers)
