"""Strict dtype and rank promotion, and the tiny checkpoint, converted once per run."""

import contextlib
import ctypes
import gc
import logging
import math
import os
import shutil
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tests import quick

# XLA_FLAGS is read when JAX is first imported. Set, but empty, it tests what users run.
os.environ.setdefault("XLA_FLAGS", quick.flags())

import jax
import pytest

import indextts_jax.model
from debug.golden import FIXTURES
from indextts_jax import audio, checkpoint, convert, warmup
from indextts_jax.config import Config
from indextts_jax.model import Model, load
from indextts_jax.voice import Voice, listen
from tests import small

KEPT = 3 << 30  # bytes of memory in which a worker keeps programs from file to file
# Programs are shared between tests, workers and runs.
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def no_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the settings of whoever runs the tests, nor a model that they have chosen."""
    os.environ["INDEXTTS_CONFIG"] = str(tmp_path_factory.mktemp("settings") / "config.toml")
    os.environ.pop("INDEXTTS_MODEL", None)


class Tiny:
    """The tiny checkpoint: `cfg`, and the float32 parameters of each component, converted in memory."""

    folder = FIXTURES / "tiny"

    @cached_property
    def cfg(self) -> Config:
        return convert.read_config(self.folder)

    @cache  # noqa: B019 (one object per run)
    def params(self, component: str) -> Any:
        tree, _ = convert.read(component, self.folder, strict=True)
        return jax.device_put(tree)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a converted folder."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    convert.convert(Tiny.folder, out, strict=True)
    return out


@pytest.fixture(scope="session")
def converted(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a small random vocoder, which compiles in a tenth of the time: for all that is not held against
    the reference's samples."""
    out = tmp_path_factory.mktemp("quick") / "tiny"
    shutil.copytree(official, out)
    shutil.rmtree(out / "bigvgan")
    cfg, source = checkpoint.read_description(official)
    params, cfg = small.with_small_vocoder({}, cfg)
    checkpoint.save(out, "bigvgan", cfg.bigvgan, params["bigvgan"])
    checkpoint.save_description(out, cfg, source)
    return out


@pytest.fixture
def at_hand(converted: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands get `model` where they load `converted`, and compile nothing ahead of it.

    Other folders are loaded as ever: so is `official`, in tests of what a command as a whole does.
    """

    def load_it(folder: Any, dtype: Any = None, *arguments: Any, **more: Any) -> Model:
        if Path(folder) == converted and dtype in (None, "float32"):
            more["progress"]("reading weights", 0, 1)
            return model
        return load(folder, dtype, *arguments, **more)

    def compile_ahead(folder: Any, *arguments: Any) -> Any:
        return contextlib.nullcontext() if Path(folder) == converted else ahead(folder, *arguments)

    ahead = warmup.ahead
    monkeypatch.setattr(indextts_jax.model, "load", load_it)
    monkeypatch.setattr(warmup, "ahead", compile_ahead)


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """What a command logs, --quiet or --verbose, is no matter of the tests that follow."""
    yield
    logging.getLogger("indextts_jax").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def caches() -> Iterator[None]:
    """The programs of a file serve those that follow, until they take too much memory; then they are read again."""
    yield
    if _resident() > KEPT:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError):  # where glibc would keep it
            ctypes.CDLL(None).malloc_trim(0)


def _resident() -> float:
    """Bytes of memory that this process has now, or infinity where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.inf


@pytest.fixture(scope="session")
def official_model(official: Path) -> Model:
    """The tiny checkpoint, loaded: once for all tests that do not count what loading does."""
    return load(official)


@pytest.fixture(scope="session")
def model(converted: Path) -> Model:
    """The one with the small vocoder, loaded once."""
    return load(converted)


@pytest.fixture(scope="session")
def voice(model: Model) -> Voice:
    """The speaker of most golden files."""
    return listen(model.params, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))
