"""The project's files agree with each other."""

import os
import re
import tomllib
from pathlib import Path

import i3d_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def test_requirements_equal_the_packages_dependencies():
    assert requirements("requirements.txt") == PROJECT["dependencies"]
    assert requirements("requirements-dev.txt") == PROJECT["optional-dependencies"]["dev"]
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_requirements_are_floors():
    for entry in requirements("requirements.txt") + requirements("requirements-dev.txt"):
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?>=[\d.]+(; python_version < '[\d.]+')?", entry), entry


def test_readme_quotes_the_commands_that_ci_runs():
    command = "bash tests/run"
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(f"exec {command}")
    readme = (ROOT / "README.md").read_text()
    assert command in readme
    assert "pip install -r requirements.txt && python train.py --config=configs/demo.py" in readme
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_version_is_in_the_changelog_and_the_citation():
    assert f"## {i3d_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {i3d_jax.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_imports_go_down_only():
    listed = (ROOT / "docs" / "architecture.md").read_text().partition("\n    types, ")[2].partition("\n\n")[0]
    floors = ("types, " + listed).split("<")
    floor_of = {name.strip(): floor for floor, names in enumerate(floors) for name in names.split(",")}
    for path in sorted((ROOT / "i3d_jax").rglob("*.py")):
        parts = path.relative_to(ROOT / "i3d_jax").with_suffix("").parts
        if parts[0] == "__init__":
            continue
        text = path.read_text().partition("if TYPE_CHECKING:")
        lines = [*text[0].splitlines(), *(line for line in text[2].splitlines() if not line.startswith("    from"))]
        for line in lines:
            match = re.match(r"\s*from i3d_jax(?:\.(\w+))?\S* import (\w+)", line)
            if match:
                target = match[1] or match[2]
                assert floor_of[target] <= floor_of[parts[0]], f"{path.name}: {line.strip()}"
