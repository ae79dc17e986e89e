"""What there is of all that speaking needs: packages, devices, memory, the model. A report as data.

Nothing is loaded and nothing is computed; the files of a model are read, for their checksums.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from indextts_jax import __version__, checkpoint, checksums, config, download, models
from indextts_jax.config import Config
from indextts_jax.errors import Error, shown

PACKAGES = (
    "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "soundfile", "sentencepiece", "wetext", "tokenizers",
    "tiktoken",
)  # fmt: skip
EXTRAS = {  # of pyproject.toml: what each is found by
    "download": "huggingface_hub", "plot": "matplotlib", "loudness": "pyloudnorm", "train": "grain",
    "completion": "shtab", "serve": "fastapi", "japanese": "fugashi", "spanish": "nemo_text_processing",
}  # fmt: skip
ROOM = 1.3  # times the weights: what speaking took at its peak with the official model, in float32
GOOD = ("ok", "note")


class Finding(NamedTuple):
    """One thing that was looked at: state is ok, note, missing, damaged or wrong."""

    what: str
    state: str
    message: str


def check(model: Path | None, dtype: str | None = None) -> Iterator[Finding]:
    """All findings, one by one as they are made; dtype: of the weights (default: as the commands have it)."""
    yield from packages()
    yield from devices()
    if model is None:
        yield Finding("model", "missing", "none is named; run `indextts-jax config set model DIR`, or give MODEL")
        return
    cfg = None
    yield from files_of(model)
    with contextlib.suppress(Error):  # which is among the findings
        cfg, _ = checkpoint.read_description(model)
    if cfg is not None:
        yield from memory(model, cfg, dtype)


def packages() -> Iterator[Finding]:
    """What is installed, in which version."""
    yield Finding("indextts-jax", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed; install indextts-jax again")
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            f"[{extra}]", "note", "installed" if there else f"not installed: pip install 'indextts-jax[{extra}]'"
        )
    found = shutil.which("ffmpeg")
    yield Finding("ffmpeg", "note", found or "not installed; only WAV, FLAC, OGG and MP3 can be read")


def devices() -> Iterator[Finding]:
    """What JAX computes on."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        yield Finding("devices", "wrong", f"JAX finds none: {shown(error)}")
        return
    for device in found:
        size = _memory_of(device)
        memory = f", {download.gigabytes(size)} of memory" if size else ""
        yield Finding(f"device {device.id}", "ok", f"{device.platform}: {device.device_kind}{memory}")


def files_of(model: Path) -> Iterator[Finding]:
    """What is there of a model, converted or not, what is missing and what is damaged."""
    if not model.is_dir():
        yield Finding("model", "missing", f"{model}: no such folder; check the path")
        return
    if (model / "config.yaml").is_file() and not (model / "model.json").exists():
        yield from _unconverted(model)
        return
    try:
        cfg, source = checkpoint.read_description(model)
    except Error as error:
        yield Finding("model", "damaged" if (model / "model.json").exists() else "missing", str(error))
        return
    yield Finding("model", "ok", f"{model}: converted from {source}, format {checkpoint.FORMAT}")
    wrong = checksums.problems(model)
    for name in (*models.COMPONENTS, *models.OPTIONAL):
        folder = model / name
        if getattr(cfg, name) is None:
            yield Finding(name, "note", "not in this model: emotions cannot be read off texts")
        elif not folder.is_dir():
            yield Finding(name, "missing", f"{folder}: no such folder; convert the model again")
        elif found := checksums.problems(folder):
            yield from (Finding(name, "damaged", line) for line in found)
            wrong = [line for line in wrong if line not in found]
        else:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            yield Finding(name, "ok", download.gigabytes(size))
        wrong = [line for line in wrong if folder.is_dir() or not line.startswith(f"{folder}{os.sep}")]
    yield from (Finding("files", "damaged", line) for line in wrong)


def _unconverted(model: Path) -> Iterator[Finding]:
    listed = True  # of IndexTTS-2.5, `convert` knows what is missing
    with contextlib.suppress(Error):
        listed = config.from_yaml(config.read_yaml(model / "config.yaml")).gpt.languages is None
    try:
        problems = download.problems(model) if listed else {}
    except Error as error:
        problems = {"files": str(error)}
    recorded = (model / download.RECORD).exists()
    for place, what in problems.items():
        yield Finding(place, what.partition(";")[0], f"{model / place}: {what}")
    if listed and not problems:
        how = "have the checksums of the hub" if recorded else "are there"
        yield Finding("files", "ok", f"{model}: all files {how}")
    yield Finding("model", "wrong", f"{model}: not converted yet; run `indextts-jax convert {model} OUT`")


def memory(model: Path, cfg: Config, dtype: str | None = None) -> Iterator[Finding]:
    """What the weights take, beside what the device has."""
    import jax

    try:
        device = jax.devices()[0]
    except RuntimeError:
        return  # it was said
    dtype = dtype or models.default_dtype(device.platform)

    def weights(names: tuple[str, ...]) -> int:
        trees = (models.cast(name, checkpoint.shapes(model, name, getattr(cfg, name)), dtype) for name in names)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for tree in trees for leaf in jax.tree.leaves(tree))

    needed, there = int(ROOM * weights(models.COMPONENTS)), _memory_of(device)
    text = f"speaking in {dtype} takes about {download.gigabytes(needed)}"
    if cfg.qwen3 is not None:
        text += f", reading emotions off texts {download.gigabytes(int(ROOM * weights(models.OPTIONAL)))} more"
    if there is None:
        yield Finding("memory", "note", f"{text}; how much there is, the device does not say")
    elif there < needed:
        advice = "use --dtype bfloat16 or a larger machine" if dtype == "float32" else "use a larger device"
        yield Finding("memory", "wrong", f"{text}, but there are only {download.gigabytes(there)}; {advice}")
    else:
        yield Finding("memory", "ok", f"{text}, of {download.gigabytes(there)}")


def _memory_of(device: Any) -> int | None:
    """Bytes that a device has; a CPU's are those that this process may use."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return size
