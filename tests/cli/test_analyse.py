import dataclasses
import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from i3d_jax.analysis.utterances import read_evaluation
from i3d_jax.cli.analyse import main
from i3d_jax.data.corpora import load_corpus
from i3d_jax.experiment import load_saved_config
from tests.analysis.utterance_tables import make_table, write_folder
from tests.cli.test_runs import DEMO_MODEL, make_run
from tests.tiny_config import get_config


def write_evaluation(run, table, layers, wer, name="test-masked"):
    folder = epath.Path(run) / "eval" / name
    folder.mkdir(parents=True)
    write_folder(folder, table)
    row = {"model": "m", "execution": "masked", "split": "test", "wer": wer, "executed_layers": layers}
    meta = {"score": {"wer_interval": [wer - 1, wer + 1]}}
    (folder / "report.json").write_text(json.dumps({"rows": [row | {"gflops_per_second": 0.1}], "meta": meta}))


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for name, layers, wer in (("a", 2.5, 12.0), ("b", 1.5, 15.0)):
        write_evaluation(make_run(root / name), make_table(60, layers=4, seed=int(layers)), layers, wer)
    dense = make_run(root / "dense", model__gates=dataclasses.asdict(get_config().model.gates) | {"predictor": "none"})
    write_evaluation(dense, make_table(60), 4.0, 11.0)
    make_run(root / "without")
    return root


def test_every_figure_and_table(runs, tmp_path, capsys):
    curve = tmp_path / "pruned.json"
    curve.write_text(json.dumps({"label": "pruned", "points": [{"executed_layers": 2, "wer": 20}]}))
    output = tmp_path / "out"
    main([str(runs), f"--output={output}", f"--curves={curve}", "--paper=fig4"])
    kinds = ("gates", "length", "depth_wer", "regression")
    expected = {f"{kind}-{name}.png" for kind in kinds for name in "ab"}
    assert {file.name for file in output.iterdir()} == expected | {"tradeoff.png", "tables.json", "tables.md"}
    for file in output.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.width > 900
    tables = json.loads((output / "tables.json").read_text())
    assert list(tables["runs"]) == ["a", "b"]
    a = tables["runs"]["a"]
    table = read_evaluation(epath.Path(runs) / "a" / "eval" / "test-masked")
    np.testing.assert_allclose(a["gates"]["probability_mean"], table.probabilities.mean(axis=0))
    assert a["correlations"]["expected layers, length"]["rho"] > 0.8
    assert a["regressions"]["expected layers"]["coefficients"]["length (s)"]["interval"][0] > 0
    curves = {one["label"]: [(p["executed_layers"], p["wer"]) for p in one["points"]] for one in tables["curves"]}
    assert curves == {"global gates, runs": [(1.5, 15.0), (2.5, 12.0)], "dense": [(4.0, 11.0)], "pruned": [(2.0, 20.0)]}
    text = capsys.readouterr().out
    assert (output / "tables.md").read_text() in text
    assert "| Spearman, mha blocks, length | +0." in text and "| dense | 4.00 | 11.00 | 10.00 to 12.00 |" in text


def test_pairs_and_noise_levels_read_the_runs_own_audio(runs, tmp_path):
    run = runs / "a"
    corpus = load_corpus(load_saved_config(run / "config.json").data, "test")
    table = make_table(len(corpus))
    with pytest.raises(ValueError, match=r"a: the split test has other utterances than its evaluation"):
        main([str(run), f"--output={tmp_path / 'out'}", "--audio"])
    write_folder(epath.Path(run) / "eval" / "test-masked", dataclasses.replace(table, ids=_ids(corpus)))
    shutil.copytree(DEMO_MODEL, run / "model", dirs_exist_ok=True)
    main([str(run), f"--output={tmp_path / 'out'}", "--audio", "--pairs=2"])
    tables = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert "SNR (dB)" in tables["runs"]["a"]["regressions"]["expected layers"]["coefficients"]
    pairs = {one["change"]: one["expected_layers"][0] for one in tables["runs"]["a"]["pairs"]}
    assert len(pairs) == 8 and abs(pairs["level -6 dB"]) < 1e-4 < abs(pairs["noise, 0 dB SNR"])
    assert (tmp_path / "out" / "pairs-a.png").exists()


def _ids(corpus):
    return tuple(u.id for u in corpus.utterances)


def test_what_cannot_be_analysed_is_said(runs, tmp_path):
    with pytest.raises(ValueError, match=r"none of .*without has an evaluation of test.*python eval.py RUN"):
        main([str(runs / "without")])
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such curve"):
        main([str(runs), "--curves=none.json", f"--output={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match="--pairs=1: expected 0, or 2"):
        main([str(runs), "--pairs=1"])
    assert not (tmp_path / "out").exists()
