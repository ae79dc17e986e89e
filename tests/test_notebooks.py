"""Every notebook runs from top to bottom."""

import ast
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, monkeypatch, tmp_path):
    """Its cells, as plain Python, in a folder where what it writes does no harm; it checks its results."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("matplotlib.image")
    matplotlib.use("Agg")
    (tmp_path / "tests").symlink_to(path.parent.parent / "tests")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names: dict = {}
    checks = 0
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, path.name, "exec"), names)
            checks += sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))
    assert checks >= 1
    pictures = [matplotlib.image.imread(picture) for picture in Path().glob("*.png")]
    assert pictures
    assert all(picture.std() > 0.05 for picture in pictures)  # none is blank
