"""The file of `indextts-jax train --config`: every setting with its default, checked before anything is loaded."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indextts_jax import yaml_file
from indextts_jax.errors import Error, NotFound, short


@dataclass(frozen=True)
class Speak:
    """What is spoken while training goes on."""

    text: str = "Hello world, this is a small test of the speech system."
    voice: str = ""  # a recording, or a Voice file
    every: int = 1000  # steps


@dataclass(frozen=True)
class Settings:
    """One run of training. Paths start at the folder of the file."""

    data: str  # folder that `indextts-jax prepare` made
    steps: int = 1000
    batch: int = 8  # rows of one step, of all devices and hosts together
    accumulate: int = 1  # parts that a batch is computed in, one after the other, which saves memory
    seed: int = 0
    learning_rate: float = 1e-4
    warmup: int = 100  # steps until it is reached
    final: float = 0.1  # what of it a half cosine ends with
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01  # of matrices
    clip: float = 1.0  # the norm of gradients; 0: not at all
    average: float = 0.0  # decay of a moving average of the parameters, which then is what is kept; 0: none
    dtype: str = "float32"  # of computation; what is trained is kept in float32
    train: tuple[str, ...] = ()  # patterns of the paths of parameters that change (default: the stage's own)
    lora: int = 0  # rank of adapters that are trained instead; 0: none
    lora_alpha: float = 0.0  # adapters count alpha / rank; 0: twice the rank
    lora_targets: tuple[str, ...] = ()  # patterns of the weights that they are added to
    loss: dict[str, Any] = field(default_factory=dict)  # options of the stage's loss
    log_every: int = 10  # steps
    save_every: int = 500
    keep: int = 3  # checkpoints
    speak: Speak | None = None

    @property
    def lora_scale(self) -> float:
        return (self.lora_alpha or 2 * self.lora) / self.lora


_FROM_ONE = ("steps", "batch", "accumulate", "log_every", "save_every", "keep", "every")
# What may be another when a run goes on.
FREE = ("steps", "log_every", "save_every", "keep", "speak", "data")


def read(path: Path, **more: Any) -> Settings:
    """The settings in a YAML file; `more` are those that the command line has. Raises NotFound and Error."""
    if not path.is_file():
        raise NotFound(f"--config {path}: no such file; check the path")
    try:
        found = yaml_file.read(path)
    except OSError as error:
        raise Error(f"--config {path}: cannot be read ({error.strerror}); check its permissions") from None
    if not isinstance(found, dict):
        raise Error(f"--config {path}: holds no settings; write one per line, such as steps: 1000")
    given = found | {name: value for name, value in more.items() if value is not None}
    try:
        settings = _made(Settings, given, "")
        _check(settings)
    except Error as error:
        raise Error(f"--config {path}: {error}") from None
    return settings


def _made(kind: Any, given: dict[str, Any], under: str) -> Any:
    hints = typing.get_type_hints(kind)
    for name in given:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, 1)
            raise Error(f"unknown setting {short(under + str(name))}; {f'write {near[0]}' if near else 'remove it'}")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in given and _is_needed(f)]
    if missing:
        raise Error(f"the setting {missing[0]} is missing; add it")
    return kind(**{name: _value(hints[name], value, under + name) for name, value in given.items()})


def _is_needed(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, types.UnionType):  # Speak | None
        return None if value is None else _value(typing.get_args(kind)[0], value, name)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise Error(f"{name} is {short(value)}, but must hold settings of its own")
        return _made(kind, value, f"{name}.")
    if typing.get_origin(kind) is tuple:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
            raise Error(f"{name} is {short(value)}, but must be a list of texts")
        return tuple(listed)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value):
            raise Error(f"{name} is {short(value)}, but must hold settings of its own")
        return value
    if kind is float and isinstance(value, str):  # YAML takes 1e-4 for a text: it wants 1.0e-4
        try:
            value = float(value)
        except ValueError:
            raise Error(f"{name} is {short(value)}, but must be a number") from None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise Error(f"{name} is {short(value)}, but must be {names[kind]}")
    return value


def _check(settings: Settings) -> None:
    for name in _FROM_ONE:
        value = getattr(settings, name, None) if name != "every" else settings.speak and settings.speak.every
        if value is not None and value < 1:
            raise Error(f"{name} is {value}, but must be at least 1")
    bounds = {
        "seed": (0, 2**63), "learning_rate": (0, 10), "warmup": (0, 2**40), "final": (0, 1), "beta1": (0, 0.99999),
        "beta2": (0, 0.99999), "weight_decay": (0, 10), "clip": (0, 1e9), "average": (0, 0.999999), "lora": (0, 4096),
        "lora_alpha": (0, 1e6),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        if not low <= (value := getattr(settings, name)) <= high:
            raise Error(f"{name} is {value}, but must lie between {low:g} and {high:g}")
    if settings.dtype not in ("float32", "bfloat16"):
        raise Error(f"dtype is {short(settings.dtype)}, but must be float32 or bfloat16")
    if settings.batch % settings.accumulate:
        raise Error(f"batch is {settings.batch}, which is no multiple of accumulate, {settings.accumulate}")
    if settings.lora and settings.train:
        raise Error("train and lora exclude each other; leave one out")
    if settings.speak is not None and not settings.speak.voice:
        raise Error("the setting speak.voice is missing; name a recording")
