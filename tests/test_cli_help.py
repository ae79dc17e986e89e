"""What the command line says of itself: every help fits 80 columns and shows examples that are right; completion."""

import contextlib
import io
import shlex
import shutil
import subprocess

import pytest

from indextts_jax import cli

COMMANDS = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]


def help_of(monkeypatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--help"])
    assert end.value.code == 0
    return out.getvalue()


def examples(text: str) -> list[str]:
    _, _, shown = text.rpartition("\nexample")
    return [line.strip() for line in shown.splitlines()[1:]]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_and_its_examples_parse(monkeypatch, name):
    text = help_of(monkeypatch, *([name] if name else []))
    assert [line for line in text.splitlines() if len(line) > 80] == []
    shown = examples(text)
    assert shown
    monkeypatch.setenv("INDEXTTS_MODEL", "model")
    for line in shown:
        assert line.startswith(f"indextts-jax {name}")
        _, *arguments = shlex.split(line.partition(" >")[0])
        assert cli._parser().parse_args(arguments).parser.name == arguments[0]


def test_all_commands_are_listed_in_short(monkeypatch):
    text = help_of(monkeypatch)
    for name in COMMANDS:
        assert f"\n    {name}" in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys, shell):
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("speak", "max-codes", "download", "accept-licence"))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes_commands_options_choices_and_files(capsys, tmp_path):
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "voice.wav").touch()

    def completed(*words: str) -> set[str]:
        code = (
            f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p indextts-jax | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2> /dev/null; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return {line.strip() for line in done.stdout.splitlines()}

    assert completed("indextts-jax", "sp") == {"speak"}
    assert completed("indextts-jax", "speak", "--steps") == {"--steps"}
    assert completed("indextts-jax", "speak", "--device", "") == {"cpu", "gpu", "tpu"}
    assert completed("indextts-jax", "speak", "--voice", "vo") == {"voice.wav"}


def test_completion_without_its_library(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["completion", "bash"]) == 1
    assert "completion needs shtab: pip install 'indextts-jax[completion]'" in capsys.readouterr().err
