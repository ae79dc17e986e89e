"""Settings that persist: a TOML file of the user, and environment variables over it.

    model = "/path/to/model"        # or a name of [models]; INDEXTTS_MODEL is over it
    cache = "/path/to/programs"     # INDEXTTS_CACHE is over it

    [models]
    anna = "/path/to/annas/model"

    [defaults]                      # of every command that has such an option
    device = "cpu"

    [speak]                         # of one command
    steps = 10

The file stands where the platform keeps such files, or where INDEXTTS_CONFIG says; where that is empty, there is none.
Paths in it are relative to its folder. What the tables of commands may hold is known to `cli.defaults`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from indextts_jax import embedded, files
from indextts_jax.errors import Error, NotFound, short, shown

NAME = "indextts-jax"
DEFAULTS, MODELS = "defaults", "models"  # tables
PLAIN = ("model", "cache")  # keys outside of tables
_MOST_BYTES = 1_000_000


class SettingsError(Error):
    """A file of settings that cannot be used; the message names the file, the table and the key."""


def place() -> Path | None:
    """The file of settings, which need not be there; None where INDEXTTS_CONFIG is empty."""
    named = os.environ.get("INDEXTTS_CONFIG")
    if named is None:
        return platformdirs.user_config_path(NAME, appauthor=False) / "config.toml"
    return Path(named).expanduser() if named else None


def read() -> dict[str, Any]:
    """The content of the file, empty where there is none; tables are tables, all else is as it stands there.

    Raises SettingsError and FileError.
    """
    path = place()
    if path is None:
        return {}
    try:
        content = tomllib.loads(files.read(path, _MOST_BYTES).decode())
    except NotFound:
        return {}
    except Error:
        raise
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not valid TOML in UTF-8 ({shown(error)}); correct it") from None
    for key, value in content.items():
        if isinstance(value, dict) == (key in PLAIN):
            expected = "a path in quotes" if key in PLAIN else f"a table, as [{key}]"
            raise SettingsError(f"{path}: {key} is {short(value)}, but must be {expected}")
    for key, value in [*content.get(MODELS, {}).items(), *((key, content[key]) for key in PLAIN if key in content)]:
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{path}: {key} is {short(value)}, but must be a path in quotes")
    return content


def here(text: str) -> Path:
    """A path that stands in the file."""
    path = place()
    return (path.parent if path else Path()) / Path(text).expanduser()


def model_folder(text: str, content: Mapping[str, Any] | None = None) -> Path:
    """The folder of a model by its name in [models] or `embedded.NAME`, else the path that `text` is."""
    return _named(text, read() if content is None else content) or Path(text)


def model(content: Mapping[str, Any], command: str = "") -> Path | None:
    """The model of a command that is given none: of INDEXTTS_MODEL, of the command's table, or of the file."""
    if chosen := os.environ.get("INDEXTTS_MODEL"):
        return model_folder(chosen, content)
    if chosen := content.get(command, {}).get("model", content.get("model")):
        return written(str(chosen), content)
    return None


def written(text: str, content: Mapping[str, Any]) -> Path:
    """The folder of a model that the file names: by its name, as above, or by a path from where the file is."""
    return _named(text, content) or here(text)


def _named(text: str, content: Mapping[str, Any]) -> Path | None:
    named = content.get(MODELS, {}).get(text)
    if named is not None:
        return here(named)
    return embedded.FOLDER if text == embedded.NAME else None


def cache() -> Path:
    """The folder of compiled programs: INDEXTTS_CACHE, that of the file, or where the platform keeps caches."""
    if chosen := os.environ.get("INDEXTTS_CACHE"):
        return Path(chosen)
    if chosen := read().get("cache"):
        return here(chosen)
    return platformdirs.user_cache_path(NAME, appauthor=False) / "compilation"


def change(key: tuple[str, ...], value: Any) -> None:
    """Write one value, of a table or outside of all, or remove it (None); what else is in the file stays as it is.

    Raises SettingsError, NotFound for a key to remove that is not there, and FileError.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = place()
    if path is None:
        raise SettingsError("INDEXTTS_CONFIG is empty, so there is no file of settings; unset it, or name a file")
    path = Path(os.path.realpath(path))
    try:
        document: Any = tomlkit.parse(files.read(path, _MOST_BYTES).decode()) if path.exists() else tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML in UTF-8 ({shown(error)}); correct it") from None
    *tables, name = key
    table: Any = document
    for each in tables:
        if value is not None and each not in table:
            table[each] = tomlkit.table()
        table = table.get(each, {})
    if value is not None:
        table[name] = value
    elif name in table:
        del table[name]
        if tables and not table:
            del document[tables[0]]
    else:
        raise NotFound(f"{path}: has no {'.'.join(key)}; `indextts-jax config` shows what there is")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.FileError(f"{path}: cannot be written ({files.reason(error)}); set INDEXTTS_CONFIG") from None
    files.write_whole(path, tomlkit.dumps(document).encode())


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice for a name that is not known: the nearest one, as the end of a message."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else "; `indextts-jax config --help` says what there is"
