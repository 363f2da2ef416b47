import numpy as np
import pytest
from etils import epath

from i3d_jax.analysis.utterances import from_evaluation, read_evaluation
from i3d_jax.inference.evaluation import Evaluation
from i3d_jax.inference.scoring import score
from tests.analysis.utterance_tables import make_table, write_folder


def test_what_an_evaluation_writes_is_read_back(tmp_path):
    table = make_table(5, layers=3)
    references = ["a b", "a", "b b b", "c", "d e"]
    result = Evaluation(
        ids=list(table.ids),
        references=references,
        hypotheses=["a b", "", "b b", "x y", "d e"],
        score=score(references, ["a b", "", "b b", "x y", "d e"], bootstrap_samples=0),
        gates=table.gates,
        gate_probabilities=table.probabilities.astype(np.float32),
        gflops=np.ones(5),
        encoder_share=np.ones(5),
        audio_seconds=table.audio_seconds,
        alternatives=[()] * 5,
    )
    result.write(tmp_path, table.gate_names)
    read, direct = read_evaluation(tmp_path), from_evaluation(result, table.gate_names)
    assert read.ids == direct.ids and read.gate_names == ("mha", "ffn")
    assert read.speakers.tolist() == direct.speakers.tolist() == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(read.gates, direct.gates)
    np.testing.assert_allclose(read.probabilities, direct.probabilities, atol=1e-5)
    np.testing.assert_allclose(read.audio_seconds, direct.audio_seconds, atol=1e-3)
    assert read.errors.tolist() == [0, 1, 1, 2, 0]
    assert direct.wer.tolist() == [0, 100, pytest.approx(100 / 3), 200, 0]


def test_depths():
    table = make_table(7, layers=3)
    for i in range(7):
        assert table.executed_layers[i] == sum(map(bool, table.gates[i].ravel())) / 2
        assert table.expected_layers[i] == pytest.approx(sum(table.probabilities[i].ravel()) / 2)
    assert (table.executed_blocks["mha"] + table.executed_blocks["ffn"] == 2 * table.executed_layers).all()
    assert table.rows([3, 1]).ids == (table.ids[3], table.ids[1])
    assert table.rows([3, 1]).wer.tolist() == [table.wer[3], table.wer[1]]


def test_what_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"utterances.jsonl: no evaluation there; make it with eval.py"):
        read_evaluation(tmp_path)
    write_folder(epath.Path(tmp_path), make_table(3))
    file = tmp_path / "utterances.jsonl"
    whole = file.read_text()
    for broken in ("", "[1]\n", whole[:-20], whole.replace('"mha": [', '"mha": [1, ', 1), '{"gates": {}}\n'):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"utterances.jsonl is damaged"):
            read_evaluation(tmp_path)
