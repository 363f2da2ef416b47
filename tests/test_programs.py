"""Programs compiled ahead of time: what is read from them, and the batch that fits."""

import importlib.util
from dataclasses import replace

import jax
import numpy as np
import pytest

from i3d_jax.cli import memory
from i3d_jax.data.batching import BatchPlanner
from i3d_jax.experiment import load_config
from i3d_jax.programs import BatchShape, ProgramFigures, abstract, collectives, compile_ahead, topology_devices
from i3d_jax.training.family import FamilyConfig
from i3d_jax.training.sharding import ParallelConfig


def test_collectives_are_counted_with_the_size_of_their_results():
    text = """
      %a.1 = f32[36,256,768]{2,1,0:T(8,128)} all-reduce(%x), metadata={op_name="jit(step)/while/body/dot"}
      %b = (bf16[4,2]{1,0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
      %c = bf16[4,2]{1,0} all-gather-done(%b)
      %d = pred[16]{0} all-reduce(%z), to_apply=%add
      %e = f32[4]{0} add(%all-reduce.3, %p)
    """
    assert collectives(text, 3) == {
        "all-gather": (1, 8 * 4),
        "all-reduce": (3 + 1, 3 * 36 * 256 * 768 * 4 + 16),
    }


def test_programs_are_made_without_data():
    config = replace(load_config("tests/tiny_config.py"), parallel=ParallelConfig(fsdp=2))
    shape, devices = BatchShape(8, 0.5, 4), jax.devices()[:4]
    function, arguments = abstract(config, "train", shape, devices)
    assert "num_partitions = 4" in function.lower(*arguments).as_text()
    kernel = arguments[0].params["subsampling"]["out"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 2
    assert arguments[1].waveform.shape == (8, 8000)
    figures = compile_ahead(config, "conditional", shape, devices)
    assert figures.collectives == {}  # every device skips by its own rows
    assert figures.bytes > figures.argument_bytes > 2 * 8000 * 4
    family = replace(config, parallel=ParallelConfig(), family=FamilyConfig(seeds=3))
    function, arguments = abstract(family, "train", shape, devices)
    assert arguments[0].params["subsampling"]["out"]["kernel"].shape == (3, *kernel.shape)
    assert jax.eval_shape(function, *arguments)[1].totals.loss.shape == (3,)
    assert abstract(family, "masked", shape, devices)[1][0]["subsampling"]["out"]["kernel"].shape == kernel.shape
    with pytest.raises(ValueError, match=r"batch_multiple=6 is not a multiple of the 4 devices"):
        abstract(config, "train", BatchShape(6, 0.5, 4), devices)


@pytest.mark.parametrize(
    "memory_of, budget, rows",
    [
        (lambda rows: 100 + 10 * rows, 1000, 88),  # 90 fit, in eights
        (lambda rows: 100 + 10 * rows, 180, 8),
        (lambda rows: 100 + 10 * rows, 179, 0),
        (lambda rows: 100 + 80 * rows, 1000, 8),  # 16 are refused
        (lambda rows: 100 + 10 * rows + rows**2 // 10, 1000, 56),  # the line promises too much
    ],
)
def test_the_largest_batch_that_fits(memory_of, budget, rows, monkeypatch):
    tried = []

    def compiled(config, program, shape, devices):
        tried.append(shape.rows)
        if memory_of(shape.rows) > 1200:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it is too much")
        return ProgramFigures(memory_of(shape.rows), 1, 0.0, {})

    monkeypatch.setattr(memory, "compile_ahead", compiled)
    config = load_config("tests/tiny_config.py")
    shape, figures = memory.largest_batch(config, BatchShape(0, 1.0, 4), (), budget)
    assert figures.bytes == memory_of(max(shape.rows, 8))
    assert shape.rows == rows
    assert figures.bytes <= budget or not rows
    assert len(tried) == len(set(tried)) <= 6


def test_the_memory_command_prints_what_to_set(monkeypatch, capsys):
    monkeypatch.setattr(memory, "compile_ahead", lambda *a: ProgramFigures(a[2].rows * 10**8, 10**7, 0.0, {}))
    memory.main(["--config=tests/tiny_config.py", "--gigabytes=2.0", "--seconds=1.5"])
    lines = capsys.readouterr().out.splitlines()
    # 1.5 s slowed down by 0.9, rounded up to a tenth: what the plan of such recordings makes.
    assert "rows of 1.7 s" in lines[0]
    assert [line.split(" | ")[1:3] for line in lines[3:]] == [["16", "28"]] * 3
    config = load_config("tests/tiny_config.py")
    planner = BatchPlanner(np.array([24000]), np.array([1]), config.batching, speeds=config.augment.speeds)
    assert planner.buckets[-1].num_samples == memory.longest_row(config, 1.5) * 16000
    with pytest.raises(ValueError, match="--gigabytes=0"):
        memory.main(["--config=tests/tiny_config.py", "--gigabytes=0"])


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_its_installation_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"compiling for v5e:2x4 needs libtpu: pip install 'libtpu==0\.0"):
        topology_devices("v5e:2x4")
