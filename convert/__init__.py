"""From a model folder in the official layout to parameter trees. PyTorch is not needed.

Each component has one file here with three functions: `tensors(folder, settings)` finds its tensors on disk,
`config(base, tensors, extra)` completes its configuration from their shapes, `table(cfg)` says where each tensor goes.
"""

import dataclasses
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indextts_jax import checkpoint, interrupts, models
from indextts_jax import config as configuration
from indextts_jax.config import Config, ConfigError, from_yaml, inside, read_json, read_yaml
from indextts_jax.convert import qwen3, rest
from indextts_jax.convert.table import Report, files, fill
from indextts_jax.convert.tensors import CheckpointError, Tensors
from indextts_jax.errors import Error, NotFound, shown
from indextts_jax.files import whole
from indextts_jax.models.qwen3 import Qwen3Config

__all__ = ["CheckpointError", "Report", "convert", "read", "read_config"]


def _converter(component: str) -> Any:
    return importlib.import_module(f"indextts_jax.convert.{component}")


def read_config(folder: Path) -> Config:
    """The configuration of a model folder: config.yaml, completed from the tensors' shapes."""
    settings = read_yaml(folder / "config.yaml")
    found = {name: _open(name, folder, settings)[0] for name in components(folder, settings)}
    return dataclasses.replace(from_yaml(settings), **found)


def components(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """What a model folder holds: all components, and Qwen3 if its folder is there."""
    has_qwen = "qwen_emo_path" in settings and (folder / qwen3.place(settings)).is_dir()
    return models.COMPONENTS + (models.OPTIONAL if has_qwen else ())


def _open(component: str, folder: Path, settings: dict) -> tuple[Any, Tensors]:
    """One component's configuration, and its tensors, unread."""
    converter = _converter(component)
    tensors = converter.tensors(folder, settings)
    where = files(tensors) or folder
    base = getattr(from_yaml(settings), component) or Qwen3Config()  # of which config.yaml says nothing
    more = extra(component, folder, settings)
    try:
        cfg = converter.config(base, tensors, more)
        configuration.check(cfg)
    except ConfigError as error:
        places = _places(component, settings)  # where the sizes come from, if not from the tensors
        raise CheckpointError(f"{folder / places[0] if places else where}: cannot be used: {error}") from None
    except Error:
        raise
    except KeyError as error:
        raise CheckpointError(f"{where}: tensor {error.args[0]} is missing ({component}); download it again") from None
    except (TypeError, ValueError) as error:
        interrupts.check()
        raise CheckpointError(f"{where}: the sizes of {component} cannot be read off it: {shown(error)}") from None
    return cfg, tensors


def _places(component: str, settings: dict[str, Any]) -> list[str]:
    """The JSON files of a component, inside the model folder."""
    match component:
        case "w2vbert":
            return ["hf_cache/w2v-bert-2.0/config.json"]
        case "bigvgan":
            return ["hf_cache/bigvgan/config.json"]
        case "qwen3":
            return [f"{qwen3.place(settings)}/{name}" for name in ("config.json", "generation_config.json")]
    return []


def extra(component: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The component's own JSON files in a model folder, the later over the earlier; empty for those that have none."""
    found: dict[str, Any] = {}
    for place in _places(component, settings):
        path = folder / place
        if not path.is_file():
            raise NotFound(f"{path}: no such file; it belongs to the {component} component")
        found |= read_json(path)
    return found


def read(component: str, folder: Path, strict: bool = False) -> tuple[dict, Report]:
    """The float32 parameter tree (numpy) of one component of a model folder, and what became of its tensors.

    Raises NotFound and CheckpointError, naming the file and the tensor; see `table.fill`.
    """
    cfg, tensors = _open(component, folder, read_yaml(folder / "config.yaml"))
    try:
        like = models.shapes(component, cfg)
    except (ArithmeticError, TypeError, ValueError) as error:
        interrupts.check()
        raise CheckpointError(f"{files(tensors)}: does not fit config.yaml ({component}): {shown(error)}") from None
    return fill(component, _converter(component).table(cfg), tensors, like, strict)


def _others(folder: Path, settings: dict[str, Any], cfg: Config) -> dict[str, Path]:
    """The files besides weights that a converted model needs, by their names there; each was understood."""
    kind, vocabulary = checkpoint.text_kind(cfg)
    place = inside(settings, "dataset.bpe_model") if cfg.gpt.languages is None else vocabulary
    found = {vocabulary: folder / place}
    if (folder / "glossary.yaml").is_file():
        found["glossary.yaml"] = folder / "glossary.yaml"
    if cfg.qwen3 is not None:
        found["tokenizer.json"] = folder / qwen3.place(settings) / "tokenizer.json"
    for path in found.values():
        if not path.is_file():
            raise NotFound(f"{path}: no such file; it belongs to the model, download it again")
    try:
        pieces = kind.load(found[vocabulary], found.get("glossary.yaml")).size
    except Error:
        raise
    except (ValueError, OSError) as error:
        interrupts.check()
        raise CheckpointError(shown(error, 300)) from None
    _must_fit(found[vocabulary], pieces, cfg.gpt.text_vocabulary)
    if cfg.qwen3 is not None:
        tokenizer = checkpoint.read_tokenizer(found["tokenizer.json"])
        _must_fit(found["tokenizer.json"], tokenizer.get_vocab_size(), cfg.qwen3.vocabulary)
    return found


def _must_fit(path: Path, pieces: int, most: int) -> None:
    if pieces > most:
        raise CheckpointError(f"{path}: has {pieces} pieces, but the model knows {most}: it belongs to another model")


def _unused(report: Report, folder: Path, settings: dict[str, Any]) -> Tensors:
    """The tensors of a component that its table does not use."""
    tensors = _converter(report.component).tensors(folder, settings)
    return {name: tensors[name] for name in report.unused}


def convert(
    folder: Path, out: Path, strict: bool = False, progress: Callable[[Report], None] = lambda report: None
) -> list[Report]:
    """Convert a model folder in the official layout into `out`, which must not exist; -> a report per component.

    One component at a time, so that the peak memory is that of the largest; `out` appears only when all is written.
    What gpt.pth and s2mel.pth hold besides is kept in rest.pth, for training and for the way back (`export`).
    Raises NotFound, CheckpointError, ConfigError, ModelError and FileError, and leaves nothing behind.
    """
    settings = read_yaml(folder / "config.yaml")
    cfg = read_config(folder)
    others = _others(folder, settings, cfg)
    reports: list[Report] = []
    with whole(out) as partial:
        for name, path in others.items():
            shutil.copyfile(path, partial / name)
        for component in components(folder, settings):
            interrupts.check()
            tree, report = read(component, folder, strict)
            checkpoint.save(partial, component, getattr(cfg, component), tree)
            del tree
            reports.append(report)
            progress(report)
        rest.save(
            partial, {r.component: _unused(r, folder, settings) for r in reports if r.component in rest.COMPONENTS}
        )
        checkpoint.save_description(partial, cfg, source=folder.resolve().name)
    return reports
