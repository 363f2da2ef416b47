"""Checks of a configuration: the ranges of its fields, and that they agree across the dataclasses.

The ranges are those of all kinds of configurations; a kind has some of the keys.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from i3d_jax import schema
from i3d_jax.audio.frontend import SAMPLE_RATE
from i3d_jax.language_model_experiment import LanguageModelExperiment
from i3d_jax.recognizer_experiment import ExperimentConfig

_AT_LEAST_ONE = (
    "data.demo.train_utterances",
    "data.demo.dev_utterances",
    "data.demo.test_utterances",
    "batching.num_buckets",
    "batching.batch_multiple",
    "batching.num_threads",
    "batching.prefetch",
    "batching.tokens_per_batch",
    "text.max_tokens",
    "model.num_layers",
    "model.width",
    "model.encoder.num_layers",
    "model.encoder.d_model",
    "model.encoder.num_heads",
    "model.encoder.ffn_dim",
    "model.decoder.num_heads",
    "model.decoder.ffn_dim",
    "model.gates.hidden_dim",
    "training.epochs",
    "training.eval_every_epochs",
    "training.average_best",
    "training.checkpoint_every_steps",
    "training.max_bad_steps",
    "training.log_every_steps",
    "family.seeds",
    "parallel.accumulate",
    "parallel.lost_after_seconds",
)
_POSITIVE = (
    "data.max_seconds",
    "batching.seconds_per_batch",
    "model.gates.temperature",
    "model.decoder.embedding_std",
    "optimizer.learning_rate",
    "optimizer.epsilon",
    "evaluation.seconds_per_batch",
    "evaluation.max_seconds",
)
_NOT_NEGATIVE = (
    "seed",
    "batching.num_workers",
    "batching.device_prefetch",
    "data.min_seconds",
    "data.demo.seed",
    "loss.utility_weight",
    "model.decoder.num_layers",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "training.keep_every_steps",
    "evaluation.bootstrap_samples",
    "evaluation.timed_utterances",
)
_BELOW_ONE = (
    "model.dropout",
    "model.encoder.dropout",
    "model.encoder.attention_dropout",
    "model.encoder.positional_dropout",
    "model.decoder.dropout",
    "model.decoder.attention_dropout",
    "model.decoder.positional_dropout",
    "model.gates.layer_drop.rate",
    "loss.interctc_weight",
    "loss.label_smoothing",
    "optimizer.beta1",
    "optimizer.beta2",
)
_TEXTS = ("data.source", "data.train", "data.dev", "data.test", "data.cache_dir", "text.run")
RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (_AT_LEAST_ONE, lambda x: x >= 1, "at least 1"),
    (_POSITIVE, lambda x: x > 0, "more than 0"),
    (_NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
    (_BELOW_ONE, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("seed",), lambda x: x < 2**63, "below 2**63"),
    (("batching.seed",), lambda x: -1 <= x < 2**63, "0 or more and below 2**63, or -1 for the experiment's"),
    (("parallel.data", "parallel.fsdp"), lambda x: x >= 1 or x == -1, "at least 1, or -1 for all devices left"),
    (("tokenizer.vocab_size",), lambda x: x >= 4, "4 or more: three ids are reserved"),
    (("training.keep_last",), lambda x: x >= 2, "at least 2: one is complete while the next is written"),
    (("model.gates.threshold",), lambda x: 0 <= x <= 1, "between 0 and 1"),
)


def validate_config(config: ExperimentConfig | LanguageModelExperiment) -> None:
    """Checks the type and the range of every field, and that the fields agree with each other.

    Raises:
      ValueError: all violations, one a line, each with the key, the value and what was expected.
    """
    schema.check_types(config)
    agreement = _of_language_model(config) if isinstance(config, LanguageModelExperiment) else _agreement(config)
    problems = [*_ranges(flatten(schema.to_dict(config))), *agreement]
    if problems:
        raise ValueError("\n".join(problems))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _ranges(flat: dict[str, Any]) -> Iterator[str]:
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value}: expected a finite number"
    for keys, holds, expected in RULES:
        for key in keys:
            if key in flat and not holds(flat[key]):
                yield f"{key}={flat[key]}: expected {expected}"
    for key in _TEXTS:
        if key in flat and not flat[key].strip():
            yield f"{key} is empty: expected text"
    name = flat["name"]
    if not name.strip(".") or any(character in "/\\" or character.isspace() for character in name):
        yield f"name={name!r}: expected a word that can name a folder, without slashes or blanks"


def _agreement(config: ExperimentConfig) -> Iterator[str]:
    data, encoder = config.data, config.model.encoder
    if data.sample_rate != SAMPLE_RATE:
        yield (
            f"data.sample_rate={data.sample_rate}: expected {SAMPLE_RATE}: the front end is defined at that rate; "
            "audio at any other is resampled to it"
        )
    if data.max_seconds <= data.min_seconds:
        yield f"data.max_seconds={data.max_seconds}: expected more than data.min_seconds={data.min_seconds}"
    joined, budget = config.augment.concatenate_seconds, config.batching.seconds_per_batch
    if joined > budget:
        yield f"augment.concatenate_seconds={joined}: expected at most batching.seconds_per_batch={budget}"
    width = config.augment.frequency_mask_width
    if width > config.frontend.num_mels:
        yield f"augment.frequency_mask_width={width}: expected at most frontend.num_mels={config.frontend.num_mels}"
    if encoder.num_heads >= 1 and encoder.d_model % encoder.num_heads:
        yield f"model.encoder.d_model={encoder.d_model}: expected a multiple of num_heads={encoder.num_heads}"
    if config.parallel.data == config.parallel.fsdp == -1:
        yield "parallel.data=-1: expected a number, or one for parallel.fsdp=-1: only one of them can be what is left"
    yield from _training(config)
    taps = config.loss.interctc_layers
    if any(not 1 <= tap < encoder.num_layers for tap in taps) or list(taps) != sorted(set(taps)):
        yield (
            f"loss.interctc_layers={taps}: expected ascending numbers from 1 to "
            f"model.encoder.num_layers - 1 = {encoder.num_layers - 1}"
        )
    conditioned = config.model.self_conditioned_layers
    if conditioned and conditioned != taps:
        yield (
            f"model.self_conditioned_layers={conditioned}: expected the same as loss.interctc_layers={taps}, whose "
            "predictions they are given, or none"
        )
    if config.loss.utility_weight > 0 and config.model.gates.predictor == "none":
        yield (
            f"loss.utility_weight={config.loss.utility_weight}: there is no gate to close with "
            "model.gates.predictor=none; set the predictor to local or global, or the weight to 0"
        )
    target = config.loss.utility_target
    if target is not None and not 0 <= target <= 1:
        yield f"loss.utility_target={target}: expected a share between 0 and 1, or None"
    elif target is not None and config.loss.utility_weight == 0 and not any(config.family.lambdas):
        yield (
            f"loss.utility_target={target}: expected loss.utility_weight above 0, its weight in the loss, or no target"
        )
    final = config.model.gates.final_temperature
    if final is not None and final <= 0:
        yield f"model.gates.final_temperature={final}: expected more than 0, or None"
    elif final is not None and config.model.gates.predictor == "none":
        yield (
            f"model.gates.final_temperature={final}: nothing is sampled with model.gates.predictor=none; set the "
            "predictor to local or global, or leave it out"
        )
    if config.training.trainable == "predictor":
        if config.model.gates.predictor == "none":
            yield (
                "training.trainable=predictor: there is none with model.gates.predictor=none; set that to local or "
                "global, or train all"
            )
        if not config.warm_start.run and not config.warm_start.config:
            yield (
                "training.trainable=predictor: the rest stays as it starts: expected a trained model in "
                "warm_start.run or warm_start.config"
            )
    drop, predictor = config.model.gates.layer_drop.rate, config.model.gates.predictor
    if drop > 0 and predictor != "none":
        yield (
            f"model.gates.layer_drop.rate={drop}: expected 0 with model.gates.predictor={predictor}, which decides "
            "about the gates; set the rate to 0, or the predictor to none"
        )
    yield from _decoder(config)
    yield from _family(config)


def _training(config: ExperimentConfig | LanguageModelExperiment) -> Iterator[str]:
    kept, saved = config.training.keep_every_steps, config.training.checkpoint_every_steps
    if saved >= 1 and kept % saved:
        yield f"training.keep_every_steps={kept}: expected a multiple of training.checkpoint_every_steps={saved}, or 0"
    if config.optimizer.schedule == "inverse_sqrt" and config.optimizer.warmup_steps < 1:
        yield "optimizer.warmup_steps=0: the schedule inverse_sqrt is defined by its warm-up: expected at least 1"


def _of_language_model(config: LanguageModelExperiment) -> Iterator[str]:
    yield from _training(config)
    text, parallel = config.text, config.parallel
    for split in ("train", "dev"):
        if not text.transcripts and not getattr(text, split):
            yield f"text.{split} is empty: expected text files, or text.transcripts=True for those of text.run"
    if parallel.fsdp != 1:
        yield f"parallel.fsdp={parallel.fsdp}: expected 1: every device holds a language model whole"
    if parallel.coordinator:
        yield (
            f"parallel.coordinator={parallel.coordinator!r}: expected none: a language model is trained by one "
            "process, on all of its devices"
        )


def _decoder(config: ExperimentConfig) -> Iterator[str]:
    decoder, weight, width = config.model.decoder, config.loss.ctc_weight, config.model.encoder.d_model
    if not decoder.num_layers:
        if weight != 1:
            yield (
                f"loss.ctc_weight={weight}: expected 1 without an attention decoder; set model.decoder.num_layers to "
                "train with one"
            )
        if config.warm_start.new_decoder:
            yield "warm_start.new_decoder=True: expected a decoder, there is none with model.decoder.num_layers=0"
        return
    if not 0 < weight < 1:
        yield (
            f"loss.ctc_weight={weight}: expected more than 0 and less than 1 with a decoder: both it and the CTC head, "
            "which dev evaluations use, are trained"
        )
    if decoder.num_heads >= 1 and width % decoder.num_heads:
        yield (
            f"model.decoder.num_heads={decoder.num_heads}: expected a divisor of model.encoder.d_model={width}, "
            "which is the decoder's width too"
        )
    if config.warm_start.new_decoder and not (config.warm_start.run or config.warm_start.config):
        yield "warm_start.new_decoder=True: expected a warm start, warm_start.run or warm_start.config"


def _family(config: ExperimentConfig) -> Iterator[str]:
    family, lambdas = config.family, config.family.lambdas
    if len(set(lambdas)) < len(lambdas) or not all(0 <= weight < math.inf for weight in lambdas):
        yield f"family.lambdas={lambdas}: expected different numbers, 0 or more"
    elif any(lambdas) and config.model.gates.predictor == "none":
        yield (
            f"family.lambdas={lambdas}: there is no gate to close with model.gates.predictor=none; set the predictor "
            "to local or global, or leave them out"
        )
    if config.seed + family.seeds > 2**63:
        yield f"family.seeds={family.seeds}: expected seeds below 2**63, counted from seed={config.seed}"
    if family.size > 1 and config.parallel.fsdp != 1:
        yield (
            f"parallel.fsdp={config.parallel.fsdp}: expected 1 for a family of {family.size}, which every device "
            "holds whole; train its members one by one to split them"
        )
