"""The settings of the user as defaults of a command's options: over the options' own, under what is typed.

A value is read by the option's own type, so `steps = 10` in [speak] is what `--steps 10` is. It does not count as
given: an option that excludes it, or makes no sense with it, takes its place without an error. What is turned on so,
`greedy = true`, has an opposite, `--no-greedy`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indextts_jax import settings
from indextts_jax.errors import short
from indextts_jax.settings import DEFAULTS, SettingsError


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options that settings may hold, by their keys: the long names, with underscores."""
    return {
        action.dest: action
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction | argparse._VersionAction)
    }


def key_of(name: str) -> str:
    """max-codes and max_codes are the same key."""
    return name.replace("-", "_")


def convert(where: str, action: argparse.Action, value: Any) -> Any:
    """A value of the file as the option has it. Raises SettingsError; where: what the message begins with."""
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise SettingsError(f"{where}: {short(value)} is neither true nor false")
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SettingsError(f"{where}: {short(value)} is no value of {action.option_strings[-1]}")
    text = str(value)
    if action.dest == "model":
        return settings.written(text, settings.read())
    if action.type is Path:
        return settings.here(text)
    try:
        found = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None
    if action.choices is not None and found not in action.choices:
        raise SettingsError(f"{where}: {short(value)} is none of {', '.join(map(str, action.choices))}")
    return found


def read_table(parser: argparse.ArgumentParser, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one command: those of [defaults] that it has an option for, and its own. Raises SettingsError."""
    known, found = options_of(parser), {}
    for table in (DEFAULTS, name):
        for typed, value in content.get(table, {}).items():
            where = f"{settings.place()}: [{table}] {typed}"
            if (key := key_of(typed)) in known:
                found[key] = convert(where, known[key], value)
            elif table == name:
                raise SettingsError(f"{where}: {name} has no such option{settings.nearest(key, known)}")
    for group in parser._mutually_exclusive_groups:
        both = [a.dest for a in group._group_actions if a.dest in found and found[a.dest] != a.default]
        if len(both) > 1:
            raise SettingsError(f"{settings.place()}: [{name}] {both[0]} and {both[1]} exclude each other; unset one")
    return found


def check_tables(parsers: Mapping[str, argparse.ArgumentParser], content: Mapping[str, Any]) -> None:
    """Every table is that of a command, and every key of [defaults] an option of some. Raises SettingsError."""
    known = [*settings.PLAIN, settings.MODELS, DEFAULTS, *parsers]
    if unknown := next((key for key in content if key not in known), None):
        raise SettingsError(f"{settings.place()}: {unknown} is no setting{settings.nearest(unknown, known)}")
    keys = {key for parser in parsers.values() for key in options_of(parser)}
    if unknown := next((key for key in content.get(DEFAULTS, {}) if key_of(key) not in keys), None):
        advice = settings.nearest(key_of(unknown), keys)
        raise SettingsError(f"{settings.place()}: [{DEFAULTS}] {unknown}: no command has such an option{advice}")


def apply(parser: argparse.ArgumentParser, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Change a parser's defaults, and give what is turned on its opposite: -> the defaults that were.

    Those of the options that settings have. Raises SettingsError.
    """
    known, before = options_of(parser), {}
    for dest, value in read_table(parser, name, content).items():
        action = known[dest]
        before[dest], action.default = action.default, value
        action.required = False
        for group in parser._mutually_exclusive_groups:
            group.required = group.required and action not in group._group_actions
        if action.nargs == 0 and value != before[dest]:
            _add_opposite(action, before[dest])
    return before


def _add_opposite(action: argparse.Action, value: bool) -> None:
    """An option that turns off what settings turn on."""
    name = action.option_strings[-1].removeprefix("--")
    action.container.add_argument(  # pyright: ignore[reportAttributeAccessIssue]
        f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}",
        dest=action.dest, action="store_const", const=value, default=argparse.SUPPRESS,
        help=f"without --{name}, which the settings have",
    )  # fmt: skip


def settle(parser: argparse.ArgumentParser, options: argparse.Namespace, before: dict[str, Any]) -> None:
    """After parsing: what settings say gives way to an option that excludes it. The rest is named in `options`."""
    actions = {action.dest: action for action in reversed(parser._actions)}  # the opposites are the last of their name
    options.from_settings = {
        name: default for name, default in before.items() if getattr(options, name) is actions[name].default
    }
    for group in parser._mutually_exclusive_groups:
        names = [action.dest for action in group._group_actions]
        if any(getattr(options, name) is not actions[name].default for name in names):
            forget(options, *names)


def forget(options: argparse.Namespace, *names: str) -> None:
    """Have these options as if they stood in no settings, unless they were typed."""
    kept = getattr(options, "from_settings", {})
    for name in names:
        if name in kept:
            setattr(options, name, kept.pop(name))
