"""YAML files that a person edits: read with bounds on everything, since a file may come from anywhere.

A file that is larger than `MAX_BYTES`, is nested deeper than `MAX_DEPTH`, repeats itself by aliases, names types, or
holds a number of more than `MAX_NUMBER` characters is refused before any of it is built.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from indextts_jax.errors import Error

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NUMBER = 64

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first, in C, is twenty times as fast, but may be missing
NUMBER = re.compile("[-+.0-9][-+.:_0-9a-zA-Z]*")


class YamlError(Error):
    """A file that is not YAML, or not within the bounds; the message is one line that begins with the file's name."""


def read(path: Path) -> Any:
    """The content of a YAML file in UTF-8: None for an empty one.

    Raises YamlError, or OSError for a file that cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, which no such file should be")
    try:
        text = content.decode("utf-8")
        _check(path, text)
        return yaml.load(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "nesting depth" in (error.problem or ""):  # of libyaml since PyYAML 6.0.4, which reads ahead of its events
            place = f"line {mark.line + 1}: " if mark else ""
            raise YamlError(f"{path}: {place}nested more than {MAX_DEPTH} deep") from error
        line = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{path}: not valid YAML in UTF-8: {_short(error.problem or error.context)}{line}") from error
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: of a date, or not UTF-8
        raise YamlError(f"{path}: not valid YAML in UTF-8: {_short(error)}") from error


def _check(path: Path, text: str) -> None:
    """Raise YamlError for what is not within the bounds: the events come one by one, and nothing is built of them."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        line = f"{path}: line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlError(f"{line}: anchors (&) and aliases (*) are not allowed; write the value out, or quote it")
        if getattr(event, "tag", None) not in (None, "!"):
            raise YamlError(f"{line}: types (!!) are not allowed; leave out {_short(event.tag)}, or quote it")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f"{line}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            length = len(event.value)
            if length > MAX_NUMBER and NUMBER.fullmatch(event.value):
                raise YamlError(f"{line}: a number of {length} characters; put it in quotes if it is a text")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else text[:97] + "..."
