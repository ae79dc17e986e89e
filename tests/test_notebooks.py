"""Every notebook runs from top to bottom."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GRADIENTS = [path for path in NOTEBOOKS if path.stem[:2] in ("03", "04", "05", "06")]


def test_there_are_notebooks():
    assert NOTEBOOKS


def cells(path):
    """The source of its cells, as plain Python."""
    listed = json.loads(path.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in listed if cell["cell_type"] == "code"]
    assert any(isinstance(node, ast.Assert) for source in sources for node in ast.walk(ast.parse(source)))
    return sources


def place(folder):
    """A folder where what a notebook writes does no harm."""
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "notebooks").mkdir()
    return folder / "notebooks"


def check_pictures(folder):
    image = pytest.importorskip("matplotlib.image")
    pictures = [image.imread(picture) for picture in folder.glob("*.png")]
    assert pictures
    assert all(picture.std() > 0.05 for picture in pictures)  # none is blank


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path not in GRADIENTS], ids=lambda path: path.stem)
def test_notebook(path, monkeypatch, tmp_path):
    """It checks its results."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(place(tmp_path))
    names: dict = {}
    for source in cells(path):
        exec(compile(source, path.name, "exec"), names)
    check_pictures(Path())


@pytest.mark.slow
@pytest.mark.parametrize("path", GRADIENTS, ids=lambda path: path.stem)
def test_notebook_of_gradients(path, tmp_path):
    """In a process of its own: optax does not promote strictly, and some choose how hard the compiler tries."""
    for name in ("matplotlib", *(["diffrax"] if path.stem.startswith("05") else [])):
        pytest.importorskip(name)
    folder = place(tmp_path)
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cells(path)), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], cwd=folder, env=environment, check=True, timeout=600)
    check_pictures(folder)
