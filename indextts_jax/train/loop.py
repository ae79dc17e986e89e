"""The one loop of training, from top to bottom: a stage, settings and a model in; checkpoints, a log and a model out.

    output/
      run.json            what is trained: stage, settings, corpus, base model; a run that goes on must have the same
      checkpoints/STEP/   parameters, optimizer and counters together (Orbax)
      log.jsonl           a line for every `log_every` steps, and one for every batch that was skipped
      samples/STEP.wav    the text of the settings, spoken
      model/              at the end: a converted model with what was trained; or, of adapters, lora.safetensors

Batches and random numbers are functions of the seed and the step, so that a run that was killed goes on from its last
checkpoint to the same bits.
"""

import dataclasses
import json
import logging
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from indextts_jax import checkpoint, files, interrupts, lora, models
from indextts_jax.config import Config
from indextts_jax.errors import Error, short, shown
from indextts_jax.files import FileError
from indextts_jax.lora import Lora
from indextts_jax.models import Params
from indextts_jax.train import batches, stages
from indextts_jax.train.corpus import Corpus, check_model
from indextts_jax.train.settings import FREE, Settings
from indextts_jax.train.stages import Recipe

log = logging.getLogger(__name__)

RUN, LOG, CHECKPOINTS, SAMPLES, MODEL, ADAPTERS = (
    "run.json", "log.jsonl", "checkpoints", "samples", "model", "lora.safetensors",
)  # fmt: skip
_MOST_SKIPPED = 100  # in a row: then something is wrong with the run, not with a batch

Progress = Callable[[str, int, int, str], None]


class State(NamedTuple):
    """All that a step changes and a checkpoint holds."""

    step: Array  # [] int32 steps done
    trained: Any  # float32: parameters by component, or adapters
    optimizer: Any
    average: Any  # as `trained`, or None
    skipped: Array  # [] int32 batches whose loss or gradient was not finite


class Problem(NamedTuple):
    """What a step is made for, and never changes during a run."""

    cfg: Config
    recipe: Recipe
    settings: Settings
    optimizer: optax.GradientTransformation


# ---- the step: pure -------------------------------------------------------------------------------------------------


def rate(settings: Settings) -> Callable[[Any], Any]:
    """The learning rate at each step: it rises along a line, and falls along half a cosine."""
    return optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, max(settings.steps, settings.warmup + 1),
        settings.learning_rate * settings.final,
    )  # fmt: skip


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) after gradients are clipped to a norm; only matrices decay."""
    adam = optax.adamw(
        rate(settings), settings.beta1, settings.beta2, weight_decay=settings.weight_decay,
        mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(settings.clip), adam) if settings.clip else adam


def begin(trained: Any, made: Problem) -> State:
    """The state before the first step."""
    average = jax.tree.map(jnp.copy, trained) if made.settings.average else None
    nothing = jnp.zeros((), jnp.int32)
    return State(nothing, trained, made.optimizer.init(trained), average, nothing)


def joined(made: Problem, trained: Any, frozen: Params) -> Params:
    """All parameters, as the loss takes them: what is trained cast, or added, to what is not."""
    if made.settings.lora:
        return lora.add(frozen, trained, made.settings.lora_scale)
    cast = {
        name: models.cast(name, tree, made.settings.dtype) if name in models.COMPONENTS else tree
        for name, tree in trained.items()
    }
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(cast)})


def step(state: State, frozen: Params, rows: Any, root: Array, made: Problem) -> tuple[State, dict[str, Array]]:
    """One step: -> (state, what is told of it, float32 scalars). rows: leaves [accumulate, B, ...].

    Its random key is folded from `root` and the number of the step. A batch whose loss or gradient is not finite
    changes nothing but the counters.
    """
    key = jax.random.fold_in(root, state.step)

    def objective(trained: Any, part: Any, key: Array) -> tuple[Array, dict[str, Array]]:
        return made.recipe.loss(joined(made, trained, frozen), made.cfg, part, key, **made.settings.loss)

    def accumulated(total: Any, given: tuple[Any, Array]) -> tuple[Any, Any]:
        part, number = given
        (loss, parts), slopes = jax.value_and_grad(objective, has_aux=True)(
            state.trained, part, jax.random.fold_in(key, number)
        )
        return jax.tree.map(jnp.add, total, slopes), {"loss": loss, **parts}

    count = made.settings.accumulate
    if count == 1:
        one = jax.tree.map(lambda leaf: leaf[0], rows)
        slopes: Any
        (loss, parts), slopes = jax.value_and_grad(objective, has_aux=True)(state.trained, one, key)
        told = {"loss": loss, **parts}
    else:
        zero = jax.tree.map(jnp.zeros_like, state.trained)
        slopes, each = jax.lax.scan(accumulated, zero, (rows, jnp.arange(count)))
        slopes = jax.tree.map(lambda leaf: leaf / count, slopes)
        told = jax.tree.map(lambda leaf: leaf.mean(), each)

    norms = {name: optax.tree.norm(tree) for name, tree in slopes.items()}
    good = jnp.isfinite(told["loss"]) & jnp.isfinite(optax.tree.norm(slopes))
    with jax.numpy_dtype_promotion("standard"):  # which Optax counts on
        found = made.optimizer.update(slopes, state.optimizer, state.trained)
        updates: Any = found[0]
        trained: Any = optax.apply_updates(state.trained, updates)
    average = state.average
    if average is not None:
        # Young averages forget faster, lest the start stay in them.
        age = (state.step + 1).astype(jnp.float32)
        decay = jnp.minimum(made.settings.average, age / (age + 9))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, trained)

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    told |= {f"gradient/{name}": norm for name, norm in norms.items()}
    told |= {f"update/{name}": optax.tree.norm(tree) for name, tree in updates.items()}
    skipped = state.skipped + (~good).astype(jnp.int32)
    made_state = State(
        state.step + 1, kept(trained, state.trained), kept(found[1], state.optimizer), kept(average, state.average),
        skipped,
    )  # fmt: skip
    return made_state, {**told, "good": good, "skipped": skipped}


# ---- what is trained ------------------------------------------------------------------------------------------------


def split(params: Params, patterns: tuple[str, ...]) -> tuple[Params, Params]:
    """(what the patterns name, float32; the rest): both component -> tree. Raises Error for patterns of nothing."""
    leaves: dict[Any, Any] = dict(flatten_dict(params))
    found: dict[Any, Any] = {}
    for pattern in patterns:
        chosen = [path for path in leaves if re.fullmatch(pattern, "/".join(path))]
        if not chosen:
            near = ", ".join(sorted({path[0] for path in leaves}))
            raise Error(f"train: no parameter is named {pattern}; the first parts of their names are {near}")
        found |= {path: leaves[path].astype(jnp.float32) for path in chosen}
    return unflatten_dict(found), unflatten_dict({p: leaf for p, leaf in leaves.items() if p not in found})


# ---- the run --------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """How a run ended."""

    steps: int
    skipped: int
    loss: float | None  # the last that was logged
    written: Path  # the model, or the adapters


def run(
    stage: str,
    settings: Settings,
    folder: Path,
    model: Path,
    output: Path,
    progress: Progress = lambda stage, done, total, note: None,
) -> Trained:
    """Train a stage of the converted model in `model`, from the last checkpoint in `output` on if there is one.

    folder: where the paths of the settings start. Raises Error, and Interrupted once what was done is saved.
    """
    recipe = stages.RECIPES[stage]
    _check_loss(recipe, settings)
    corpus = Corpus(folder / settings.data)
    devices = np.array(jax.devices())
    if settings.batch % (len(devices) * settings.accumulate):
        raise Error(
            f"batch is {settings.batch}, which is no multiple of {len(devices)} devices × {settings.accumulate}"
        )
    if settings.speak and jax.process_count() > 1:
        raise Error("speak is for one process; leave it out with --distributed, and speak with what comes of the run")
    mesh = Mesh(devices, ("data",))
    everywhere, by_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))
    cfg, _ = checkpoint.read_description(model)
    check_model(cfg)
    described = _describe(stage, settings, corpus, model)
    _check_folder(output, described)

    key, heads_key, adapters_key = jax.random.split(jax.random.key(settings.seed), 3)
    progress("loading", 0, 1, "")
    heads = recipe.heads(cfg, corpus, model, heads_key, **settings.loss)
    patterns = settings.train or (*recipe.trained, *(f"{name}(/.*)?" for name in heads))
    base = _load(model, cfg, recipe, settings, patterns, everywhere) | jax.device_put(heads, everywhere)
    if settings.lora:
        frozen = base
        targets = settings.lora_targets or lora.TARGETS.get(stage, ())
        if not targets:
            raise Error(f"lora_targets is missing: the {stage} stage has none of its own; name the weights to adapt")
        trained = lora.init(base, targets, settings.lora, adapters_key)
    else:
        trained, frozen = split(base, patterns)
    del base
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        _make_folder(output, described)
    _together("folder")
    made = Problem(cfg, recipe, settings, optimizer(settings))
    state: State = jax.jit(lambda tree: begin(tree, made), out_shardings=everywhere)(trained)
    del trained

    manager = _manager(output, settings)
    try:
        if (last := manager.latest_step()) is not None:
            state = _restore(manager, last, state)
            log.info("going on from step %d", last)
        first = int(state.step)
        _cut_log(output, first)
        speaker = _Speaker(settings, folder, model, output) if settings.speak else None
        advance = jax.jit(lambda state, frozen, rows, root: step(state, frozen, rows, root, made), donate_argnums=0)
        stream = batches.stream(
            corpus, recipe.collate, settings.batch, settings.seed, first, settings.steps, process, processes
        )
        journal = _Journal(output, settings)
        for number, batch in zip(range(first, settings.steps), stream, strict=True):
            progress("training", number, settings.steps, journal.note)
            rows = jax.tree.map(lambda leaf: _placed(leaf, settings.accumulate, by_rows), batch.rows)
            state, told = advance(state, frozen, rows, key)
            journal.add(number + 1, told, batch)
            if (number + 1) % settings.save_every == 0 or number + 1 == settings.steps or interrupts.pending():
                journal.write()
                _save(manager, number + 1, state, output)
            if interrupts.pending() and number + 1 < settings.steps:
                error = interrupts.Interrupted(interrupts.pending() or 2)
                error.add_note(f"the same command goes on from step {number + 1} of {settings.steps}")
                raise error
            if speaker is not None and (number + 1) % settings.speak.every == 0:  # type: ignore[union-attr]
                progress("speaking", number + 1, settings.steps, journal.note)
                speaker.speak(number + 1, joined(made, _kept(state), frozen))
        journal.write()
    finally:
        manager.close()
    progress("writing", settings.steps, settings.steps, journal.note)
    written = _write(output, model, cfg, made, state, frozen)
    _together("written")
    return Trained(int(state.step), int(state.skipped), journal.loss, written)


def _together(what: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def _kept(state: State) -> Any:
    """What is given away: the average where there is one."""
    return state.trained if state.average is None else state.average


def _placed(leaf: Any, accumulate: int, sharding: NamedSharding) -> Array:
    """A process's own rows as its part of the whole batch, [accumulate, B, ...]."""
    return jax.make_array_from_process_local_data(sharding, leaf.reshape(accumulate, -1, *leaf.shape[1:]))


def _load(
    model: Path, cfg: Config, recipe: Recipe, settings: Settings, patterns: tuple[str, ...], sharding: NamedSharding
) -> Params:
    """The components of a recipe: in float32 where a part of them is trained, else in the dtype of computation."""
    found = {}
    for name in recipe.components:
        interrupts.check()
        own = getattr(cfg, name)
        paths = ["/".join((name, *path)) for path in flatten_dict(checkpoint.shapes(model, name, own))]
        wide = not settings.lora and any(re.fullmatch(pattern, path) for pattern in patterns for path in paths)
        dtype = jnp.dtype(jnp.float32 if wide else settings.dtype)
        found[name] = checkpoint.restore(model, name, own, dtype, sharding)
    return found


def _check_loss(recipe: Recipe, settings: Settings) -> None:
    import inspect

    known = {p.name: p for p in inspect.signature(recipe.loss).parameters.values() if p.default is not p.empty}
    for name, value in settings.loss.items():
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise Error(f"loss.{name} is no option of this stage's loss, which {has}; remove it")
        annotation = known[name].annotation
        if get_origin(annotation) is Literal:
            choices = get_args(annotation)
            good, kind = value in choices, f"one of {', '.join(choices)}"
        elif isinstance(known[name].default, bool):
            good, kind = isinstance(value, bool), "true or false"
        else:
            most, kind = sys.float_info.max, "a number of at least 0"
            if get_origin(annotation) is Annotated:
                _, most = get_args(annotation)
                kind = f"a number from 0 to {most}"
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
        if not good:
            raise Error(f"loss.{name} is {short(value)}, but must be {kind}")


# ---- the folder of a run --------------------------------------------------------------------------------------------


def _describe(stage: str, settings: Settings, corpus: Corpus, model: Path) -> dict[str, Any]:
    from indextts_jax.hearing import model_digest

    return {
        "stage": stage, "settings": dataclasses.asdict(settings), "corpus": corpus.digest, "model": model_digest(model),
    }  # fmt: skip


def _check_folder(output: Path, described: dict[str, Any]) -> None:
    """See that a folder is free for a run, or holds it already. Raises Error and FileError."""
    path = output / RUN
    if not path.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise FileError(f"{output}: is not empty, and no run of training; choose another folder")
        if not output.parent.is_dir():
            raise Error(f"{output.parent}: no such folder, so {output.name} cannot be made there; create it first")
        return
    described = json.loads(json.dumps(described))
    try:
        before = json.loads(path.read_text("utf-8"))
        wrong = [n for n in ("stage", "corpus", "model") if before[n] != described[n]]
        old, new = before["settings"], described["settings"]
        wrong += [n for n in {**old, **new} if n not in FREE and old.get(n) != new.get(n)]
        steps = old["steps"], new["steps"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f"{path}: damaged ({shown(error)}); train into another folder") from None
    if wrong:
        raise Error(
            f"{output}: holds a run with another {wrong[0]}; give what it was begun with, or choose another folder"
        )
    if steps[0] != steps[1]:
        log.warning("steps is %s, and was %s: the learning rate goes on along the new curve", *steps[::-1])


def _make_folder(output: Path, described: dict[str, Any]) -> None:
    """Make the folder of a run, and say in it what is trained. Raises FileError."""
    files.make_folder(output)
    files.make_folder(output / SAMPLES)
    files.write_whole(output / RUN, json.dumps(described, indent=1).encode())


def _manager(output: Path, settings: Settings) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=settings.keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager((output / CHECKPOINTS).absolute(), options=options)


def _save(manager: ocp.CheckpointManager, number: int, state: State, output: Path) -> None:
    if manager.latest_step() == number:
        return
    try:
        manager.save(number, args=ocp.args.StandardSave(_tree(state)))
    except (OSError, ValueError) as error:  # ValueError is what a full disk is to TensorStore
        interrupts.check()
        said = checkpoint.reason(error)
        kept = manager.latest_step()
        where = "no checkpoint is there yet" if kept in (None, number) else f"that of step {kept} is whole"
        raise FileError(f"{output / CHECKPOINTS}: step {number} cannot be saved ({said}); {where}") from error


def _tree(state: State) -> dict[str, Any]:
    """The state as Orbax keeps it: None is nothing to it."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def _restore(manager: ocp.CheckpointManager, number: int, like: State) -> State:
    try:
        found = manager.restore(number, args=ocp.args.StandardRestore(_tree(like)))
    except Exception as error:  # Orbax raises many kinds
        interrupts.check()
        raise Error(
            f"{manager.directory / str(number)}: cannot be read ({shown(error)}); remove that folder to go on from the "
            "checkpoint before"
        ) from error
    parts: Any = {name: found.get(name) for name in State._fields}
    return State(**parts)


# ---- the log --------------------------------------------------------------------------------------------------------


class _Journal:
    """Collects what steps tell, and writes it: without waiting for the device at every step."""

    def __init__(self, output: Path, settings: Settings):
        self._path, self._settings = output / LOG, settings
        self._kept: list[tuple[int, dict[str, Array], batches.Batch]] = []
        self._since, self._in_a_row = time.monotonic(), 0
        self.note, self.loss = "", None

    def add(self, number: int, told: dict[str, Array], batch: batches.Batch) -> None:
        self._kept.append((number, told, batch))
        if number % self._settings.log_every == 0:
            self.write()

    def write(self) -> None:
        """Write what was collected. Raises Error when nothing but batches of no use came for long."""
        if not self._kept:
            return
        told = jax.device_get([told for _, told, _ in self._kept])
        now = time.monotonic()
        lines = []
        for (number, _, batch), one in zip(self._kept, told, strict=True):
            self._in_a_row = 0 if one["good"] else self._in_a_row + 1
            if not one["good"]:
                lines.append({"step": number, "skipped": list(batch.ids)})
                log.warning("step %d: not finite, and skipped: %s", number, ", ".join(batch.ids[:8]))
        good = [one for one in told if one["good"]]
        number = self._kept[-1][0]
        if good:
            # The mean of the steps since the last line; norms too.
            means = {name: float(np.mean([one[name] for one in good])) for name in good[0] if name != "good"}
            means["skipped"] = int(told[-1]["skipped"])
            self.loss = means["loss"]
            seconds = sum(batch.seconds for _, _, batch in self._kept)
            lines.append({
                "step": number, **{n: round(v, 6) if math.isfinite(v) else None for n, v in means.items()},
                "learning_rate": _rate_at(self._settings, number - 1),
                "audio_per_second": round(seconds / (now - self._since), 3),
                "seconds_per_step": round((now - self._since) / len(self._kept), 4), "memory_mb": _memory_mb(),
            })  # fmt: skip
            self.note = f", loss {self.loss:.4f}"
        if jax.process_index() == 0:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        self._kept, self._since = [], now
        if self._in_a_row >= _MOST_SKIPPED:
            raise Error(
                f"the last {self._in_a_row} batches were not finite; the last checkpoint is whole: lower learning_rate"
            )


def _rate_at(settings: Settings, number: int) -> float:
    with jax.numpy_dtype_promotion("standard"):
        return float(np.asarray(rate(settings)(number)))


def _memory_mb() -> int:
    """Of the device at its peak; of this process, on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] // 1_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1_000_000 if sys.platform == "darwin" else 1000)


def read_log(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that is cut short is left out."""
    path = output / LOG
    return list(_lines(path)) if path.is_file() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _cut_log(output: Path, first: int) -> None:
    """Leave out what was told of steps that are made again."""
    kept = [line for line in read_log(output) if line["step"] <= first]
    if (output / LOG).is_file() and jax.process_index() == 0:
        files.write_whole(output / LOG, "".join(json.dumps(line) + "\n" for line in kept).encode())


def plot(output: Path) -> bytes:
    """The curves of a run's log as a picture (.png). Needs matplotlib."""
    import io

    from matplotlib.figure import Figure

    lines = [line for line in read_log(output) if "loss" in line]
    names = [n for n in lines[0] if n.endswith(("loss", "accuracy")) or n.startswith("gradient/")] if lines else []
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, norms = figure.subplots(2, sharex=True)
    for name in names:
        axes = norms if name.startswith("gradient/") else losses
        axes.plot([line["step"] for line in lines], [line.get(name) for line in lines], label=name)
    losses.set(title=f"{output.name}", ylabel="loss")
    norms.set(xlabel="step", ylabel="norm of the gradient", yscale="log")
    for axes in (losses, norms):
        axes.legend()
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


# ---- what comes of it -----------------------------------------------------------------------------------------------


class _Speaker:
    """Speaks the text of the settings with the parameters as they are."""

    def __init__(self, settings: Settings, folder: Path, model: Path, output: Path):
        from indextts_jax.model import load

        assert settings.speak is not None
        self._model = load(model, settings.dtype)
        self._voice = self._model.listen(folder / settings.speak.voice)
        self._text, self._folder, self._dtype = settings.speak.text, output / SAMPLES, settings.dtype
        for name in ("w2vbert", "campplus"):  # only listening needs them
            self._model.params.pop(name)

    def speak(self, number: int, params: Params) -> None:
        known = {
            name: models.cast(name, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree), self._dtype)
            for name, tree in params.items()
            if name in self._model.params
        }
        model = dataclasses.replace(self._model, params={**self._model.params, **known})
        try:
            model.speak(self._text, self._voice).save(self._folder / f"{number:06}.wav")
        except Error as error:  # noise is what young parameters speak; it stops nothing
            log.warning("step %d: nothing could be spoken: %s", number, error)


def _write(output: Path, model: Path, cfg: Config, made: Problem, state: State, frozen: Params) -> Path:
    """The model with what was trained, or the adapters. Written anew where a run has gone on."""
    import shutil

    kept = jax.device_get(_kept(state))
    if jax.process_index() > 0:
        return output / (ADAPTERS if made.settings.lora else MODEL)
    if made.settings.lora:
        lora.save(output / ADAPTERS, Lora(kept, made.settings.lora_scale))
        return output / ADAPTERS
    leaves = {**flatten_dict(jax.device_get(frozen)), **flatten_dict(kept)}
    whole = unflatten_dict({path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()})
    changed = {name: whole[name] for name in kept if name in models.COMPONENTS}
    heads = {name: whole[name] for name in kept if name not in models.COMPONENTS}
    if (output / MODEL).exists():
        shutil.rmtree(output / MODEL)
    checkpoint.derive(model, output / MODEL, changed, lambda folder: stages.keep_heads(folder, model, heads))
    return output / MODEL
