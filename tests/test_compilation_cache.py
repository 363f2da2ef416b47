"""Compiled programs are found again by the next process."""

import os
import subprocess
import sys

from tests.trainings import ROOT

CODE = """
import jax, i3d_jax
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: x + 1)(1)  # compiled before the cache has a place
asr = i3d_jax.load("docs/demo_model")
asr.transcribe("docs/demo_model/sample.flac")
print(len(hits), jax.config.values["jax_compilation_cache_dir"])
"""


def run(home, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    environment |= {"XDG_CACHE_HOME": str(home)} | variables
    process = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    hits, folder = process.stdout.split()
    return int(hits), folder, process.stderr


def test_the_second_start_compiles_nothing_new(tmp_path):
    hits, folder, _ = run(tmp_path)
    assert hits == 0 and folder.startswith(str(tmp_path / "i3d_jax" / "programs"))
    kept = len(list((tmp_path / "i3d_jax" / "programs").glob("*/*-cache")))
    assert kept > 0
    hits, _, _ = run(tmp_path)
    assert hits == kept


def test_the_user_decides(tmp_path):
    other = tmp_path / "other"
    assert run(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(other))[1] == str(other)
    assert run(tmp_path / "home", JAX_ENABLE_COMPILATION_CACHE="false")[1] == "None"
    assert not (tmp_path / "home").exists()


def test_a_place_that_cannot_be_written_is_told_once(tmp_path):
    home = tmp_path / "home"
    home.write_text("")
    hits, folder, errors = run(home)
    assert (hits, folder) == (0, "None")
    assert errors.count("compiled programs are not kept") == 1


def test_a_user_without_a_home_is_told_and_goes_on(tmp_path):
    code = "from pathlib import Path\nPath.home = classmethod(lambda cls: Path('~nobody-at-all').expanduser())\n" + CODE
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))} | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["0", "None"]
    assert process.stderr.count("compiled programs are not kept") == 1
