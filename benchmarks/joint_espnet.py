"""The attention decoder and joint decoding beside ESPnet's, on the same random weights.

Command: ``python benchmarks/joint_espnet.py --peers=PYTHON``, an interpreter with torch and espnet (202511); minutes,
which ESPnet's search takes.

Compared are the logits of whole transcripts, the label-smoothing loss, and for a number of searches (beams, CTC
weights, bonuses, weights of an LSTM language model) the best hypothesis of each utterance and its score. Left out of
the last two are hypotheses of the greatest length, which ESPnet ends without a score, and what ESPnet finds with more
tokens than the frames suffice for (one each, and one between equal ones), which is not proposed here. The last line is
the share of equal hypotheses.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from i3d_jax.inference.fusion import Fusion
from i3d_jax.inference.joint_decoding import JointDecodingConfig, joint_search
from i3d_jax.model.decoder import Decoder, DecoderConfig, after_start, before_end
from i3d_jax.model.encoder import Params
from i3d_jax.model.language_model import LanguageModel, LanguageModelConfig
from i3d_jax.training.losses import attention_loss

WIDTH, HEADS, FFN, LAYERS, VOCABULARY, SMOOTHING = 32, 4, 64, 3, 60, 0.1
LENGTHS = np.array([24, 20, 16, 13, 10, 7, 4, 2])
LM = LanguageModel(LanguageModelConfig(num_layers=2, width=24), VOCABULARY)
# CTC weight, bonus, weight of the language model.
WEIGHTS = ((0.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.3, 0.5, 0.0), (0.7, 1.0, 0.0), (0.0, 1.5, 0.4), (0.3, 1.5, 0.6))
SEARCHES = [
    (JointDecodingConfig(beam=beam, ctc_weight=weight, length_bonus=bonus), lm_weight)
    for beam, (weight, bonus, lm_weight) in itertools.product((1, 4, 10), WEIGHTS)
]


def models(key: jax.Array) -> tuple[Decoder, Params, jax.Array, jax.Array]:
    """Decoder and its parameters, kernel and bias of the CTC head, all random; transcripts of about a third of T."""
    decoder = Decoder(DecoderConfig(LAYERS, HEADS, FFN, embedding_std=0.1), WIDTH, VOCABULARY)
    params = jax.jit(decoder.init)(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, [leaf + n for leaf, n in zip(leaves, noise, strict=True)])
    projection = params["output"]["projection"]
    projection["kernel"] *= 3
    # The blank, which ESPnet's decoder may answer and ours may not, is improbable; the end is likely now and then.
    projection["bias"] = projection["bias"].at[0].set(-30.0).at[-1].set(5.0)
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (WIDTH, VOCABULARY))
    return decoder, params, kernel, jnp.zeros(VOCABULARY).at[0].set(8.0)


def language_model(key: jax.Array) -> Params:
    """Parameters of the language model, random."""
    params = jax.jit(LM.init)(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [leaf + n for leaf, n in zip(leaves, noise, strict=True)])


def espnet_names(params: Params, kernel: jax.Array, bias: jax.Array, language: Params) -> dict[str, np.ndarray]:
    """The same weights under ESPnet's names; its matrices are transposed."""
    named: dict[str, Any] = {"ctc.ctc_lo.weight": kernel.T, "ctc.ctc_lo.bias": bias}
    ends, cells = language["ends"], language["layers"]
    named["lm.encoder.weight"] = named["lm.decoder.weight"] = ends["embedding"]
    named["lm.decoder.bias"] = ends["bias"].at[0].set(-1e30)  # the blank is no token of a sentence
    for n in range(LM.config.num_layers):
        for gates, name in (("i", "ih"), ("h", "hh")):
            whole = [cells[gates + gate]["kernel"][n].T for gate in "ifgo"]
            named[f"lm.rnn.weight_{name}_l{n}"] = jnp.concatenate(whole)
        named[f"lm.rnn.bias_hh_l{n}"] = jnp.concatenate([cells[f"h{gate}"]["bias"][n] for gate in "ifgo"])
        named[f"lm.rnn.bias_ih_l{n}"] = jnp.zeros(4 * LM.config.width)

    def dense(name: str, p: Params) -> None:
        named[f"decoder.{name}.weight"], named[f"decoder.{name}.bias"] = p["kernel"].T, p["bias"]

    def norm(name: str, p: Params) -> None:
        named[f"decoder.{name}.weight"], named[f"decoder.{name}.bias"] = p["scale"], p["bias"]

    def several(names: list[str], p: Params) -> None:
        kernels, biases = (jnp.split(p[leaf], len(names), axis=-1) for leaf in ("kernel", "bias"))
        for name, *own in zip(names, kernels, biases, strict=True):
            dense(name, {"kernel": own[0], "bias": own[1]})

    named["decoder.embed.0.weight"] = params["embedding"]
    norm("after_norm", params["output"]["norm"])
    dense("output_layer", params["output"]["projection"])
    for n in range(LAYERS):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        name = f"decoders.{n}"
        norms = (layer["own_norm"], layer["cross_norm"], layer["ffn"]["norm"])
        for m, own in enumerate(norms, start=1):
            norm(f"{name}.norm{m}", own)
        several([f"{name}.self_attn.linear_{x}" for x in "qkv"], layer["qkv"])
        dense(f"{name}.self_attn.linear_out", layer["own_output"])
        dense(f"{name}.src_attn.linear_q", layer["query"])
        several([f"{name}.src_attn.linear_{x}" for x in "kv"], layer["kv"])
        dense(f"{name}.src_attn.linear_out", layer["cross_output"])
        dense(f"{name}.feed_forward.w_1", layer["ffn"]["hidden"])
        dense(f"{name}.feed_forward.w_2", layer["ffn"]["output"])
    return {key: np.array(value) for key, value in named.items()}


def ask_espnet(python: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What ESPnet answers."""
    sizes = {"vocabulary": VOCABULARY, "width": WIDTH, "heads": HEADS, "ffn": FFN, "layers": LAYERS}
    sizes |= {"lm_width": LM.config.width, "lm_layers": LM.config.num_layers}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("arrays.npz", "cases.json", "answers.json")]
        np.savez(paths[0], **arrays)  # type: ignore[arg-type]
        searches = [asdict(search) | {"lm_weight": lm_weight} for search, lm_weight in SEARCHES]
        cases = {"sizes": sizes | {"smoothing": SMOOTHING}, "searches": searches}
        Path(paths[1]).write_text(json.dumps(cases))
        subprocess.run([python, str(Path(__file__).with_name("espnet_search.py")), *paths], check=True)
        answers: dict[str, Any] = json.loads(Path(paths[2]).read_text())
    return answers


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="interpreter with torch and espnet")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    key = jax.random.key(flags.seed)
    decoder, params, kernel, bias = models(key)
    language = language_model(jax.random.fold_in(key, 4))
    frames = int(LENGTHS.max())
    states = jax.random.normal(jax.random.fold_in(key, 2), (len(LENGTHS), frames, WIDTH))
    mask = jnp.arange(frames)[None] < LENGTHS[:, None]
    labels = jax.random.randint(jax.random.fold_in(key, 3), (len(LENGTHS), 10), 1, VOCABULARY - 1)
    num_labels = jnp.asarray(np.minimum(LENGTHS, 10 - np.arange(len(LENGTHS))))
    read, (answer, valid) = after_start(labels, VOCABULARY), before_end(labels, num_labels, VOCABULARY)
    theirs = ask_espnet(
        flags.peers,
        espnet_names(params, kernel, bias, language)
        | {
            "states": np.array(states),
            "lengths": LENGTHS,
            "tokens_in": np.array(read, np.int64),
            "tokens_out": np.array(jnp.where(valid, answer, -1), np.int64),
        },
    )
    logits = decoder.apply(params, read, states, mask)
    there, ours = (np.asarray(x)[..., 1:][np.asarray(valid)] for x in (theirs["logits"], logits))
    print(f"logits: largest difference {np.abs(there - ours).max():.1e}, largest value {np.abs(ours).max():.1f}")
    loss = float(jnp.sum(attention_loss(logits, labels, num_labels, SMOOTHING)[0]))
    print(f"label-smoothing loss: {loss:.4f}, ESPnet {theirs['loss']:.4f}")

    search = jax.jit(joint_search, static_argnums=(0, 1))
    ctc_logits = states @ kernel + bias[None, None]
    equal = compared = 0
    print("| beam | CTC weight | bonus | LM weight | equal | of | tokens | largest difference of scores |")
    print("| --- " * 8 + "|")
    for (config, lm_weight), answers in zip(SEARCHES, theirs["searches"], strict=True):
        fusion = Fusion(language, jnp.float32(lm_weight), jnp.float32(0.0), jnp.zeros(VOCABULARY, bool), LM)
        own_fusion = fusion if lm_weight else None
        found = jax.device_get(search(config, decoder, params, states, ctc_logits, mask, own_fusion))
        same, apart, lengths = 0, 0.0, []
        for row, best in enumerate(answers):
            tokens = found.tokens[row, 0, : found.num_tokens[row, 0]].tolist()
            repeats = sum(a == b for a, b in itertools.pairwise(best["tokens"]))
            if max(len(tokens), len(best["tokens"])) >= LENGTHS[row] or len(best["tokens"]) + repeats > LENGTHS[row]:
                continue
            lengths.append(len(tokens))
            if tokens == best["tokens"]:
                same += 1
                apart = max(apart, abs(float(found.scores[row, 0]) - best["score"]))
            else:
                print(f"row {row}: {tokens} {found.scores[row, 0]:.4f}, ESPnet {best['tokens']} {best['score']:.4f}")
        equal, compared = equal + same, compared + len(lengths)
        print(
            f"| {config.beam} | {config.ctc_weight} | {config.length_bonus} | {lm_weight} | {same} | {len(lengths)} | "
            f"{min(lengths, default=0)} to {max(lengths, default=0)} | {apart:.1e} |"
        )
    print(f"{equal} of {compared} best hypotheses are equal")


if __name__ == "__main__":
    main()
