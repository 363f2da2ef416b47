import itertools

import pytest

from i3d_jax.progress import ProgressMeter, format_duration, progress


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (200.4, "3:20"), (59.6, "1:00"), (3661, "1:01:01")])
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize("interactive", [True, False])
def test_passes_items_through(interactive, capsys):
    assert list(progress(["a", "b"], "reading", interactive=interactive)) == ["a", "b"]
    assert list(progress(3, "counting", interactive=interactive)) == [0, 1, 2]
    assert list(progress(iter("xy"), "streaming", interactive=interactive)) == ["x", "y"]
    assert list(progress(iter("xy"), "known", total=2, interactive=interactive)) == ["x", "y"]
    err = capsys.readouterr().err
    for text in ("reading", "2/2", "counting", "3/3", "streaming", "known"):
        assert text in err


def test_ends_cleanly_when_left_early(capsys):
    items = progress(5, "early", interactive=False)
    assert list(itertools.islice(items, 2)) == [0, 1]
    items.close()
    assert capsys.readouterr().err == "early 1/5 it\n"


def test_eta_leaves_out_what_comes_before_the_first_report(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("i3d_jax.progress.time.monotonic", lambda: now[0])
    meter = ProgressMeter(100, "step", unit="step", interactive=False)
    now[0] = 50.0  # compilation
    meter.update_to(1, "loss 5")
    assert meter.eta() is None
    now[0] = 55.0
    meter.update_to(6, "loss 4")
    assert meter.eta() == pytest.approx(94.0)
    now[0] = 60.0
    meter.update_to(11, "loss 3")
    assert capsys.readouterr().err.splitlines() == ["step 1/100 loss 5", "step 11/100 loss 3 eta 1:29"]
