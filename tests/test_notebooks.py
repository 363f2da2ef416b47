"""The notebooks run from top to bottom, and are committed with their outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.quick_compilation import FLAGS_OF_LONGER_WORK

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 500_000

# In a process of its own: the kernel's client has warnings of its own, and here they would be errors.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
try:
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
finally:
    nbformat.write(notebook, target)
"""


def outputs(notebook):
    """Of each code cell, what kinds of output it has."""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = {(o.output_type, o.get("name"), *sorted(o.get("data", {}))) for o in cell.outputs}
            kinds.append((cell.source, found))
    return kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_outputs_are_committed(path, tmp_path):
    target = tmp_path / path.name
    # The kernel's folder is the notebook's own, where it finds the project; nothing is written there.
    command = [sys.executable, "-c", EXECUTE, str(path), str(target), str(path.parent)]
    environment = os.environ | {"XLA_FLAGS": " ".join(FLAGS_OF_LONGER_WORK)}  # on one device, as a reader has it
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert outputs(nbformat.read(target, as_version=4)) == outputs(nbformat.read(path, as_version=4))


def test_all_are_here_and_the_readme_names_them():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["01_gates", "02_tradeoff", "03_input_dependence", "04_execution_paths"]
    page = (ROOT / "docs" / "analysis.md").read_text()
    assert all(f"notebooks/{name}.ipynb" in page for name in names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_clean(path):
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run once, from top to bottom"
    figures = 0
    for cell in notebook.cells:
        assert not re.search(r"/(home|root|tmp|work|Users)/", cell.source)
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r"/(home|root|tmp|work|Users)/|\r|\x1b|\d+/\d+ it", text)
            figures += "image/png" in output.get("data", {})
    assert figures
    titles = [cell.source.splitlines()[0] for cell in notebook.cells if cell.cell_type == "markdown"]
    assert titles[0].startswith("# ")
