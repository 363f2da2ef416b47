"""Flags of XLA with which programs compile in a third of the time, which is most of the time of the tests."""

from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # later ones end at once on a flag that they do not know
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
