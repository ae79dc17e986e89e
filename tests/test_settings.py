"""Settings that persist: what is in the file, what is over it, and what a mistake in it says."""

import argparse
import json
import os
import subprocess
import sys

import jax
import pytest

from indextts_jax import cli, settings, warmup
from indextts_jax.cli import defaults
from indextts_jax.errors import Error


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("INDEXTTS_CONFIG", str(path))
    monkeypatch.delenv("INDEXTTS_CACHE", raising=False)
    path.parent.mkdir()
    return path


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    return tmp_path / "model"


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def parsed(*arguments) -> argparse.Namespace:
    return cli._parser().parse_args([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("indextts-jax: error: ")


SPEAK = ("speak", "--voice", "a.wav", "--text", "Hello.")


def test_what_is_set_is_the_default_of_its_command(file, model, capsys):
    for key, value in (("model", model), ("speak.steps", "10"), ("speak.max-codes", 40), ("speak.greedy", "true")):
        assert run("config", "set", key, value) == 0
    assert run("config", "set", "defaults.device", "cpu", "-q") == 0
    capsys.readouterr()
    options = parsed(*SPEAK)
    assert (options.model, options.steps, options.max_codes, options.greedy) == (model, 10, 40, True)
    assert (options.device, options.beams) == ("cpu", 3)
    assert parsed(*SPEAK, "--steps", 25).steps == 25
    assert parsed("warmup").steps == 25
    assert parsed("warmup").device == "cpu"
    assert file.read_text() == (
        f'model = "{model}"\n\n[speak]\nsteps = 10\nmax_codes = 40\ngreedy = true\n\n[defaults]\ndevice = "cpu"\n'
    )
    assert run("config", "unset", "speak.max-codes") == 0
    assert parsed(*SPEAK).max_codes == 1500
    assert "has no speak.max-codes" in refused(capsys, "config", "unset", "speak.max-codes")
    assert run("config", "unset", "speak.steps") == run("config", "unset", "speak.greedy") == 0
    assert "[speak]" not in file.read_text()


def test_a_file_is_written_with_what_else_is_in_it(file):
    file.write_text("# mine\n[speak]  # as well\nbeams = 2  # two\n")
    assert run("config", "set", "speak.steps", 5, "-q") == 0
    assert file.read_text() == "# mine\n[speak]  # as well\nbeams = 2  # two\nsteps = 5\n"
    assert run("config", "set", "cache", "/programs", "-q") == 0
    assert settings.read() == {"speak": {"beams": 2, "steps": 5}, "cache": "/programs"}


def test_models_have_names_and_the_environment_is_over_the_file(file, model, tmp_path, monkeypatch):
    file.write_text(f'model = "anna"\n[models]\nanna = "{model}"\nben = "../ben"\n[voice]\nmodel = "ben"\n')
    assert parsed(*SPEAK).model == model
    assert parsed("info").model == model
    ben = file.parent / "../ben"
    assert parsed("voice", "a.wav").model == parsed(*SPEAK, "--model", "ben").model == ben
    assert parsed("info", "ben").model == ben
    assert str(parsed(*SPEAK, "--model", "./ben").model) == "ben"
    monkeypatch.setenv("INDEXTTS_MODEL", "other")
    assert str(parsed("voice", "a.wav").model) == "other"
    monkeypatch.setenv("INDEXTTS_MODEL", "ben")
    assert parsed(*SPEAK).model == ben
    assert parsed("bench", "-q").model is None  # which times random weights


def test_the_cache(file, tmp_path, monkeypatch):
    assert settings.cache().name == "compilation"
    assert run("config", "set", "cache", tmp_path / "here", "-q") == 0
    assert settings.cache() == tmp_path / "here"
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    warmup.keep_programs()
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "here")
    monkeypatch.setenv("INDEXTTS_CACHE", "there")
    assert str(settings.cache()) == "there"


def test_no_model_is_three_lines(file, capsys):
    with pytest.raises(SystemExit) as end:
        run("prepare", "manifest.jsonl", "corpus")
    assert end.value.code == 2
    advice = "add --model DIR, set INDEXTTS_MODEL, or run `indextts-jax config set model DIR`"
    assert advice in capsys.readouterr().err


def test_an_option_that_excludes_a_setting_takes_its_place(file, model):
    file.write_text(f'model = "{model}"\n[speak]\nduration = 5\nvoice = "anna.wav"\n[defaults]\nquiet = true\n')
    assert (parsed(*SPEAK).duration, parsed(*SPEAK).speed) == (5.0, 1.0)
    options = parsed(*SPEAK, "--speed", 1.5)
    assert (options.duration, options.speed) == (None, 1.5)
    assert parsed(*SPEAK).quiet
    options = parsed(*SPEAK, "--verbose")
    assert (options.quiet, options.verbose) == (False, True)
    options = parsed(*SPEAK, "--random-init", "config.yaml")
    assert (options.model, str(options.random_init)) == (None, "config.yaml")
    assert parsed("speak", "--text", "a").voice == file.parent / "anna.wav"
    with pytest.raises(SystemExit):
        parsed(*SPEAK, "--speed", 1.5, "--duration", 2)


def test_what_settings_turn_on_is_turned_off_by_its_opposite(file, model, capsys):
    file.write_text(
        f'model = "{model}"\n[speak]\ngreedy = true\nno_sample = true\nforce = false\n[webui]\nbrowser = false\n'
    )
    options = parsed(*SPEAK)
    assert (options.greedy, options.no_sample, options.force) == (True, True, False)
    options = parsed(*SPEAK, "--no-greedy", "--sample", "--force")
    assert (options.greedy, options.no_sample, options.force) == (False, False, True)
    assert parsed(*SPEAK, "--no-greedy").no_sample
    assert not parsed("webui").browser
    assert parsed("webui", "--browser").browser
    with pytest.raises(SystemExit):  # what is not turned on has no opposite
        parsed(*SPEAK, "--no-force")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parsed("speak", "--help")
    assert "without --greedy, which the settings have" in " ".join(capsys.readouterr().out.split())


def test_every_switch_has_an_opposite(file):
    """None of which is the name of another option."""
    switches = [
        (name, dest, action.default)
        for name, parser in cli._parser().commands.items()
        for dest, action in defaults.options_of(parser).items()
        if action.nargs == 0
    ]
    assert len(switches) > 60
    for name, dest, default in switches:
        parser = cli._parser().commands[name]
        before = defaults.apply(parser, name, {name: {dest: not default}})
        assert before == {dest: default}
        opposite = parser._actions[-1]
        assert (opposite.dest, opposite.const) == (dest, default)


def test_a_loud_command_of_quiet_settings(file, model):
    file.write_text(f'model = "{model}"\n[defaults]\nquiet = true\n')
    options = parsed(*SPEAK, "--no-quiet")
    assert (options.quiet, options.verbose) == (False, False)


def test_settings_that_make_no_sense_with_what_is_typed_are_left_out(file, model):
    """Where the same, typed, is an error."""
    from indextts_jax.cli import shared, speak, stream

    file.write_text(
        f'model = "{model}"\n[speak]\nfirst_codes = 20\nretries = 2\nformat = "flac"\nemotion_alpha = 0.5\n'
        "emotion_random = true\nnormalize = -16\n"
    )
    said = (*SPEAK, "-o", "a.wav")
    assert stream.check_stream(parsed(*said)) is None
    options = parsed(*said, "--stream")
    streaming = stream.check_stream(options)
    assert streaming is not None
    assert streaming.first_codes == 20
    assert (options.normalize, options.retries, options.format) == (None, 0, None)
    assert shared.read_settings(parsed(*said), 8).retries == 2
    assert shared.read_settings(parsed(*said, "--greedy"), 8).retries == 0
    assert speak._kind(parsed(*said)) == "wav"
    assert speak._kind(parsed(*SPEAK, "-o", "a")) == "flac"
    assert speak._read_emotion(parsed(*said), "") is None
    felt = speak._read_emotion(parsed(*said, "--emotion", "calm=1"), "")
    assert felt.alpha == 0.5
    for typed in (["--first-codes", "9"], ["--stream", "--retries", "1"]):
        with pytest.raises(Error):
            stream.check_stream(parsed(*said, *typed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[speak]\nstepz = 1", "[speak] stepz: speak has no such option; did you mean steps?"),
        ("[speak]\nsteps = 0", "[speak] steps: 0 is not between 1 and 10000"),
        ("[speak]\nsteps = 'x'", "[speak] steps: 'x' is not a whole number"),
        ("[speak]\nsteps = true", "[speak] steps: True is no value of --steps"),
        ("[speak]\ngreedy = 1", "[speak] greedy: 1 is neither true nor false"),
        ("[speak]\ndtype = 'half'", "[speak] dtype: 'half' is none of float32, bfloat16, int8"),
        ("[speak]\nspeed = 2\nduration = 3", "[speak] speed and duration exclude each other; unset one"),
        ("[defaults]\ndevise = 'cpu'", "[defaults] devise: no command has such an option; did you mean device?"),
        ("[defaults]\ndevice = 'cup'", "[defaults] device: 'cup' is none of cpu, gpu, tpu"),
        ("[speek]\nsteps = 1", "speek is no setting; did you mean speak?"),
        ("modell = 'a'", "modell is 'a', but must be a table, as [modell]"),
        ("model = 3", "model is 3, but must be a path in quotes"),
        ("[models]\nanna = 3", "anna is 3, but must be a path in quotes"),
        ("[speak", "not valid TOML in UTF-8 (Expected ']'"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(file, model, capsys, content, message):
    """`config` says so too, and help is shown all the same."""
    file.write_text(content)
    for arguments in ((*SPEAK, "-o", "none/a.wav", "--model", model), ("config",)):
        line = refused(capsys, *arguments)
        assert line.startswith(f"{file}: ")
        assert message in line
    with pytest.raises(SystemExit) as end:
        run("speak", "--help")
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speak.stepz", "1"), "speak.stepz: speak has no such option; did you mean steps?"),
        (("speak.steps", "0"), "speak.steps: 0 is not between 1 and 10000"),
        (("speak.greedy", "yes"), "speak.greedy: 'yes' is neither true nor false"),
        (("speek.steps", "1"), "speek.steps: is no setting"),
        (("speak", "1"), "speak: is no setting"),
        (("defaults.devise", "cpu"), "defaults.devise: no command has such an option; did you mean device?"),
        (("model", "none"), "none: is no converted model"),
    ],
)
def test_a_wrong_setting_is_not_written(file, capsys, arguments, message):
    assert message in refused(capsys, "config", "set", *arguments)
    assert not file.exists()


def test_what_is_shown(file, model, capsys, monkeypatch):
    file.write_text(f'cache = "programs"\n[speak]\nsteps = 10\n[models]\nanna = "{model}"\n')
    monkeypatch.setenv("INDEXTTS_MODEL", "anna")
    assert run("config") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"file         {file}",
        f"model        {model}  (INDEXTTS_MODEL)",
        f"cache        {file.parent / 'programs'}  (the file)",
        "speak.steps                  10",
        f'models.anna                  "{model}"',
    ]
    assert run("config", "show", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["settings"]["speak"]) == (str(model), {"steps": 10})
    assert run("config", "path") == 0
    assert capsys.readouterr().out == f"{file}\n"
    for wrong in (("set", "model"), ("path", "x"), ("what",)):
        with pytest.raises(SystemExit) as end:
            run("config", *wrong)
        assert end.value.code == 2


def test_without_a_file(monkeypatch, capsys):
    monkeypatch.setenv("INDEXTTS_CONFIG", "")
    assert settings.read() == {}
    assert run("config") == 0
    assert "none, INDEXTTS_CONFIG is empty" in capsys.readouterr().out
    assert "INDEXTTS_CONFIG is empty" in refused(capsys, "config", "set", "speak.steps", "1")


def test_where_it_stands_by_default(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "INDEXTTS_CONFIG"}
    code = "from indextts_jax import settings; print(settings.place(), settings.cache())"
    told = {"XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_CACHE_HOME": str(tmp_path / "k"), "INDEXTTS_CACHE": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment | told, capture_output=True, text=True)
    if sys.platform == "linux":
        assert done.stdout.split() == [
            f"{tmp_path}/c/indextts-jax/config.toml",
            f"{tmp_path}/k/indextts-jax/compilation",
        ]


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INDEXTTS_CONFIG", str(tmp_path / "file" / "config.toml"))
    assert "config.toml" in refused(capsys, "config", "set", "speak.steps", "1")
