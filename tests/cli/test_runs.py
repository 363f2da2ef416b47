"""The list of runs, on folders made by hand."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from etils import epath

import tests.tiny_config as tiny_config
from i3d_jax.cli.runs import main
from i3d_jax.experiment import save_config
from i3d_jax.runs import different_settings, find_runs, summarize
from i3d_jax.schema import to_dict

DEMO_MODEL = Path(__file__).parents[2] / "docs" / "demo_model"
NOW = 1_700_000_000.0


def write_log(folder, steps, start=NOW - 5000, loss=3.0):
    """Two steps an epoch, ten seconds each; a dev evaluation after every epoch; the last line half-written."""
    lines = []
    for step in range(1, steps + 1):
        moment = {"time": start + 10 * step, "epoch": step / 2}
        lines.append({"step": step, "kind": "train", **moment, "loss": loss - 0.1 * step})
        if step % 2 == 0:
            wer = 50.0 - step if step < 6 else 47.0
            lines.append({"step": step, "kind": "dev", **moment, "wer": wer, "executed_layers": 1.5})
            lines.append({"step": step, "kind": "text", "time": moment["time"], "name": "sample/a", "text": "ref: x"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"step": 99, "ki')


def write_evaluation(folder, split, errors, execution="conditional", name=""):
    target = folder / "eval" / (name or f"{split}-{execution}")
    target.mkdir(parents=True)
    wer = 100 * sum(errors) / (10 * len(errors))
    row = {"model": "m", "split": split, "execution": execution, "wer": wer, "executed_layers": 1.25}
    (target / "report.json").write_text(json.dumps({"rows": [row], "gates": {}, "meta": {}}))
    utterances = [{"id": f"u{i}", "errors": e, "words": 10, "reference": 10 * "A "} for i, e in enumerate(errors)]
    (target / "utterances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in utterances))


def make_run(folder, steps=8, finished=True, **changes):
    folder.mkdir(parents=True)
    save_config(tiny_config.get_config(), folder / "config.json")
    saved = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        part, _, leaf = key.partition("__")
        saved[part][leaf] = value
    (folder / "config.json").write_text(json.dumps(saved))
    shutil.copy(DEMO_MODEL / "tokenizer.model", folder)
    write_log(folder, steps)
    if finished:
        (folder / "model").mkdir()
        shutil.copy(DEMO_MODEL / "recognizer.json", folder / "model")
    return folder


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    a = make_run(root / "demo")
    dense = make_run(root / "demo" / "dense", loss__utility_weight=0.0)
    make_run(root / "stopped", steps=3, finished=False, optimizer__learning_rate=0.5)
    write_evaluation(a, "test", [1, 2, 3, 0] * 5)
    write_evaluation(a, "test", [9] * 20, name="test-conditional-0.9")
    write_evaluation(a, "dev", [1] * 20)
    write_evaluation(dense, "test", [2, 2, 3, 1] * 5, execution="masked")
    (root / "empty").mkdir()
    (root / "foreign").mkdir()
    (root / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    (root / "cut").mkdir()
    (root / "cut" / "config.json").write_text('{"name": "de')
    (root / "notes.txt").write_text("x")
    return root


def test_runs_are_found_wherever_they_are_named_from(runs):
    names = [str(path.relative_to(runs)) for path in find_runs([runs])]
    assert names == ["cut", "demo", "demo/dense", "empty", "foreign", "stopped"]
    assert find_runs([runs / "empty"]) == [epath.Path(runs / "empty")]
    expanded = [runs / name for name in sorted(os.listdir(runs))]
    names = [str(path.relative_to(runs)) for path in find_runs([*expanded, runs / "demo" / "dense"])]
    assert names == ["cut", "demo", "demo/dense", "empty", "foreign", "stopped"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_runs([runs / "nowhere"])


def test_a_finished_run(runs):
    run = summarize(epath.Path(runs / "demo"), NOW)
    assert run.state == "finished" and (run.epochs_done, run.epochs) == (4.0, 4)
    assert run.train_loss == pytest.approx(2.2)
    assert (run.best_dev_wer, run.dev_wer, run.dev_layers) == (46.0, 47.0, 1.5)
    assert (run.test_wer, run.test_layers) == (15.0, 1.25), "not the evaluation at another threshold"
    assert run.seconds == 70 and run.parameters > 1000


def test_a_half_written_run(runs):
    folder = epath.Path(runs / "stopped")
    assert summarize(folder, NOW).state == "interrupted at step 3 of about 8"
    assert summarize(folder, NOW - 4900).state == "running? at step 3 of about 8"
    (folder / "log.jsonl").write_text("")
    assert summarize(folder, NOW).state == "no steps yet"
    (folder / "log.jsonl").write_bytes(b"\xff\xfe\n[1]\n{}\n")
    (folder / "tokenizer.model").write_bytes(b"no model")
    (folder / "eval" / "test-masked").mkdir(parents=True)
    (folder / "eval" / "test-masked" / "report.json").write_text('{"rows": [')
    run = summarize(folder, NOW)
    assert (run.state, run.parameters, run.test_wer, run.seconds) == ("no steps yet", None, None, None)


def test_numbers_that_are_none_are_left_out(runs):
    folder = epath.Path(runs / "stopped")
    line = '{"step": %s, "kind": "dev", "time": %s, "wer": %s, "epoch": NaN}\n'
    (folder / "log.jsonl").write_text(line % ("NaN", "1e999", "9" * 400) + "[" * 100_000 + "\n")
    for name, text in (("a", "[" * 100_000), ("b", '{"rows": [{"split": "a", "execution": "masked", "wer": NaN}]}')):
        (folder / "eval" / name).mkdir(parents=True)
        (folder / "eval" / name / "report.json").write_text(text)
    run = summarize(folder, NOW)
    assert (run.state, run.dev_wer, run.epochs_done, run.evaluations) == ("no steps yet", None, None, ())


def test_pauses_between_processes_do_not_count(runs):
    folder = epath.Path(runs / "demo")
    write_log(folder, 8, start=NOW - 5000)
    lines = (folder / "log.jsonl").read_text().splitlines()[:-1]
    late = {"step": 9, "kind": "train", "time": NOW, "epoch": 4.5}
    (folder / "log.jsonl").write_text("\n".join([*lines, json.dumps(late)]))
    (folder / "tensorboard").mkdir()
    for start in (NOW - 5005, NOW - 20):
        (folder / "tensorboard" / f"events.out.tfevents.{start:.0f}.host.from_0").touch()
    assert summarize(folder, NOW).seconds == 85 + 20


def test_what_is_no_run_is_said(runs):
    states = {path.name: summarize(path).state for path in map(epath.Path, runs.iterdir()) if path.is_dir()}
    assert states["empty"] == "no run (no config.json)"
    assert states["foreign"] == "no run (config.json is of something else)"
    assert states["cut"] == "config.json is damaged"
    assert summarize(epath.Path(DEMO_MODEL)).state == "model bundle, no run"


def test_settings_that_differ(runs):
    summaries = [summarize(epath.Path(runs / name)) for name in ("demo", "demo/dense", "empty", "stopped")]
    assert different_settings(summaries) == {
        "loss.utility_weight": [1.0, 0.0, 1.0],
        "optimizer.learning_rate": [0.01, 0.01, 0.5],
    }
    # A run of another version: a key that is unknown here is compared as it stands.
    saved = to_dict(tiny_config.get_config()) | {"future": {"knob": 1}}
    (runs / "stopped" / "config.json").write_text(json.dumps(saved))
    assert different_settings([summaries[0], summarize(epath.Path(runs / "stopped"))]) == {"future.knob": [None, 1]}


def test_table(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs.parent)
    main(["runs", "--sort=best_dev_wer", "--against=runs/demo/dense"])
    out = capsys.readouterr().out
    first, settings_title, settings, difference_title, difference = out.strip().split("\n\n")
    lines = first.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "epochs"]
    assert [line.split()[0] for line in lines[2:]] == [
        "runs/demo", "runs/demo/dense", "runs/stopped", "runs/cut", "runs/empty", "runs/foreign"
    ]  # fmt: skip
    assert "interrupted at step 3 of about 8" in lines[4] and "15.00" in lines[2]
    assert settings_title == "Settings that differ:" and "optimizer.learning_rate" in settings
    assert difference_title == "WER minus that of runs/demo/dense, paired bootstrap:"
    assert "-5.00" in difference and "15.00" in difference and "20.00" in difference
    assert "no split that both have evaluated" in difference
    assert "\r" not in out and "\x1b" not in out


def test_machine_readable_formats(runs, capsys):
    folders = [str(runs / "demo"), str(runs / "stopped"), f"--against={runs / 'demo' / 'dense'}"]
    main([*folders, "--format=json"])
    data = json.loads(capsys.readouterr().out)
    assert [Path(run["run"]).name for run in data["runs"]] == ["demo", "dense", "stopped"]
    assert data["runs"][0]["test_wer"] == 15.0 and len(data["runs"][0]["evaluations"]) == 3
    assert data["differences"][0]["difference"] == -5.0
    main([*folders, "--format=csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0]["difference.test"] == "-5.0" and rows[2]["settings.optimizer.learning_rate"] == "0.5"
    assert rows[1]["difference.test"] == "" and rows[2]["parameters"] == rows[0]["parameters"]
    main([*folders, "--format=markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| --- | --- | ---: |") and lines[2].count("|") == lines[0].count("|")


def test_comparisons_that_cannot_be_made_are_told(runs, capsys):
    write_evaluation(runs / "stopped", "test", [1, 1])
    main([str(runs / "stopped"), f"--against={runs / 'demo'}"])
    assert "different utterances" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no run"):
        main([str(runs), f"--against={runs / 'empty'}"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        main([str(runs / "nowhere")])
    with pytest.raises(SystemExit):
        main([str(runs), "--sort=colour"])
