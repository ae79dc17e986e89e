"""The converted model on disk: one uncompressed Orbax checkpoint per component, with configuration and tokenizer.

    model/
      model.json        format version and configuration
      bpe.model         SentencePiece vocabulary; of a model of many languages, byte_pairs.NAME is there instead
      glossary.yaml     where the model has one
      w2vbert/ ...      one Orbax checkpoint per component, with the shapes of its arrays
      tokenizer.json    of qwen3/, where the model has that
      rest.pth          what gpt.pth and s2mel.pth held besides: for training and `indextts-jax export`, never loaded
      checksums.json    of these files; each component has one of its own

A folder is written under a temporary name and renamed into place: it is whole or it is not there. What is loaded is
checked against the checksums: the disk may have changed a weight, which would be another voice and no error.
"""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding

from indextts_jax import byte_pairs, checksums, config, files, interrupts, models
from indextts_jax.config import Config
from indextts_jax.errors import Error, NotFound, short, shown
from indextts_jax.files import FileError
from indextts_jax.multilingual import FrontEnd, MultilingualFrontEnd
from indextts_jax.reader import Reader
from indextts_jax.text import TextFrontEnd

log = logging.getLogger(__name__)

FORMAT = 3
_DESCRIPTION = "model.json"
_SHAPES = "shapes.json"
_MOST_DESCRIPTION, _MOST_SHAPES = 1_000_000, 16_000_000  # bytes
_CONCURRENT_GB = 1  # Orbax reads ahead by this much; more raises the peak memory and is no faster


class ModelError(Error):
    """A converted folder that cannot be used; the message names it and says what to do."""


def reason(error: Exception) -> str:
    """What is wrong, of an error of Orbax or TensorStore: the last part of its text, without the source."""
    return " ".join(str(error).split()).rpartition(": ")[2].partition(" [")[0]


def save(folder: Path, component: str, cfg: Any, tree: Any, compress: bool = False) -> None:
    """Write one component's parameters, numpy or JAX arrays, into an open folder. Raises FileError.

    compress: what is shipped is, with Zstandard; official weights would hardly become smaller, and are read faster so.
    """
    # One process of several writes by itself, and Orbax is to wait for no other.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    own: Any = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
    handler = ocp.PyTreeCheckpointHandler(use_compression=compress, save_concurrent_gb=_CONCURRENT_GB, **own)
    try:
        with ocp.Checkpointer(handler, **own) as checkpointer:
            checkpointer.save(folder.absolute() / component, args=ocp.args.PyTreeSave(tree))
    except ValueError as error:  # which is what a full disk is to TensorStore; the last part of its text says so
        interrupts.check()
        why = reason(error)
        raise FileError(f"{folder.parent}: the {component} component cannot be written there ({why})") from error
    found = {"/".join(path): leaf.shape for path, leaf in _flat(tree).items()}
    path = folder / component
    try:
        (path / _SHAPES).write_text(json.dumps({"config": config.to_dict(cfg), "shapes": found}))
        checksums.write(path, (file for file in path.rglob("*") if file.is_file()))
    except OSError as error:  # of a full disk, it would name no file
        why = error.strerror
        raise FileError(f"{folder.parent}: the {component} component cannot be written there ({why})") from error


def shapes(folder: Path, component: str, cfg: Any) -> Any:
    """The shapes of one component's parameters, float32, as `models.shapes` finds them; cfg: the component's.

    Tracing a deep network for them takes a second, so they are kept beside the arrays; of another configuration, or
    not to be read, they are found anew.
    """
    try:
        kept = json.loads(files.read(folder / component / _SHAPES, _MOST_SHAPES))
        if kept["config"] == json.loads(json.dumps(config.to_dict(cfg))):  # in which tuples are lists
            found = {tuple(path.split("/")): tuple(shape) for path, shape in kept["shapes"].items()}
            return unflatten_dict({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in found.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        log.debug("%s: no shapes are kept there", folder / component)
    return models.shapes(component, cfg)


def save_description(folder: Path, cfg: Config, source: str) -> None:
    """Write model.json, with the format version, the configuration and where the weights came from; then the checksums.

    It is what a folder is completed with. Raises OSError.
    """
    description = {"format": FORMAT, "source": source, "config": config.to_dict(cfg)}
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    own = [file for file in folder.iterdir() if file.is_file()]
    checksums.write(folder, [*own, *folder.glob(f"*/{checksums.NAME}")])


def derive(folder: Path, out: Path, changed: dict[str, Any], rest: Callable[[Path], None] | None = None) -> None:
    """Write a converted model like the one in `folder` but for the components in `changed`: component -> float32 tree.

    `rest`, if given, is called with the open folder and changes what stands beside the components. `out` must not exist
    and appears only when all is written. Raises NotFound, ModelError and FileError.
    """
    cfg, source = read_description(folder)
    with files.whole(out) as partial:
        for path in sorted(folder.iterdir()):
            interrupts.check()
            if path.name in (*changed, checksums.NAME, _DESCRIPTION):
                continue
            if path.is_dir():
                shutil.copytree(path, partial / path.name)
            else:
                shutil.copyfile(path, partial / path.name)
        for component, tree in changed.items():
            interrupts.check()
            save(partial, component, getattr(cfg, component), tree)
        if rest is not None:
            rest(partial)
        save_description(partial, cfg, source)


def verify(folder: str | Path) -> list[str]:
    """Everything in a converted folder that is not as it was written: a line for each file, which names it."""
    folder = Path(folder)
    components = (path.parent for path in sorted(folder.glob(f"*/{checksums.NAME}")))
    found = [line for part in (folder, *components) for line in checksums.problems(part)]
    return list(dict.fromkeys(found))


def _check(folder: Path, *names: str) -> None:
    if found := checksums.problems(folder, names):
        raise ModelError(found[0])


def read_description(folder: Path) -> tuple[Config, str]:
    """The configuration and source of a converted folder. Raises NotFound or ModelError."""
    path = folder / _DESCRIPTION
    if not path.is_file():
        if (folder / "config.yaml").is_file():
            hint = "this is an unconverted model: run `indextts-jax convert` on it"
        else:
            hint = "a converted model holds it: run `indextts-jax convert MODEL_DIR OUT`"
        raise NotFound(f"{path}: no such file; {hint}")
    try:
        description = json.loads(files.read(path, _MOST_DESCRIPTION))
        if (found := description["format"]) != FORMAT:
            raise ModelError(
                f"{path}: format {short(found)}, but this version reads format {FORMAT}; convert the model again"
            )
        cfg, source = config.from_dict(Config, description["config"]), str(description["source"])[:255]
    except (ModelError, FileError):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({shown(error)}); convert the model again") from None
    _check(folder, _DESCRIPTION)
    return cfg, source


def restore(
    folder: Path, component: str, cfg: Any, dtype: jnp.dtype, sharding: Sharding | None = None, check: bool = True
) -> Any:
    """The parameters of one component as JAX arrays, its weights in `dtype`, read straight to their devices.

    Its files are checked meanwhile, by another thread: a third of a second of a CPU for a gigabyte. cfg: the
    component's. Raises NotFound when it is missing and ModelError when it cannot be read, or is not what was written.
    """
    path = folder.absolute() / component
    if not path.is_dir():
        raise NotFound(f"{path}: the {component} component is missing; convert the model again")
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(checksums.problems, path) if check else pool.submit(list)
        try:
            tree = _read(path, component, cfg, dtype, sharding)
        except ModelError:
            if not checked.result():
                raise
    if found := checked.result():
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelError(f"{found[0]}{more}")
    return tree


def _read(path: Path, component: str, cfg: Any, dtype: jnp.dtype, sharding: Sharding | None) -> Any:
    place = sharding or SingleDeviceSharding(jax.devices()[0])
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_CONCURRENT_GB)
    found = {}
    try:
        tree = shapes(path.parent, component, cfg)
        like, kinds = _flat(tree), _flat(models.dtypes(component, tree, dtype))
        # What is stored in another form is read in float32, layer by layer, so that it is never there twice.
        parts: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for leaf, kind in kinds.items():
            parts.setdefault(leaf[:2] if kind == jnp.int8 else (), []).append(leaf)
        with ocp.Checkpointer(handler) as checkpointer:
            for part in parts.values():
                item, arguments = dict.fromkeys(like, ocp.PLACEHOLDER), dict.fromkeys(like, ocp.RestoreArgs())
                for leaf in part:
                    kind = jnp.float32 if kinds[leaf] == jnp.int8 else kinds[leaf]
                    item[leaf], arguments[leaf] = like[leaf], ocp.ArrayRestoreArgs(dtype=kind, sharding=place)
                asked = ocp.args.PyTreeRestore(item=unflatten_dict(item), restore_args=unflatten_dict(arguments))
                read = _flat(checkpointer.restore(path, args=asked))
                if any(read[leaf].shape != like[leaf].shape for leaf in part):
                    raise ModelError(
                        f"{path}: damaged or of another configuration (shapes differ from model.json); convert the "
                        "model again"
                    )
                for leaf in part:
                    found |= models.kept(leaf, read.pop(leaf), kinds[leaf])
    except (jax.errors.JaxRuntimeError, MemoryError, ModelError):  # too little memory for it is no damage
        raise
    except Exception as error:  # Orbax raises Exception itself for an array cut short, and many others
        interrupts.check()
        raise ModelError(
            f"{path}: damaged or of another configuration ({shown(error)}); convert the model again"
        ) from error
    return unflatten_dict(found)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(tree))


def load_text(folder: str | Path) -> FrontEnd:
    """The text front end of a converted model, without its weights. Raises NotFound, Error."""
    folder = Path(folder)
    cfg, _ = read_description(folder)
    kind, name = text_kind(cfg)
    _check(folder, name)
    glossary = folder / "glossary.yaml"
    return kind.load(folder / name, glossary if glossary.is_file() else None)


def text_kind(cfg: Config) -> tuple[type[FrontEnd], str]:
    """What reads texts for a model, and the name of its vocabulary in a folder, converted or not."""
    if cfg.gpt.languages is None:
        return TextFrontEnd, "bpe.model"
    return MultilingualFrontEnd, byte_pairs.NAME


def load_reader(folder: str | Path, dtype: Any = None) -> Reader:
    """What reads emotions off texts: Qwen and its tokenizer, not the rest.

    dtype: as `model.load` has it. Raises NotFound and ModelError, and Error for another dtype.
    """
    folder, kind = Path(folder), models.asked(dtype)
    cfg, _ = read_description(folder)
    path = folder / "tokenizer.json"
    if cfg.qwen3 is None or not path.is_file():
        raise NotFound(
            f"{path}: this model was converted without Qwen, which reads emotions off texts; convert a folder that has "
            "qwen0.6bemo4-merge"
        )
    _check(folder, path.name)
    tokenizer = read_tokenizer(path)
    return Reader(restore(folder, "qwen3", cfg.qwen3, kind), cfg.qwen3, tokenizer)


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a tokenizer.json. Raises ModelError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        interrupts.check()
        raise ModelError(f"{path}: not a tokenizer ({shown(error)}); download or convert the model again") from None
