"""Imports run one way: every file of the package stands in one layer, and imports from lower ones alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "indextts_jax"
CONVERT = PACKAGE.parent / "convert"

# From the bottom to the top. A package stands for its files, which may import each other where they make no circle.
LAYERS = (
    ("errors", "buckets", "timing", "models.layers", "ends", "embedded"),
    ("interrupts", "models", "features", "seeds", "yaml_file", "rules", "shards", "pauses"),
    ("files",),
    ("config", "decoding", "text", "byte_pairs", "journal", "download", "settings"),
    ("audio", "loudness", "stages", "emotion", "checksums", "drawing", "lora", "languages"),
    ("voice", "reader", "joining", "growing", "multilingual"),
    ("render", "checkpoint", "request"),
    ("groups", "manifest"),
    ("chunks",),
    ("scheduling",),
    ("pipeline", "devices"),
    ("warmup", "streaming", "check"),
    ("model",),
    ("hearing",),
    ("batch",),
    ("ray", "serve"),
    ("convert", "bench"),
    ("train",),
    ("cli",),
    ("train.recipes",),  # commands of their own
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def files() -> dict[str, Path]:
    """Every file by its name within the package, convert/ where it is installed."""
    found = {_name(path, PACKAGE): path for path in PACKAGE.rglob("*.py")}
    return found | {f"convert.{_name(path, CONVERT)}".rstrip("."): path for path in CONVERT.glob("*.py")}


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path, known: set[str]) -> set[str]:
    """The files of the package that a file imports, wherever in it; not those that only its annotations name."""
    found = set()
    tree = ast.parse(path.read_text("utf-8"))
    unchecked = {
        id(inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inside in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unchecked or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] != "indextts_jax":
            continue
        module = node.module.removeprefix("indextts_jax").lstrip(".")
        for alias in node.names:
            name = f"{module}.{alias.name}".lstrip(".")
            found.add(name if name in known else module)
    return found - {""}  # the package itself holds names alone


def rank(name: str) -> int:
    """That of the file, or of the nearest package around it."""
    while name not in RANK and "." in name:
        name = name.rpartition(".")[0]
    return RANK[name]


def test_every_file_stands_in_a_layer_and_every_layer_is_there():
    known = files()
    for name in known:
        if name:
            rank(name)
    assert {name for name in RANK if name not in known} == set()


def test_imports_run_downwards():
    known = files()
    wrong = [
        (name, other)
        for name, path in known.items()
        if name
        for other in imports(path, set(known))
        if rank(other) > rank(name) or (rank(other) == rank(name) and other.split(".")[0] != name.split(".")[0])
    ]
    assert wrong == []


def test_there_is_no_circle():
    known = files()
    graph = {name: imports(path, set(known)) for name, path in known.items()}
    reached: dict[str, bool] = {}  # False while it is on the way

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert reached.get(name, True), f"a circle: {' -> '.join((*way, name))}"
        if name not in reached:
            reached[name] = False
            for other in graph[name]:
                visit(other, (*way, name))
            reached[name] = True

    for name in graph:
        visit(name, ())


def test_networks_know_nothing_of_files_and_texts():
    """Nor does any of them import another one, only its own kernels: what they share is in layers.py."""
    known = files()
    for name, path in known.items():
        if name.startswith("models.") and name != "models.layers":
            assert imports(path, set(known)) <= {"models.layers", "seeds", f"{name}_kernel"}, name


def test_a_circle_would_be_seen(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("from indextts_jax import pipeline\nfrom indextts_jax.models.layers import valid\n")
    assert imports(path, {"pipeline", "models.layers"}) == {"pipeline", "models.layers"}
