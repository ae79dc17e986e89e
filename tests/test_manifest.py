"""Manifests: what a row says, what it leaves to the command line, and all that can be wrong with it."""

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from indextts_jax import manifest
from indextts_jax.cli import speak
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error, NotFound
from indextts_jax.files import FileError
from indextts_jax.manifest import FIELDS, Defaults, Feeling, Item, Problem
from indextts_jax.request import Options

SAD = (0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A manifest's folder, which is not the working one, with a few files in it."""
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("voice.wav", "other.wav", "sad.wav", "sad.safetensors", "terms.yaml"):
        (folder / name).write_bytes(b"sound")
    (folder / "text.txt").write_bytes("\ufeff第二句。\n".encode())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def write(folder: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    lines = [row if isinstance(row, str | bytes) else json.dumps(row, ensure_ascii=False) for row in rows]
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    (folder / "manifest.jsonl").write_bytes(content)
    return folder / "manifest.jsonl"


def read(folder: Path, *rows: dict[str, Any] | str | bytes, root: Path | None = None, **defaults: Any) -> list[Any]:
    return list(manifest.read(write(folder, *rows), Defaults(**defaults), ".wav", root))


def item(folder: Path, root: Path | None = None, defaults: dict[str, Any] | None = None, **row: Any) -> Item:
    """The item of a row, to which text and voice are added where they are missing."""
    text = {} if "text_file" in row else {"text": "Hello."}
    [found] = read(folder, text | {"voice": "voice.wav"} | row, root=root, **defaults or {})
    assert isinstance(found, Item), found
    return found


def problems(folder: Path, root: Path | None = None, defaults: dict[str, Any] | None = None, **row: Any) -> list[str]:
    text = {} if "text_file" in row else {"text": "Hello."}
    found = read(folder, text | {"voice": "voice.wav"} | row, root=root, **defaults or {})
    assert all(isinstance(one, Problem) and one.line == 1 and "\n" not in one.message for one in found)
    return [one.message for one in found]


# ---- fields ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser().add_subparsers()
    speak.add(commands)
    return commands.choices["speak"]


ACTIONS = {action.dest: action for action in parser()._actions}
ELSEWHERE = {"id", "silence_after_ms", "emotion_vector", "emotion_weight"}  # of manifests alone, or of another name


def accepts(action: argparse.Action, text: str) -> bool:
    assert callable(action.type)
    try:
        action.type(text)
    except argparse.ArgumentTypeError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(set(FIELDS) - ELSEWHERE))
def test_fields_are_the_options_of_speak(name: str):
    field, action = FIELDS[name], ACTIONS[name]
    kinds = {"text": None, "weights": None, "language": None, "path": Path}
    if field.kind in kinds:
        assert action.type is kinds[field.kind]
    elif field.kind == "flag":
        assert action.const is True
    else:
        assert accepts(action, "1.5") == (field.kind == "number" and field.low <= 1.5 <= field.high)
        for bound, beyond in ((field.low, -math.inf), (field.high, math.inf)):
            if math.isfinite(bound):
                step = math.copysign(1, beyond)
                outside = int(bound + step) if field.kind == "whole" else math.nextafter(bound, beyond)
                if name == "seed" and beyond > 0:
                    outside = 2**64
                for value in (bound, outside):
                    assert accepts(action, str(value)) == (value == bound)
                    assert (value == bound) == (not refused(name, value)) == (not refused(name, str(value)))
            else:
                assert accepts(action, str(10**30))
                assert not refused(name, 10**30)
    for text in ("nan", "inf", "x", ""):
        assert field.kind not in ("number", "whole") or refused(name, text)
    if field.kind == "language":
        assert set(action.choices or ()) == set(manifest.LANGUAGES)


def refused(name: str, value: Any) -> str:
    try:
        manifest.value(name, value)
    except Error as error:
        return str(error)
    return ""


def test_defaults_are_those_of_speak():
    for field in dataclasses.fields(Defaults):
        assert field.name in FIELDS
        assert field.default == ACTIONS[field.name].default, field.name
    inputs = {"text", "text_file", "output"}
    assert {field.name for field in dataclasses.fields(Defaults)} == set(FIELDS) - ELSEWHERE - inputs


def test_a_row_without_settings_has_the_defaults_of_speak(folder: Path):
    found = item(folder)
    assert found.options == Options()
    assert found == Item(
        line=1,
        id="line-000001",
        text="Hello.",
        voice=folder / "voice.wav",
        voice_start=0.0,
        feeling=None,
        seed=manifest.item_seed(0, "line-000001"),
        language=None,
        glossary=None,
        segment_tokens=120,
        paragraph_ms=500,
        options=Options(),
        silence_after_ms=0,
        output=PurePosixPath("line-000001.wav"),
    )


EVERYTHING = {
    "id": "a", "text": "你好，\n\"world\".", "voice": "other.wav", "voice_start": 1.5, "output": "out/a.wav",
    "silence_after_ms": 300, "seed": 2**64 - 1, "emotion_vector": list(SAD), "emotion_weight": 0.4,
    "emotion_random": True, "emotion_normalize": False, "language": "zh", "glossary": "terms.yaml",
    "segment_tokens": 60, "paragraph_ms": 0, "silence_ms": 0, "fade_ms": 5, "trim_tail": True,
    "beams": 2, "greedy": False, "no_sample": False, "temperature": 1,
    "top_k": 0, "top_p": 0.5, "repetition_penalty": 2.5, "length_penalty": -1.0, "max_codes": 7, "retries": 3,
    "steps": 9, "cfg_rate": 0.25, "speed": 1.5,
}  # fmt: skip


def expected(folder: Path, line: int) -> Item:
    return Item(
        line=line,
        id="a",
        text='你好，\n"world".',
        voice=folder / "other.wav",
        voice_start=1.5,
        feeling=Feeling(weights=SAD, weight=0.4, random=True),
        seed=2**64 - 1,
        language="zh",
        glossary=folder / "terms.yaml",
        segment_tokens=60,
        paragraph_ms=0,
        options=Options(Sampling(2, True, 0, 0.5, 1.0, 2.5, -1.0), 7, 3, 9, 0.25, 0, 5, True, 1.5),
        silence_after_ms=300,
        output=PurePosixPath("out/a.wav"),
    )


def test_a_row_with_all_settings(folder: Path):
    other = {"voice": folder / "voice.wav", "beams": 5, "seed": 7, "temperature": 2.0, "emotion": "happy=1"}
    for defaults in ({}, other):
        assert read(folder, EVERYTHING, **defaults) == [expected(folder, 1)]
    assert repr(item(folder, temperature=1).options.sampling.temperature) == "1.0"


def test_csv_is_read_by_the_same_table(folder: Path):
    path, content = folder / "manifest.CSV", io.StringIO()
    writer = csv.writer(content)
    writer.writerow([f" {name}" for name in EVERYTHING])
    writer.writerow([])
    cells = EVERYTHING | {"emotion_vector": "0,0,0.6,0,0,0,0,0", "emotion_random": "Yes", "greedy": "0"}
    writer.writerow(cells.values())
    writer.writerow(dict.fromkeys(EVERYTHING, "").values())
    writer.writerow({name: {"text": "Hi", "voice": "voice.wav"}.get(name, " ") for name in EVERYTHING}.values())
    path.write_bytes(b"\xef\xbb\xbf" + content.getvalue().encode())
    first, second = manifest.read(path, Defaults(), ".wav")
    assert first == expected(folder, 3)
    assert second == dataclasses.replace(item(folder, text="Hi"), **{
        "line": 6, "id": "line-000006", "seed": manifest.item_seed(0, "line-000006"),
        "output": PurePosixPath("line-000006.wav"),
    })  # fmt: skip


def test_settings_of_the_command_line(folder: Path):
    defaults = {
        "voice": folder / "other.wav", "voice_start": 2.0, "language": "en", "glossary": folder / "terms.yaml",
        "segment_tokens": 50, "paragraph_ms": 7, "silence_ms": 10, "fade_ms": 0, "trim_tail": True,
        "beams": 4, "no_sample": True, "temperature": 0.5, "top_k": 3,
        "top_p": 0.1, "repetition_penalty": 3.0, "length_penalty": 1.0, "max_codes": 9, "steps": 2, "cfg_rate": 0.1,
        "speed": 0.5,
    }  # fmt: skip
    [found] = read(folder, {"text": "Hi"}, **defaults)
    assert found.options == Options(Sampling(4, False, 3, 0.1, 0.5, 3.0, 1.0), 9, 0, 2, 0.1, 10, 0, True, 0.5)
    assert (found.voice, found.voice_start, found.language) == (folder / "other.wav", 2.0, "en")
    assert (found.glossary, found.segment_tokens, found.paragraph_ms) == (folder / "terms.yaml", 50, 7)


def test_greedy_is_one_beam_without_sampling(folder: Path):
    for found in (item(folder, greedy=True, beams=4), item(folder, defaults={"greedy": True})):
        assert (found.options.sampling.beams, found.options.sampling.sample) == (1, False)
    assert item(folder, greedy=False, defaults={"greedy": True}).options == Options()
    assert not item(folder, no_sample=True).options.sampling.sample
    for row, defaults in (({"greedy": True}, {"retries": 2}), ({"retries": 2}, {"no_sample": True})):
        [message] = problems(folder, defaults=defaults, **row)
        assert message.startswith("retries is 2, but without sampling the same codes would come again; set retries to")
    assert item(folder, greedy=True, retries=0, defaults={"retries": 2}).options.retries == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"temperature": True}, "temperature is True, but must be a number from 0.001 to 100"),
        ({"temperature": "hot"}, "temperature is 'hot', but must be a number from 0.001 to 100"),
        ({"temperature": [1]}, "temperature is [1], but must be a number from 0.001 to 100"),
        ({"temperature": math.nan}, "temperature is nan, but must be a number from 0.001 to 100"),
        ({"voice_start": math.inf}, "voice_start is inf, but must be a number of at least 0"),
        (
            {"voice_start": 10**400},
            "voice_start is 1000000000000000000000",
        ),
        ({"beams": 1.0}, "beams is 1.0, but must be a whole number from 1 to 64"),
        ({"beams": "1.5"}, "beams is '1.5', but must be a whole number from 1 to 64"),
        ({"beams": False}, "beams is False, but must be a whole number from 1 to 64"),
        ({"seed": -1}, "seed is -1, but must be a whole number from 0 to 18446744073709551615"),
        ({"max_codes": 0}, "max_codes is 0, but must be a whole number of at least 1"),
        ({"silence_after_ms": -1}, "silence_after_ms is -1, but must be a whole number from 0 to 3600000"),
        ({"emotion": "sad=1", "emotion_weight": "1.1"}, "emotion_weight is '1.1', but must be a number from 0 to 1"),
        ({"greedy": 1}, "greedy is 1, but must be true or false"),
        ({"greedy": "on"}, "greedy is 'on', but must be true or false"),
        ({"language": "fr"}, "language is 'fr', but must be one of zh, en"),
        ({"id": 7}, "id is 7, but must be text; put it in quotes"),
        ({"text": " \n"}, "text is empty; fill it in or leave it out"),
        ({"voice": ""}, "voice is empty; fill it in or leave it out"),
        ({"voice": "a\0"}, "voice 'a\\x00' holds a control character; correct it"),
        ({"text": "\ud800"}, "text '\\ud800' is not valid UTF-8; save the file as UTF-8"),
        ({"emotion_vector": [0] * 7}, "emotion_vector: 7 weights, but there are 8: happy, angry"),
        ({"emotion_vector": [0] * 7 + [1.3]}, "emotion_vector: calm is 1.3, but must lie between 0 and 1.2"),
        ({"emotion_vector": [0] * 7 + [math.nan]}, "emotion_vector: calm is nan, but must lie between 0 and 1.2"),
        ({"emotion_vector": [0] * 7 + [True]}, "emotion_vector is [0, 0, 0, 0, 0, 0, 0, True], but must be eight "),
        ({"emotion_vector": 1}, "emotion_vector is 1, but must be eight numbers: [happy, angry"),
        ({"emotion": "glad=1"}, "emotion: emotion 'glad' is none of happy"),
        ({"voise": "x"}, "unknown field 'voise'; write voice"),
        ({"top-k": 3}, "unknown field 'top-k'; write top_k"),
        ({"comment": "x"}, "unknown field 'comment'; correct its name or remove it"),
        ({"text_file": "text.txt", "text": "x"}, "a row has either text or text_file; give one of them"),
        ({"voice": "no.wav"}, "voice PATH/no.wav: no such file; check the path"),
        ({"emotion_audio": "."}, "emotion_audio PATH: is no regular file; give a file"),
        ({"text_file": "no.txt"}, "text_file PATH/no.txt: no such file; check the path"),
        ({"id": "x" * 1001}, "id 'xxx"),
    ],
)
def test_what_is_wrong_with_a_field_is_said_once(folder: Path, row: dict[str, Any], message: str):
    if row.get("text") == "\ud800":
        [found] = list(manifest.read(write(folder, json.dumps({"voice": "voice.wav"} | row)), Defaults(), ".wav"))
        assert found == Problem(1, message)
    else:
        [found] = problems(folder, **row)
        assert found.startswith(message.replace("PATH", str(folder)))


def test_all_problems_of_all_rows_come_at_once(folder: Path):
    found = read(folder, {"voise": "x", "beams": 0, "top_p": 2}, {"text": "Hi", "voice": "voice.wav"}, "", "{", {})
    assert [(one.line, isinstance(one, Item)) for one in found] == [
        (1, False), (1, False), (1, False), (1, False), (1, False), (2, True), (4, False), (5, False), (5, False)
    ]  # fmt: skip
    assert [one.message.split(" ")[0] for one in found[:5]] == ["unknown", "beams", "top_p", "a", "there"]
    assert found[-1].message == "there is no voice; add the field voice, or the option --voice"


def test_null_is_a_field_that_is_not_there(folder: Path):
    nothing = dict.fromkeys(FIELDS)
    [found] = read(folder, nothing | {"text": "Hello.", "voice": "voice.wav"})
    assert found == item(folder)
    assert item(folder, text_file="text.txt", text=None).text == "第二句。\n"


def test_text_files(folder: Path):
    assert item(folder, text_file="text.txt").text == "第二句。\n"
    for content, message in (
        (b"", r"text_file .*text\.txt is empty; write into it what to say"),
        (b" \n", r"text_file .*text\.txt is empty; write into it"),
        (
            b"ab\xff",
            r"text_file .*text\.txt is not UTF-8 text \(invalid start byte at byte 2\); save the file as UTF-8",
        ),
    ):
        (folder / "text.txt").write_bytes(content)
        [found] = problems(folder, text_file="text.txt")
        assert re.match(message, found)


# ---- emotions -------------------------------------------------------------------------------------------------------


def test_sources_of_an_emotion(folder: Path):
    for row, feeling in (
        ({}, None),
        ({"emotion_audio": "sad.wav"}, Feeling(audio=folder / "sad.wav")),
        ({"emotion_audio": "sad.wav", "emotion_weight": "0.75"}, Feeling(audio=folder / "sad.wav", weight=0.75)),
        ({"emotion_audio": "sad.safetensors"}, Feeling(audio=folder / "sad.safetensors", weight=None)),
        ({"emotion_audio": "sad.safetensors", "emotion_alpha": 1}, Feeling(audio=folder / "sad.safetensors")),
        ({"emotion_text": "warm"}, Feeling(text="warm")),
        ({"emotion_from_text": True, "emotion_weight": 0}, Feeling(from_text=True, weight=0.0)),
        ({"emotion_from_text": False}, None),
        ({"emotion_from_text": False, "emotion_text": "warm"}, Feeling(text="warm")),
        ({"emotion_vector": list(SAD)}, Feeling(weights=SAD)),
        ({"emotion_vector": "0,0,0.6,0,0,0,0,0"}, Feeling(weights=SAD)),
        ({"emotion": "sad=0.6", "emotion_normalize": True}, Feeling(weights=SAD, normalize=True)),
        ({"emotion": "sad=0.6", "emotion_random": True}, Feeling(weights=SAD, random=True)),
        ({"emotion_vector": [0] * 8}, Feeling(weights=(0.0,) * 8)),
    ):
        assert item(folder, **row).feeling == feeling


def test_a_row_overrides_the_emotion_of_the_command_line(folder: Path):
    warm = {"emotion_text": "warm", "emotion_alpha": 0.6}
    for defaults, row, feeling in (
        (warm, {}, Feeling(text="warm", weight=0.6)),
        (warm, {"emotion_weight": 0.5}, Feeling(text="warm", weight=0.5)),
        (warm, {"emotion_vector": list(SAD)}, Feeling(weights=SAD, weight=0.6)),
        (warm, {"emotion_vector": list(SAD), "emotion_weight": 1}, Feeling(weights=SAD)),
        ({"emotion": "sad=0.6"}, {}, Feeling(weights=SAD)),
        ({"emotion": "sad=0.6"}, {"emotion_audio": "sad.wav"}, Feeling(audio=folder / "sad.wav")),
        ({"emotion_audio": folder / "sad.wav"}, {}, Feeling(audio=folder / "sad.wav")),
        ({"emotion_audio": folder / "sad.wav"}, {"emotion_text": "warm"}, Feeling(text="warm")),
        ({"emotion_audio": folder / "sad.safetensors"}, {}, Feeling(audio=folder / "sad.safetensors", weight=None)),
        ({"emotion_from_text": True}, {}, Feeling(from_text=True)),
        ({"emotion_from_text": True}, {"emotion_from_text": False}, None),
        ({"emotion_text": "warm"}, {"emotion_from_text": False}, Feeling(text="warm")),
        ({"emotion_alpha": 0.6}, {}, None),  # a strength for the rows that have an emotion
        ({"emotion_alpha": 0.6}, {"emotion_text": "warm"}, Feeling(text="warm", weight=0.6)),
        ({"emotion_random": True, "emotion_normalize": True}, {}, None),
        ({"emotion_random": True}, {"emotion": "sad=0.6"}, Feeling(weights=SAD, random=True)),
        ({"emotion_random": True}, {"emotion": "sad=0.6", "emotion_random": False}, Feeling(weights=SAD)),
        ({"emotion_random": True}, {"emotion_audio": "sad.wav"}, Feeling(audio=folder / "sad.wav")),
        (
            {"emotion_normalize": True},
            {"emotion_audio": "sad.safetensors"},
            Feeling(audio=folder / "sad.safetensors", weight=None, normalize=True),
        ),
    ):
        assert item(folder, defaults=defaults, **row).feeling == feeling, (defaults, row)


def test_emotions_that_make_no_sense(folder: Path):
    for row, message in (
        ({"emotion_text": "warm", "emotion_vector": list(SAD)}, "emotion_vector and emotion_text: an emotion has one "),
        ({"emotion": "sad=1", "emotion_from_text": True}, "emotion and emotion_from_text: an emotion has one source"),
        (
            {"emotion": "sad=1", "emotion_weight": 1, "emotion_alpha": 1},
            "emotion_weight and emotion_alpha are the same; keep one of them",
        ),
        ({"emotion_weight": 0.5}, "emotion_weight is the strength of an emotion, but the item has no emotion; add one"),
        (
            {"emotion_alpha": 0.5, "emotion_from_text": False},
            "emotion_alpha is the strength of an emotion, but the item",
        ),
        (
            {"emotion_normalize": True},
            "emotion_normalize changes the weights of an emotion, but the item has no emotion",
        ),
        (
            {"emotion_audio": "sad.wav", "emotion_random": True},
            "emotion_random changes weights, but the emotion is a re",
        ),
    ):
        [found] = problems(folder, **row)
        assert found.startswith(message)


# ---- ids, seeds and outputs -----------------------------------------------------------------------------------------


def test_seeds(folder: Path):
    """An item's seed follows from the run's seed and its id alone: those of finished jobs must never change."""
    digest = hashlib.sha256(b"7:a").digest()
    assert manifest.item_seed(7, "a") == int.from_bytes(digest[:8], "big") == 9428802777907886192
    assert item(folder, id="a", defaults={"seed": 7}).seed == manifest.item_seed(7, "a")
    assert item(folder, id="a", seed=5, defaults={"seed": 7}).seed == 5
    assert item(folder, id="a", seed=0, defaults={"seed": 7}).seed == 0


def test_ids_are_unique(folder: Path):
    row = {"text": "Hi", "voice": "voice.wav"}
    ids = ["caf\u00e9", "b", " cafe\u0301 ", "line-000005", None]
    outputs = [f"{i}.wav" for i in range(5)]
    found = read(folder, *(row | {"id": id, "output": output} for id, output in zip(ids, outputs, strict=True)))
    assert [one.id for one in found if isinstance(one, Item)] == ["caf\u00e9", "b", "line-000005"]
    assert [one for one in found if isinstance(one, Problem)] == [
        Problem(3, "id 'caf\u00e9' is that of line 1, too; give each item another one"),
        Problem(5, "id 'line-000005' is that of line 4, too; give each item another one"),
    ]
    [_, wrong] = read(folder, row | {"id": "a", "output": "1.wav"}, row | {"id": "a", "beams": 0, "output": "2.wav"})[
        1:
    ]
    assert wrong.message.startswith("id 'a' is that of line 1")


def test_names_of_files():
    assert [manifest.file_name(id) for id in ("a", "声音-1_2.b", "x" * 120)] == ["a", "声音-1_2.b", "x" * 120]
    others = ["..", ".", ".a", "a/b", "a b", "a\nb", "a:b", "x" * 121, "声" * 333, "a/../../b", "é́"]
    names = [manifest.file_name(id) for id in others]
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) <= 133
        assert name == name.strip()
        assert name[-13] == "-"
    assert manifest.file_name("a/b").startswith("a_b-")


def test_outputs_have_one_item_each(folder: Path):
    row = {"text": "Hi", "voice": "voice.wav"}
    outputs = ["a.wav", "b/Straße.wav", "./A.WAV", "b//STRASSE.wav", "d/é.wav", "d/e\u0301.wav", "a.wav/c.wav", "B.wav"]
    outputs += ["x.wav/y.wav", "X.wav"]
    found = read(folder, *(row | {"output": output} for output in outputs))
    assert [one.line for one in found if isinstance(one, Item)] == [1, 2, 5, 8, 9]
    assert [one for one in found if isinstance(one, Problem)] == [
        Problem(3, "output 'A.WAV' is that of line 1, too, but for case at most; give each item another one"),
        Problem(4, "output 'b/STRASSE.wav' is that of line 2, too, but for case at most; give each item another one"),
        Problem(6, "output 'd/e\u0301.wav' is that of line 5, too, but for case at most; give each item another one"),
        Problem(7, "output 'a.wav/c.wav' and the output of line 1: one is a folder of the other; choose another name"),
        Problem(10, "output 'X.wav' and the output of line 9: one is a folder of the other; choose another name"),
    ]
    found = read(folder, row | {"id": "a"}, row | {"id": "A"})
    assert found[1] == Problem(
        2, "output 'A.wav' is that of line 1, too, but for case at most; give each item another one"
    )


def test_outputs_stay_in_their_folder(folder: Path, tmp_path: Path):
    root = tmp_path / "out"
    root.mkdir()
    (root / "outside").symlink_to(tmp_path)
    (root / "file.wav").symlink_to(tmp_path / "file.wav")
    (root / "inside").symlink_to("sub")
    for output in ("/a.wav", "../a.wav", "b/../a.wav", "b/../../a.wav", "/etc"):
        for place in (None, root):
            [found] = problems(folder, place, output=output)
            assert found == f"output {output!r} leaves the output folder; give a path within it, without .."
    for output in ("outside/a.wav", "file.wav"):
        assert item(folder, output=output).output == PurePosixPath(output)
        [found] = problems(folder, root, output=output)
        assert found == f"output {output!r} leaves the output folder; give a path within it, without .."
    for output in ("inside/a.wav", "a.wav", "..a.wav", "声/音.wav"):
        for place in (root, tmp_path / "none", Path("/"), Path("relative")):
            assert item(folder, place, output=output).output == PurePosixPath(output)


def test_names_of_outputs(folder: Path):
    for output in ("a", "a.mp3", ".wav", "a.wav.flac", "."):
        found = problems(folder, output=output)
        assert found == [f"output {output!r} must end in .wav, the format that is written; rename it or choose another"]
    [found] = problems(folder, output="声" * 84 + ".wav")
    assert found.endswith("a name of more than 255 bytes; shorten it")
    assert item(folder, output="a.Wav").output == PurePosixPath("a.Wav")
    [found] = manifest.read(write(folder, {"text": "Hi", "voice": "voice.wav"}), Defaults(), ".flac")
    assert isinstance(found, Item)
    assert found.output == PurePosixPath("line-000001.flac")


def test_outputs_are_no_inputs(folder: Path):
    """Of their own row, of others before and after, of the command line; and not the manifest."""
    (folder / "link.wav").symlink_to("other.wav")
    row = {"text": "Hi", "voice": "voice.wav"}
    (folder / "glossary.wav").write_bytes(b"")
    rows = [
        row | {"output": "voice.wav"},
        row | {"voice": "link.wav", "output": "2.wav"},
        row | {"output": "other.wav"},
        row | {"output": "sad.wav"},
        row | {"emotion_audio": "sad.wav", "output": "5.wav"},
        row | {"output": "manifest.wav"},
        row | {"output": "glossary.wav"},
    ]
    path = write(folder, *rows)
    (folder / "manifest.wav").symlink_to(path)
    found = list(manifest.read(path, Defaults(glossary=folder / "glossary.wav"), ".wav", folder))
    assert [one for one in found if isinstance(one, Problem)] == [
        Problem(1, "output 'voice.wav' is an input of line 1, which would be overwritten; choose another name"),
        Problem(3, "output 'other.wav' is an input of line 2, which would be overwritten; choose another name"),
        Problem(5, f"emotion_audio {folder}/sad.wav: is the output of line 4, too; choose another name for that"),
        Problem(
            6, "output 'manifest.wav' is an input of the command line, which would be overwritten; choose another name"
        ),
        Problem(
            7, "output 'glossary.wav' is an input of the command line, which would be overwritten; choose another name"
        ),
    ]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_are_looked_at_once(folder: Path, monkeypatch):
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: (opened.append(Path(path).name), real(path, *more))[1])
    row = {"text": "Hi", "voice": "voice.wav"}
    read(folder, *[row] * 5, *[row | {"voice": "other.wav"}] * 5, *[row | {"voice": "none.wav"}] * 5)
    assert sorted(opened) == ["manifest.jsonl", "none.wav", "other.wav", "voice.wav"]


def test_closed_and_empty_recordings(folder: Path, monkeypatch):
    (folder / "other.wav").write_bytes(b"")
    (folder / "terms.yaml").write_bytes(b"")
    [found] = problems(folder, voice="other.wav", glossary="terms.yaml")
    assert found.startswith(f"voice {folder}/other.wav: is empty (0 bytes); copy it again")
    os.mkfifo(folder / "pipe")
    [found] = problems(folder, voice="pipe")
    assert found.startswith(f"voice {folder}/pipe: is no regular file; give a file")
    real = os.open

    def closed(path: Path, *more: Any) -> int:
        if Path(path).name == "voice.wav":
            raise PermissionError(13, "Permission denied", "a name that nobody knows")
        return real(path, *more)

    monkeypatch.setattr(os, "open", closed)
    [found] = problems(folder)
    assert found.startswith(f"voice {folder}/voice.wav: cannot be read (Permission denied); check its")


def test_the_command_line_is_checked_first(folder: Path):
    for defaults, message in (
        ({"voice": Path("no.wav")}, r"^--voice no\.wav: no such file; check the path$"),
        ({"emotion_audio": folder}, r"^--emotion-audio .*job: is no regular file; give a file$"),
        ({"glossary": Path("no.yaml")}, r"^--glossary no\.yaml: no such file; check the path$"),
        ({"emotion": "glad=1"}, r"^--emotion: emotion 'glad' is none of"),
    ):
        with pytest.raises(Error, match=message):
            read(folder, {"text": "Hi", "voice": "voice.wav"}, **defaults)


def test_manifests_that_cannot_be_read(folder: Path, monkeypatch):
    def all_of(path: Path) -> list[Any]:
        return list(manifest.read(path, Defaults(), ".wav"))

    with pytest.raises(NotFound, match=r"no\.jsonl: no such file; check the path"):
        all_of(folder / "no.jsonl")
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.json")
    for name in ("folder.csv", "pipe.json"):
        with pytest.raises(FileError, match=rf"{name}: is no regular file; give a file"):
            all_of(folder / name)
    with pytest.raises(Error, match=r"text\.txt: the name of a manifest ends in \.jsonl, \.ndjson, \.json or \.csv"):
        all_of(folder / "text.txt")

    def closed(*_: Any) -> int:
        raise PermissionError(13, "Permission denied", "a name that nobody knows")

    path = write(folder)
    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(
        FileError, match=r"manifest\.jsonl: cannot be read \(Permission denied\); check its permissions$"
    ):
        all_of(path)


def test_empty_manifests(folder: Path):
    for name, content in (
        ("a.jsonl", b""),
        ("a.json", b"\xef\xbb\xbf\n \n"),
        ("a.csv", b""),
        ("a.csv", b"text,voice\n"),
    ):
        (folder / name).write_bytes(content)
        found = list(manifest.read(folder / name, Defaults(), ".wav"))
        assert found == [Problem(1, "the manifest holds no items; write one per line")]


def test_lines_of_json(folder: Path):
    good = json.dumps({"text": "Hi", "voice": "voice.wav"}).encode()
    for line, message in (
        (b"{", r"^no JSON \(.* at character \d\); write one object \{\.\.\.\} on each line$"),
        (b"{}{}", r"^no JSON \(Extra data at character 3\); write one object"),
        (b"# comment", r"^no JSON \("),
        (b"[1]", r"^\[1\] is no object; write one object \{\.\.\.\} on each line$"),
        (b"null", r"^None is no object"),
        (b'{"text": "a", "voice": "b", "text": "c"}', r"^the field 'text' stands twice; keep one of them$"),
        (b'{"seed": ' + b"1" * 5000 + b"}", r"^no usable JSON \(Exceeds the limit"),
        (b"[" * 100_000, r"^no usable JSON \(maximum recursion depth exceeded"),
        (
            b'{"text": "\xe4\xbd", "voice": "voice.wav"}',
            r"^text '\\udce4\\udcbd' is not valid UTF-8; save the file as UTF",
        ),
        (
            b'{"\xff": 1, "text": "a", "voice": "voice.wav"}',
            r"^unknown field '\\udcff'; correct its name or remove it$",
        ),
    ):
        first, second, third = read(folder, b"\xef\xbb\xbf" + good, line, good + b"\r")
        assert isinstance(first, Item)
        assert isinstance(third, Item)
        assert second.line == 2
        assert re.search(message, second.message), second.message
    [found] = read(folder, "{}".encode("utf-16"))
    assert found == Problem(1, "the manifest is text in UTF-16; save the file as UTF-8")


def test_lines_that_are_too_long(folder: Path, monkeypatch):
    monkeypatch.setattr(manifest, "LONGEST", 100)
    good = json.dumps({"text": "Hi", "voice": "voice.wav"})
    first, second = read(folder, good.ljust(99), good.ljust(100), good)
    assert isinstance(first, Item)
    assert second.line == 2
    assert second.message.startswith("a line of more than 100 bytes, at which reading ended; put its text into a text_")


def records(folder: Path, content: bytes) -> list[Any]:
    (folder / "manifest.csv").write_bytes(content)
    return list(manifest.read(folder / "manifest.csv", Defaults(), ".wav"))


def test_lines_of_csv(folder: Path):
    found = records(
        folder,
        b'text,voice,id\r\n\r\n"one\r\ntwo",voice.wav,a\r\n'
        b'x,voice.wav\r\nx,voice.wav,b,c\r\n"a, ""b""", voice.wav, \r\n\xff,voice.wav,d\r\n,,\r\ny,,e\r\n',
    )
    assert [one.line for one in found] == [3, 5, 6, 7, 8, 10]
    assert (found[0].text, found[0].id) == ("one\r\ntwo", "a")
    assert found[1].message == "2 cells, but the header has 3; put quotes around commas in a text"
    assert found[2].message == "4 cells, but the header has 3; put quotes around commas in a text"
    assert (found[3].text, found[3].id) == ('a, "b"', "line-000007")
    assert found[4].message == "text '\\udcff' is not valid UTF-8; save the file as UTF-8"
    assert found[5].message == "there is no voice; add the field voice, or the option --voice"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (
            b"text;voice\na;b\n",
            1,
            "the header: unknown field 'text;voice'; write voice; columns are separated by commas",
        ),
        (
            b"\ntxt,voice,voice\na,b,c\n",
            2,
            "the header: unknown field 'txt'; write text; the column 'voice' stands twi",
        ),
        (b"text,,voice\na,,b\n", 1, "the header: unknown field ''; correct its name or remove it; columns are"),
        (b'text,voice\n"a,b\nc\n', 2, "no CSV (unexpected end of data), at which reading ended; put quotes around"),
        (b'text,voice\n"a"b,c\n', 2, "no CSV (',' expected after '\"'), at which reading ended; put quotes around"),
        (b"text,voice\n" + b"a" * 140_000 + b",b\n", 2, "no CSV (field larger than field limit (131072)), at which"),
        ("text,voice\n".encode("utf-16"), 1, "the manifest is text in UTF-16; save the file as UTF-8"),
    ],
)
def test_csv_that_cannot_be_read_on(folder: Path, content: bytes, line: int, message: str):
    [found] = records(folder, content)
    assert found.line == line
    assert found.message.startswith(message)


def test_memory_does_not_grow_with_what_items_hold(folder: Path):
    def peak(text: str) -> int:
        path = write(folder, *(json.dumps({"text": text, "voice": "voice.wav"}) for _ in range(300)))
        tracemalloc.start()
        items: Iterator[Any] = manifest.read(path, Defaults(), ".wav")
        assert all(isinstance(one, Item) for one in items)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak("x")
    assert peak("x" * 20_000) - peak("x") < 30 * 20_000  # of 300
