"""Documents and command line say the same: the README's way to the first sound, options in docs/from_indextts.md."""

import os
import re
from pathlib import Path

import jax
import pytest
import soundfile

from debug import first_sound
from indextts_jax import cli

DOCS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.whole
def test_from_nothing_to_sound(tmp_path, monkeypatch):
    """In a folder with nothing but a recording, from a hub."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("PYTHONPATH", str(DOCS))
    done = [command[1] for command, _ in first_sound.run(tmp_path, ("--max-codes", "8", "--steps", "1", "--quiet"))]
    assert done == ["download", "config", "speak"]
    assert soundfile.info(tmp_path / "hello.wav").samplerate == 22050
    assert os.listdir(tmp_path / "checkpoints" / "hf_cache")


def test_the_first_commands_parse(monkeypatch):
    monkeypatch.setenv("INDEXTTS_MODEL", "model")
    for command in first_sound.commands():
        assert cli._parser().parse_args(command[1:]).parser.name == command[1]


def test_every_option_of_the_table_is_one():
    """In the last column of docs/from_indextts.md: an option of speak, batch or the command that the cell names."""
    parsers = cli._parser().commands
    rows = [line for line in (DOCS / "docs/from_indextts.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    checked = 0
    for row in rows:
        cell = row.rstrip(" |").rpartition(" | ")[2]
        named = re.findall(r"indextts-jax (\w+)", cell)
        assert set(named) <= set(parsers), row
        known = {option for name in ("speak", "batch", *named) for option in parsers[name]._option_string_actions}
        for option in re.findall(r"--[a-z][a-z-]*", cell):
            assert option in known, row
            checked += 1
    assert checked > 40


def test_every_command_is_in_the_readme():
    text = (DOCS / "README.md").read_text("utf-8")
    for name in cli._parser().commands:
        assert f"`{name}`" in text, name
