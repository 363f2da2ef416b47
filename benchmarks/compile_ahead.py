"""Compiles the steps of the paper's configurations for TPUs that are not here, and tabulates what the compiler says.

Command: ``pip install 'libtpu==0.0.42.*'`` (the version that ``jax[tpu]`` names), then ``python
benchmarks/compile_ahead.py [--topologies v5e:2x4 v5p:2x2x2] [--json FILE]``; about half an hour on two cores.
Batches are of 96 rows of 16 s, near the 1600 s of the recipe, in bfloat16 if nothing else is said.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from i3d_jax import files
from i3d_jax.experiment import ExperimentConfig, load_config
from i3d_jax.programs import BatchShape, Program, ProgramFigures, compile_ahead, topology_devices
from i3d_jax.training.sharding import ParallelConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("librispeech*.py"))
SHAPE = BatchShape(rows=96, seconds=16.0, labels=96)


def changed(config: ExperimentConfig, precision: str, remat: str, fsdp: int) -> ExperimentConfig:
    """The experiment with other settings of the machine."""
    return replace(
        config,
        model=replace(config.model, precision=precision),
        training=replace(config.training, remat=remat),
        parallel=ParallelConfig(fsdp=fsdp),
        batching=replace(config.batching, batch_multiple=SHAPE.rows),
    )


def row(topology: str, config: ExperimentConfig, program: Program, figures: ProgramFigures) -> dict[str, object]:
    """Figures of one program, as a row of the table."""
    return {
        "topology": topology,
        "config": config.name,
        "program": program,
        "precision": config.model.precision,
        "remat": config.training.remat,
        "fsdp": config.parallel.fsdp,
        **asdict(figures),
    }


def line(found: dict[str, object]) -> str:
    """A row as Markdown."""
    keys = ("topology", "config", "program", "precision", "remat", "fsdp")
    collectives = found["collectives"]
    assert isinstance(collectives, dict)
    told = ", ".join(f"{count} {kind} ({size / 1e6:.1f} MB)" for kind, (count, size) in collectives.items()) or "none"
    numbers = [f"{float(str(found[key])) / 1e9:.2f}" for key in ("bytes", "argument_bytes")]
    return " | ".join(["", *(str(found[key]) for key in keys), *numbers, f"{found['compile_seconds']:.0f}", told, ""])


def main() -> None:
    """Every configuration, for the first topology every program, and there one with other settings of the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x4", "v5p:2x2x2"])
    parser.add_argument("--json", default="")
    flags = parser.parse_args()
    table: list[dict[str, object]] = []
    print("| topology | config | program | precision | remat | fsdp | GB | arguments | compiled in s | collectives |")
    print("| --- " * 10 + "|")
    for number, topology in enumerate(flags.topologies):
        devices = topology_devices(topology)
        wanted = []
        for path in CONFIGS:
            config = changed(load_config(path), "bfloat16", "dense", 1)
            programs: tuple[Program, ...] = ("train", "masked", "conditional") if number == 0 else ("train",)
            wanted += [(config, program) for program in programs]
        if number == 0:
            one = load_config(CONFIGS[0].with_name("librispeech100_i3d_global.py"))
            machines = [
                ("float32", "none", 1),
                ("float32", "full", 1),
                ("bfloat16", "none", 1),
                ("bfloat16", "full", 1),
            ]
            machines += [("bfloat16", "dense", 4), ("bfloat16", "dense", 8)]
            wanted += [(changed(one, *machine), "train") for machine in machines]
        for config, program in wanted:
            try:
                figures = compile_ahead(config, program, SHAPE, devices)
            except Exception as error:  # the compiler refuses what does not fit, in its own words
                print(f"{topology} {config.name} {program}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
                continue
            table.append(row(topology, config, program, figures))
            print(line(table[-1]).strip(), flush=True)
            if flags.json:  # each took minutes
                files.write_text(flags.json, json.dumps(table, indent=1) + "\n")
    print(json.dumps({"compiled": len(table)}))


if __name__ == "__main__":
    main()
