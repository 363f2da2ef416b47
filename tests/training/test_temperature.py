"""The temperature schedule against its closed form."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from i3d_jax.model.gates import GateConfig
from i3d_jax.training.temperature import annealing

TAUS = st.floats(0.05, 20)


@given(TAUS, TAUS, st.integers(1, 1000), st.integers(0, 2000))
def test_annealing_goes_from_the_first_to_the_last_step(first, last, total, step):
    done = min(step / (total - 1), 1.0) if total > 1 else min(step, 1)
    expected = {"linear": first + (last - first) * done, "exponential": first ** (1 - done) * last**done}
    for kind, tau in expected.items():
        factor = annealing(GateConfig("local", temperature=first, final_temperature=last, annealing=kind), total)
        assert factor is not None
        np.testing.assert_allclose(first * factor(jnp.int32(step)), tau, rtol=2e-4)


def test_a_constant_temperature_needs_no_schedule():
    assert annealing(GateConfig("local"), 10) is None
