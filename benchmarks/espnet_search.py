"""ESPnet's decoder, loss, language model and beam search, in a process of their own for ``benchmarks/joint_espnet.py``.

``python espnet_search.py CASES.npz CASES.json ANSWERS.json`` with an interpreter that has ``torch`` and ``espnet``. It
knows nothing of the project: weights come under ESPnet's names, and every weight must be there.
"""

import json
import logging
import sys
from typing import Any

import numpy as np
import torch
from espnet.nets.beam_search import BeamSearch
from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss
from espnet.nets.scorers.ctc import CTCPrefixScorer
from espnet.nets.scorers.length_bonus import LengthBonus
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.lm.seq_rnn_lm import SequentialRNNLM


def main(arrays_path: str, cases_path: str, answers_path: str) -> None:
    """Read weights, states and searches; write what ESPnet makes of them."""
    torch.set_num_threads(1)
    logging.disable()  # it warns of every transcript of the greatest length
    with np.load(arrays_path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    with open(cases_path) as file:
        cases: dict[str, Any] = json.load(file)
    sizes = cases["sizes"]
    vocabulary, width = sizes["vocabulary"], sizes["width"]
    decoder = TransformerDecoder(
        vocabulary,
        width,
        attention_heads=sizes["heads"],
        linear_units=sizes["ffn"],
        num_blocks=sizes["layers"],
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        self_attention_dropout_rate=0.0,
        src_attention_dropout_rate=0.0,
    ).eval()
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in arrays.items() if k.startswith("decoder.")})
    ctc = CTC(vocabulary, width).eval()
    ctc.load_state_dict({k.removeprefix("ctc."): v for k, v in arrays.items() if k.startswith("ctc.")})
    lm_width, lm_layers = sizes["lm_width"], sizes["lm_layers"]
    lm = SequentialRNNLM(vocabulary, lm_width, lm_width, lm_layers, dropout_rate=0.0, rnn_type="lstm").eval()
    lm.load_state_dict({k.removeprefix("lm."): v for k, v in arrays.items() if k.startswith("lm.")})
    states, lengths = arrays["states"], arrays["lengths"]
    answers: dict[str, Any] = {"searches": []}
    with torch.no_grad():
        read, answer = arrays["tokens_in"], arrays["tokens_out"]
        logits, _ = decoder(states, lengths, read, (answer >= 0).sum(1))
        loss = LabelSmoothingLoss(vocabulary, -1, sizes["smoothing"], False)
        answers["logits"] = logits.tolist()
        answers["loss"] = float(loss(logits, answer)) * len(logits)
        for search in cases["searches"]:
            weights = {
                "decoder": 1 - search["ctc_weight"],
                "ctc": search["ctc_weight"],
                "bonus": search["length_bonus"],
                "lm": search["lm_weight"],
            }
            scorers = {
                "decoder": decoder,
                "ctc": CTCPrefixScorer(ctc, vocabulary - 1),
                "bonus": LengthBonus(vocabulary),
                "lm": lm,
            }
            beam = BeamSearch(
                scorers,
                weights,
                beam_size=search["beam"],
                vocab_size=vocabulary,
                sos=vocabulary - 1,
                eos=vocabulary - 1,
                pre_beam_score_key="full",
            )
            found = []
            for own, length in zip(states, lengths.tolist(), strict=True):
                best = beam(own[:length])[0]
                found.append({"tokens": best.yseq[1:-1].tolist(), "score": float(best.score)})
            answers["searches"].append(found)
    with open(answers_path, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
