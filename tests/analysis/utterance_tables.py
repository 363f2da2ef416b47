"""Utterance tables with known properties, and evaluation folders that hold them."""

import numpy as np

from i3d_jax.analysis.utterances import UtteranceTable, speaker_of
from i3d_jax.inference.scoring import write_jsonl


def make_table(utterances=60, layers=4, seed=0, length_effect=1.0):
    """Longer utterances have higher probabilities if ``length_effect`` is positive; errors do not depend on depth."""
    rng = np.random.default_rng(seed)
    ids = tuple(f"{k % 6}-1-{k:04d}" for k in range(utterances))
    seconds = rng.uniform(1, 10, utterances)
    logits = rng.normal(0, 1, (layers, 2))[None] + 0.3 * rng.normal(0, 1, (utterances, layers, 2))
    logits = logits + length_effect * (seconds - 5.5)[:, None, None] / 3
    probabilities = 1 / (1 + np.exp(-logits))
    words = rng.integers(3, 12, utterances)
    return UtteranceTable(
        ids=ids,
        speakers=np.array([speaker_of(key) for key in ids]),
        errors=rng.binomial(words, 0.2),
        words=words,
        audio_seconds=seconds,
        gates=probabilities > 0.5,
        probabilities=probabilities,
        gate_names=("mha", "ffn"),
    )


def write_folder(folder, table):
    """As ``Evaluation.write`` does."""
    rows = [
        {
            "id": table.ids[i],
            "reference": " ".join("A" * int(table.words[i])),
            "hypothesis": "",
            "errors": int(table.errors[i]),
            "words": int(table.words[i]),
            "audio_seconds": float(table.audio_seconds[i]),
            "executed_layers": float(table.executed_layers[i]),
            "gates": {n: table.gates[i, :, m].astype(int).tolist() for m, n in enumerate(table.gate_names)},
            "gate_probabilities": {n: table.probabilities[i, :, m].tolist() for m, n in enumerate(table.gate_names)},
        }
        for i in range(len(table))
    ]
    write_jsonl(folder / "utterances.jsonl", rows)
