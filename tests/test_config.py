"""config.yaml to sizes, and sizes to JSON and back: what is official, what is wrong, and that every entry is named."""

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from debug.golden import FIXTURES
from indextts_jax.config import Config, ConfigError, entry, from_dict, from_yaml, inside, read_json, read_yaml, to_dict

OFFICIAL = FIXTURES / "config.yaml"


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return read_yaml(OFFICIAL)


def changed(settings: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy with one entry replaced, or removed (...)."""
    settings = copy.deepcopy(settings)
    node = settings
    *parents, last = name.split(".")
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return settings


def test_the_official_configuration_is_the_default(settings):
    assert from_yaml(settings) == Config()


def test_the_tiny_configuration(tiny):
    cfg = from_yaml(read_yaml(tiny.folder / "config.yaml"))
    assert (cfg.gpt.width, cfg.gpt.layers, cfg.gpt.text_vocabulary, cfg.gpt.text_positions) == (96, 3, 601, 202)
    assert (cfg.gpt.code_vocabulary, cfg.gpt.code_positions, cfg.gpt.stop_code) == (130, 403, 129)
    assert (cfg.conditioner.speaker.units, cfg.conditioner.emotion.heads) == (80, 2)
    assert (cfg.s2mel.width, cfg.s2mel.depth, cfg.s2mel.regulator_layers) == (64, 5, 4)
    assert (cfg.repcodec.channels, cfg.repcodec.layers, cfg.w2vbert.width) == (40, 3, 64)
    # what the file is silent about stays official, and the converters read it off the tensors
    assert cfg.bigvgan == Config().bigvgan
    assert cfg.campplus == Config().campplus


def numbers(tree: Any, prefix: str = "") -> list[str]:
    """The dotted names of all entries that are whole numbers."""
    if isinstance(tree, dict):
        return [name for key, value in tree.items() for name in numbers(value, f"{prefix}{key}.")]
    return [prefix[:-1]] if type(tree) is int else []


def test_every_entry_that_is_read_is_missed_by_name(settings):
    """Each number of the file is either not read at all, or its absence and a wrong kind name it."""
    read = []
    for name in numbers({key: settings[key] for key in ("gpt", "semantic_codec", "s2mel")}):
        if from_yaml_or_none(changed(settings, name, 7777)) == Config():
            continue
        read.append(name)
        if not name.endswith("fmin"):  # 0 where it is not there
            with pytest.raises(ConfigError, match=rf"^config\.yaml: entry {name} is missing$"):
                from_yaml(changed(settings, name, ...))
        for wrong in ("7", [7], {"a": 7}, True, 7.5 if not name.endswith(("mult", "fmin")) else "x"):
            with pytest.raises(ConfigError, match=rf"^config\.yaml: entry {name} is .*, not of type"):
                from_yaml(changed(settings, name, wrong))
    assert len(read) == 43


def from_yaml_or_none(settings: dict[str, Any]) -> Config | None:
    try:
        return from_yaml(settings)
    except ConfigError:
        return None


@pytest.mark.parametrize("name", ["gpt", "gpt.condition_module", "s2mel.DiT", "s2mel.preprocess_params.spect_params"])
def test_missing_sections_are_named(settings, name):
    for value in (..., None, 5, [1]):
        with pytest.raises(ConfigError, match=rf"config\.yaml: entry {name}\.?\w* is "):
            from_yaml(changed(settings, name, value))


def test_what_is_not_supported_is_named(settings):
    with pytest.raises(
        ConfigError, match=r"entry gpt\.condition_type is 'gst', only 'conformer_perceiver' is supported"
    ):
        from_yaml(changed(settings, "gpt.condition_type", "gst"))
    with pytest.raises(ConfigError, match=r"entry s2mel\.DiT\.final_layer_type is 'mlp', only 'wavenet' is supported"):
        from_yaml(changed(settings, "s2mel.DiT.final_layer_type", "mlp"))


def test_frequency_limits(settings):
    """fmin in Hz; fmax is "None", or anything else, which means 8 kHz to the reference."""
    place = "s2mel.preprocess_params.spect_params"
    mel = from_yaml(changed(changed(settings, f"{place}.fmin", 20), f"{place}.fmax", 8000)).mel
    assert (mel.fmin, mel.fmax) == (20.0, 8000.0)
    assert type(mel.fmin) is float
    mel = from_yaml(changed(changed(settings, f"{place}.fmin", ...), f"{place}.fmax", ...)).mel
    assert (mel.fmin, mel.fmax) == (0.0, None)


@pytest.mark.parametrize("value", [10**9, -1, 0, 10**60])
def test_every_number_has_bounds(settings, value):
    """Before anything is built of it."""
    zero = ("_token", "fmin", "perceiver_mult")
    for name in numbers({key: settings[key] for key in ("gpt", "semantic_codec", "s2mel")}):
        if from_yaml_or_none(changed(settings, name, 7777)) == Config() or (value == 0 and name.endswith(zero)):
            continue  # it is not read, or may be 0
        with pytest.raises(ConfigError) as caught:
            from_yaml(changed(settings, name, value))
        assert str(caught.value).startswith(f"config.yaml: entry {name} is ")
        assert ", but must lie between " in str(caught.value)
        assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError, match=r"^config\.yaml: the number of items of entry s2mel.* is 9000, but must"):
        from_yaml(changed(settings, "s2mel.length_regulator.sampling_ratios", [1] * 9000))


def test_long_values_are_cut(settings):
    for value in ("x" * 10_000, [[1] * 1000] * 1000, {"x": "y" * 5000}):
        with pytest.raises(
            ConfigError, match=r"^config\.yaml: entry gpt\.layers is .*\.\.\., not of type int$"
        ) as caught:
            from_yaml(changed(settings, "gpt.layers", value))
        assert len(str(caught.value)) < 200


def test_ids_lie_in_their_vocabularies(settings):
    for name, size in (("stop_text_token", 12001), ("stop_mel_token", 8194)):
        with pytest.raises(
            ConfigError, match=rf"^config\.yaml: entry gpt\.{name} is {size}, but must lie between 0 and "
        ):
            from_yaml(changed(settings, f"gpt.{name}", size))


@pytest.mark.parametrize("place", ["/etc/passwd", "../bpe.model", "a/../../bpe.model", ".."])
def test_files_outside_the_folder_are_refused(place):
    with pytest.raises(ConfigError, match=r"^config\.yaml: entry w2v_stat is '.*', outside the model folder; move the"):
        inside({"w2v_stat": place}, "w2v_stat")
    for within, name in ((" a/b.pt ", "a/b.pt"), ("folder/", "folder"), ("a..b", "a..b")):
        assert inside({"w2v_stat": within}, "w2v_stat") == name


def test_json_files(tmp_path):
    path = tmp_path / "config.json"
    for content, reason in (
        ("{", "not a JSON file"),
        ("[1]", "holds no entries"),
        ("[" * 100_000, "not a JSON file"),
        ('{"a": ' + "9" * 5000 + "}", "not a JSON file"),
        (" " * 1_000_001, "is larger than 1,000,000 bytes"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            read_json(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert len(str(caught.value)) < len(str(path)) + 200
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_entry(settings):
    assert entry(settings, "gpt_checkpoint", str) == "gpt.pth"
    assert entry(settings, "dataset.bpe_model", str) == "bpe.model"
    assert entry(settings, "gpt.condition_module.perceiver_mult", float) == 2.0
    with pytest.raises(ConfigError, match=r"^config\.yaml: entry w2v_stat is 5, not of type str$"):
        entry({"w2v_stat": 5}, "w2v_stat", str)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"gpt: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "line 1: types (!!) are not allowed"),
        (b"a: &a [1]\nb: *a\n", "line 1: anchors (&) and aliases (*) are not allowed"),
        (b"gpt: " + b"[" * 5000, "line 1: nested more than"),
        (b"gpt: " + b"9" * 5000, "line 1: a number of 5000 characters"),
        (b" " * 2_000_000, "larger than 1 MB"),
        (b"", "not an IndexTTS-2 configuration"),
        (b"- gpt\n- s2mel\n", "not an IndexTTS-2 configuration"),
        (b"gpt: {}\n", "not an IndexTTS-2 configuration"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, reason):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert len(str(caught.value).splitlines()) == 1


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: no such file; a model folder holds config\.yaml"):
        read_yaml(tmp_path / "config.yaml")


def test_json_and_back(tiny):
    for cfg in (Config(), tiny.cfg):
        again = from_dict(Config, json.loads(json.dumps(to_dict(cfg))))
        assert again == cfg
        assert hash(again) == hash(cfg)  # lists have become tuples, all the way down
    assert tiny.cfg != Config()


def test_what_an_older_model_does_not_say_is_none(tiny):
    values = to_dict(tiny.cfg)
    del values["gpt"]["repetition_penalty"], values["mel"]["fmax"]
    assert from_dict(Config, values) == tiny.cfg
    values["gpt"]["repetition_penalty"] = 1.5
    assert from_dict(Config, values) == replace(tiny.cfg, gpt=replace(tiny.cfg.gpt, repetition_penalty=1.5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpt.repetition_penalty", 0.0, r"^Config\.gpt\.repetition_penalty is 0\.0, but must lie between 0\.001 and"),
        ("gpt.heads", ..., r"^Config\.gpt: entries are missing or unknown: \['heads'\]$"),
        ("gpt.colour", 1, r"^Config\.gpt: entries are missing or unknown: \['colour'\]$"),
        ("vocoder", {}, r"^Config: entries are missing or unknown: \['vocoder'\]$"),
        ("gpt", 5, r"^Config\.gpt: entries are missing or unknown: all$"),
        ("gpt.heads", "20", r"^Config\.gpt\.heads: is '20', expected int$"),
        ("gpt.heads", None, r"^Config\.gpt\.heads: is None"),
        ("w2vbert.epsilon", math.inf, r"^Config\.w2vbert\.epsilon is inf, but must lie between 0\.0 and 1\.0$"),
        ("w2vbert.epsilon", math.nan, r"^Config\.w2vbert\.epsilon is nan, but must lie between"),
        ("w2vbert.epsilon", 1e-6, None),
        ("gpt.width", 10**9, r"^Config\.gpt\.width is 1000000000, but must lie between 1 and 65,536$"),
        ("gpt.width", 0, r"^Config\.gpt\.width is 0, but must"),
        ("gpt.layers", 513, r"^Config\.gpt\.layers is 513, but must lie between 1 and 512$"),
        (
            "gpt.text_vocabulary",
            1 << 25,
            r"^Config\.gpt\.text_vocabulary is 33554432, but must lie between 1 and 16,777,216$",
        ),
        ("gpt.start_text", -1, r"^Config\.gpt\.start_text is -1, but must lie between 0 and"),
        ("bigvgan.dilations", [[1] * 65], r"^Config\.bigvgan\.dilations: holds 65 items, but at most 64 are possible$"),
        ("conditioner.speaker.width", 1.5, r"^Config\.conditioner\.speaker\.width: is 1\.5"),
        ("bigvgan.dilations", [[1, 3], 5], r"^Config\.bigvgan\.dilations: is 5"),
        ("bigvgan.kernels", 3, r"^Config\.bigvgan\.kernels: is 3"),
        ("mel.fmax", "None", r"^Config\.mel\.fmax: is 'None'"),
        ("mel.fmax", 8000.0, None),
    ],
)
def test_broken_entries_of_json_are_named(name, value, message):
    values = changed(json.loads(json.dumps(to_dict(Config()))), name, value)
    if message is None:
        part, _, field = name.partition(".")
        assert getattr(getattr(from_dict(Config, values), part), field) == value
    else:
        with pytest.raises(ConfigError, match=message):
            from_dict(Config, values)
