import json
import subprocess

import numpy as np
import pytest

from i3d_jax.analysis.gate_stats import gate_statistics
from i3d_jax.inference import report as report_module
from i3d_jax.inference.report import ReportRow, format_table, report_meta, write_report


def row(**changes) -> ReportRow:
    fields = {
        "model": "demo",
        "execution": "masked",
        "decoder": "greedy",
        "split": "test",
        "wer": 12.345,
        "cer": np.float64(4.2),
        "executed_layers": 12,
        "gflops_per_second": 0.5,
        "real_time_factor": 0.01234,
        "decoder_real_time_factor": None,
    }
    return fields | changes  # type: ignore[return-value]


def test_report_file(tmp_path):
    gates = np.random.default_rng(0).random((5, 3, 2)) < 0.5
    stats = gate_statistics(gates, gates * 0.8, ("mha", "ffn")).to_dict()
    meta = report_meta(seed=3, command="python eval.py run")
    path = tmp_path / "report.json"
    write_report(path, {"rows": [row()], "gates": {"demo/test": stats}, "meta": meta})
    read = json.loads(path.read_text())
    assert read["rows"] == [row()]
    assert list(read["rows"][0]) == list(row())
    assert read["gates"]["demo/test"]["static"] is False
    assert np.shape(read["gates"]["demo/test"]["decision_std"]) == (3, 2)
    assert read["meta"]["seed"] == 3 and read["meta"]["command"] == "python eval.py run"
    assert read["meta"]["versions"]["jax"] and read["meta"]["cpu_count"] >= 1


def test_command_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/eval.py", "my run", "--threshold=0.5"])
    assert report_meta(seed=0)["command"] == "python eval.py 'my run' --threshold=0.5"
    monkeypatch.setattr("sys.argv", ["/usr/bin/i3d-eval", "run"])
    assert report_meta(seed=0)["command"] == "i3d-eval run"
    monkeypatch.setattr("sys.argv", ["/somewhere/i3d_jax/cli/prune.py", "run"])
    assert report_meta(seed=0)["command"] == "python -m i3d_jax.cli.prune run"


def test_commit_is_that_of_the_checkout_or_none(tmp_path, monkeypatch):
    package = tmp_path / "i3d_jax"
    package.mkdir()
    monkeypatch.setattr(report_module.i3d_jax, "__path__", [str(package)])
    assert report_meta(seed=0)["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (package / "a.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert report_meta(seed=0)["commit"] == commit
    (package / "a.py").write_text("x = 2\n")
    assert report_meta(seed=0)["commit"] == f"{commit}-dirty"


def test_table_is_aligned():
    table = format_table([row(), row(model="demo_i3d_global", execution="eager", wer=9.0, real_time_factor=None)])
    lines = table.splitlines()
    assert lines[0].split("  ")[0].strip() == "model"
    for title in ("execution", "decoder", "split", "WER", "CER", "executed layers", "GFLOP per s", "RTF"):
        assert title in lines[0]
    assert len({len(line) for line in lines}) == 1
    for number in ("12.35", "4.20", "12.00", "0.500", "0.0123"):
        assert number in lines[2]
    for title, number in (("WER", "12.35"), ("GFLOP per s", "0.500"), ("RTF", "0.0123")):
        assert lines[0].index(title) + len(title) == lines[2].index(number) + len(number)
    assert lines[3].endswith("-") and "9.00" in lines[3]
    assert format_table([]).count("\n") == 1


def test_bad_rows_are_named(tmp_path):
    incomplete = {k: v for k, v in row().items() if k != "cer"} | {"rtf": 1.0}
    with pytest.raises(ValueError, match=r"missing fields \['cer'\], unknown fields \['rtf'\]"):
        format_table([incomplete])  # type: ignore[list-item]
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="demo/test: wer is nan"):
        write_report(path, {"rows": [row(wer=float("nan"))], "gates": {}, "meta": {}})
    assert not path.exists()
