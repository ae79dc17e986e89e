"""indextts-jax config: the settings that persist."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from indextts_jax import settings
from indextts_jax.cli import defaults
from indextts_jax.cli.options import add_common, command
from indextts_jax.errors import Error, NotFound
from indextts_jax.settings import DEFAULTS, MODELS, PLAIN


def add(commands: Any) -> None:
    about = (
        "Show and change the settings that persist: the model, the folder of compiled programs, and defaults of "
        "options. A KEY is model, cache, models.NAME, COMMAND.OPTION as in speak.steps, or defaults.OPTION for every "
        "command that has such an option. INDEXTTS_MODEL and INDEXTTS_CACHE are over the file, what is typed is over "
        "all; INDEXTTS_CONFIG names another file, or, empty, none."
    )
    examples = (
        "indextts-jax config",
        "indextts-jax config set model ./model",
        "indextts-jax config set models.anna ./anna",
        "indextts-jax config set speak.steps 10",
        "indextts-jax config unset speak.steps",
    )
    usage = "[show | path | set KEY VALUE | unset KEY] [options]"
    sub = command(commands, "config", run, about, usage, *examples)
    sub.bare, sub.heeds_settings = True, False
    group = sub.add_argument_group("everyday")
    group.add_argument(
        "action",
        nargs="?",
        default="show",
        choices=("show", "path", "set", "unset"),
        metavar="ACTION",
        help="show (default), path, set or unset",
    )
    group.add_argument("key", nargs="?", metavar="KEY", help="what to set or unset")
    group.add_argument("value", nargs="?", metavar="VALUE", help="its value; true or false for a switch")
    group.add_argument("--json", action="store_true", help="print the settings as JSON")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    action, key, value = options.action, options.key, options.value
    wanted = {"set": 2, "unset": 1}.get(action, 0)
    if (given := sum(part is not None for part in (key, value))) != wanted:
        asked = {"set": "KEY VALUE", "unset": "KEY"}.get(action, "nothing more")
        options.parser.error(f"`config {action}` takes {asked}, but {given or 'nothing'} came")
    match action:
        case "show":
            _show(options)
        case "path":
            print(settings.place() or "")
        case "set":
            path, value = _value(options, key, value)
            settings.change(path, value)
            if not options.quiet:
                print(f"{'.'.join(path)} = {json.dumps(value, ensure_ascii=False)}")
        case "unset":
            settings.change(_path(key), None)


def _path(key: str) -> tuple[str, ...]:
    """The table and the name of a key. Raises NotFound: one that is removed may be any that is there."""
    table, _, name = key.partition(".")
    content = settings.read() if settings.place() else {}
    for written in content.get(table, {}) if name and isinstance(content.get(table), dict) else ():
        if defaults.key_of(written) == defaults.key_of(name):
            return table, written
    return (table, name) if name else (table,)


def _value(options: argparse.Namespace, key: str, text: str) -> tuple[tuple[str, ...], Any]:
    """Where to write a value, and what: checked as the option would check it. Raises Error."""
    table, _, name = key.partition(".")
    parsers = {name: parser for name, parser in options.root.commands.items() if parser.heeds_settings}
    if key in PLAIN or (table == MODELS and name):
        if key == "model" and text in settings.read().get(MODELS, {}):
            return (key,), text
        folder = Path(text).expanduser().absolute()
        if key != "cache" and not (folder / "model.json").is_file():
            raise NotFound(f"{folder}: is no converted model; `indextts-jax convert` makes one")
        return (key,) if key in PLAIN else (MODELS, name), str(folder)
    if not name or (table not in parsers and table != DEFAULTS):
        known = [*PLAIN, MODELS, DEFAULTS, *parsers]
        advice = "" if table in known else settings.nearest(table, known)
        raise Error(f"{key}: is no setting; write model, cache, models.NAME, COMMAND.OPTION or defaults.OPTION{advice}")
    some = parsers.values() if table == DEFAULTS else [parsers[table]]
    actions = {option: action for parser in some for option, action in defaults.options_of(parser).items()}
    action = actions.get(defaults.key_of(name))
    if action is None:
        whose = "no command has such an" if table == DEFAULTS else f"{table} has no such"
        raise Error(f"{key}: {whose} option{settings.nearest(defaults.key_of(name), actions)}")
    path = _path(f"{table}.{defaults.key_of(name)}")
    if action.nargs == 0:
        if text not in ("true", "false"):
            raise Error(f"{key}: {text!r} is neither true nor false")
        return path, text == "true"
    value = defaults.convert(key, action, text)
    if isinstance(value, Path):
        value = text if text in settings.read().get(MODELS, {}) else str(Path(text).expanduser().absolute())
    return path, value if isinstance(value, int | float | str) else text


def _show(options: argparse.Namespace) -> None:
    content, place = settings.read(), settings.place()
    if options.json:
        chosen = settings.model(content)
        shown = {"path": place and str(place), "settings": content, "model": chosen and str(chosen)}
        print(json.dumps(shown | {"cache": str(settings.cache())}, ensure_ascii=False))
    else:
        print(f"file         {place or 'none, INDEXTTS_CONFIG is empty'}{_absent(place)}")
        for name, found in (("model", settings.model(content)), ("cache", settings.cache())):
            variable = f"INDEXTTS_{name.upper()}"
            origin = variable if os.environ.get(variable) else "the file" if name in content else "by default"
            print(f"{name:12} {found or 'none'}  ({origin})")
        for table, values in content.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                print(f"{f'{table}.{key}':28} {json.dumps(value, ensure_ascii=False, default=str)}")
    parsers = options.root.commands
    defaults.check_tables(parsers, content)
    for name, parser in parsers.items():
        defaults.read_table(parser, name, content)


def _absent(place: Path | None) -> str:
    return "" if place is None or place.is_file() else "  (not there yet)"
