"""Flags of XLA with which programs compile in a third of the time, which is most of the time of the tests."""

from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # later ones end at once on a flag that they do not know
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]

# For what computes about as long as it compiles; of flags given twice the last one counts.
FLAGS_OF_LONGER_WORK = [*FLAGS, "--xla_backend_optimization_level=1"]
