"""Jobs: the same bytes whatever the order, devices, shards and interruptions; nothing is done twice or lost."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

import jax
import numpy as np
import pytest
import soundfile

from indextts_jax import audio, batch, cli, files, interrupts, loudness, pipeline, scheduling
from indextts_jax.batch import Job, Refused
from indextts_jax.errors import Error
from indextts_jax.journal import Journal, key
from indextts_jax.manifest import Defaults, Item, item_seed
from indextts_jax.request import Options
from indextts_jax.shards import Shard
from indextts_jax.timing import Stopwatch
from tests import jobs
from tests.jobs import KINDS, VOICE

pytestmark = pytest.mark.whole

COUNT = len(KINDS)
FAIL = {i for i in range(COUNT) if KINDS[i].get("voice") == "broken.wav"}
ITEM = Item(1, "a", "A.", VOICE, 0.0, None, 0, None, None, 120, 500, Options(), 0, PurePosixPath("a.wav"))
DEFAULTS = Defaults(voice=VOICE, beams=1, max_codes=10, steps=1, seed=3)


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """Programs compiled by these tests stay out of the user's cache."""
    monkeypatch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)


def job(model: Path, folder: Path, rows: list[dict], **changes) -> Job:
    folder.mkdir(exist_ok=True)
    manifest = jobs.write(folder.parent / f"{folder.name}.jsonl", rows)
    return replace(Job(manifest, folder, model, DEFAULTS, batch=4), **changes)


@pytest.fixture(scope="module")
def first(converted, model, tmp_path_factory):
    """One item of every kind in one run: the job, its summary and its outputs."""
    asked = job(converted, tmp_path_factory.mktemp("first") / "out", jobs.rows(COUNT))
    summary = batch.run(asked, [model])
    return asked, summary, jobs.outputs(asked.folder)


def journal(asked: Job) -> list[dict]:
    return list(Journal.read(asked.journal))


def test_every_item_is_done_or_has_failed_by_itself(first):
    asked, summary, outputs = first
    plan = batch.check(replace(asked, force=True))
    assert (plan.items, plan.done, plan.voices) == (COUNT, COUNT - len(FAIL), 3)
    assert (summary.items, summary.done, summary.failed, summary.left) == (COUNT, COUNT - len(FAIL), len(FAIL), 0)
    assert summary.listened == 3  # two voices and a recording of an emotion, each once
    entries = {entry["id"]: entry for entry in journal(asked)}
    assert len(entries) == len(journal(asked)) == COUNT
    for i, row in enumerate(jobs.rows(COUNT)):
        entry = entries[row["id"]]
        assert entry["attempts"] == 1
        assert entry["seed"] == row.get("seed", item_seed(3, row["id"]))
        if i in FAIL:
            assert entry["status"] == "failed"
            assert "broken.wav" in entry["error"]
            assert f"{row['id']}.wav" not in outputs
            continue
        samples, rate = soundfile.read(asked.folder / entry["output"])
        assert rate == 22050
        assert len(samples) / rate == pytest.approx(entry["seconds"], abs=1e-5)
        assert entry["codes"] > 0
    failures = [json.loads(line) for line in (asked.folder / "failures.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in failures] == [f"item-{i:03d}" for i in sorted(FAIL)]
    report = json.loads((asked.folder / "summary.json").read_text())
    assert (report["done"], report["failed"]) == (summary.done, summary.failed)
    assert report["real_time_factor"] > 0
    assert 0 <= report["usage"]["idle_rows"] < 1
    assert 0 <= report["usage"]["padded_frames"] < 1


def test_the_same_job_again_does_what_failed_and_what_is_missing(first, model, monkeypatch):
    asked, _, outputs = first
    listened = []
    monkeypatch.setattr(model.__class__, "listen", lambda *_: listened.append(1))
    again = batch.run(asked, [model])
    assert (again.items, again.before, again.done, again.failed) == (len(FAIL), COUNT - len(FAIL), 0, len(FAIL))
    assert not listened
    name = sorted(outputs)[3]
    (asked.folder / name).unlink()
    again = batch.run(asked, [model])
    assert (again.done, again.before) == (1, COUNT - len(FAIL) - 1)
    assert jobs.outputs(asked.folder) == outputs
    # Three attempts have been made of what fails: it is left out from now on.
    assert (again.failed, batch.run(asked, [model]).left) == (len(FAIL), len(FAIL))
    more = batch.run(replace(asked, attempts=4, only_failed=True), [model])
    assert (more.items, more.failed) == (len(FAIL), len(FAIL))


def test_items_as_loud_as_asked_are_done_anew(converted, model, tmp_path):
    """In another format, too; without the option, keys are those from before there was one."""
    pytest.importorskip("pyloudnorm")
    asked = job(converted, tmp_path / "out", jobs.rows(2), kind="flac", rate=16000)
    batch.run(asked, [model])
    keys = {entry["id"]: entry["key"] for entry in journal(asked)}
    for lufs, done in ((-30.0, 2), (-30.0, 0), (-33.0, 2)):
        assert batch.run(replace(asked, normalize=lufs), [model]).done == done
        for path in asked.folder.glob("*.flac"):
            assert loudness.measure(*soundfile.read(path)) == pytest.approx(lufs, abs=0.2)
    assert batch.run(asked, [model]).done == 2
    assert {entry["id"]: entry["key"] for entry in journal(asked)} == keys


def test_pauses_of_items_are_exact(converted, model, tmp_path):
    """As `speak` has them, and blank lines by the row's own field; malformed ones are found before anything begins."""
    texts = ["Hello.", "[pause 500ms] Hello.\n\nHello. [pause 20ms]", "Hello. [pause 1m]"]
    rows = [{"id": str(i), "text": text, "paragraph_ms": 250, "seed": 1} for i, text in enumerate(texts)]
    with pytest.raises(Refused) as refused:
        batch.check(job(converted, tmp_path / "bad", rows))
    assert refused.value.problems[0].message.startswith("[pause 1m]: write a pause as [pause 500ms] or")
    asked = job(converted, tmp_path / "out", rows[:2])
    assert batch.run(asked, [model]).done == 2
    one, two = (soundfile.read(asked.folder / f"{i}.wav", dtype="int16")[0] for i in range(2))
    lead, between, end = (22050 * ms // 1000 for ms in (500, 250, 20))
    np.testing.assert_array_equal(two[lead : lead + len(one)], one)
    assert one[-1] == 0  # faded
    assert not two[:lead].any()
    assert not two[lead + len(one) : lead + len(one) + between].any()
    assert two[lead + len(one) + between : len(two) - end].any()
    assert not two[len(two) - end :].any()


def test_options_that_came_later_are_no_part_of_a_key_where_they_change_nothing(first, model):
    """So journals that were written before they came still hold, where what was done before is asked for."""
    asked, _, _ = first
    with Journal.open(asked.journal) as journal, Stopwatch() as watch:
        keys = batch._Run(asked, [model], journal, watch)._key
    [item, *_] = asked.items()
    plain = replace(item, options=replace(item.options, **batch.LATER))
    drawn = replace(plain.options, sampling=plain.options.sampling.of(model.cfg.gpt))
    own = {name: value for name, value in asdict(drawn).items() if name not in (*batch.LATER, "batch")}
    assert own["sampling"]["repetition_penalty"] == 10.0  # as when it belonged to no model
    found = []

    def note(**parts):
        found.append(parts["options"])
        return key(**parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "key", note)
        old = keys(plain, None)
        others = {keys(replace(plain, options=replace(plain.options, **{name: 2})), None) for name in batch.LATER}
    assert found[0] == own
    assert len(others - {old}) == len(batch.LATER)


def test_pauses_are_part_of_a_key_where_a_text_has_any():
    items = [replace(ITEM, text=text) for text in ("A.", "A. [pause 1s] B.", "A.\n\nB.", "A. [pause] B.")]
    assert [batch._pauses(item) for item in items[:3]] == [{}, {"pauses": [0, 1000, None]}, {"pauses": [0, 500, None]}]
    assert [batch._pauses(replace(item, paragraph_ms=0)) for item in items[:3:2]] == [{}, {}]
    assert set(batch._pauses(items[3])) == {"pauses"}


def test_a_changed_option_does_anew_what_it_changes(first, model, tmp_path, converted):
    rows = jobs.rows(3)
    asked = job(converted, tmp_path / "out", rows)
    batch.run(asked, [model])
    before = jobs.outputs(asked.folder)
    rows[1]["cfg_rate"] = 0.3
    jobs.write(asked.manifest, rows)
    again = batch.run(asked, [model])
    assert (again.done, again.before) == (1, 2)
    after = jobs.outputs(asked.folder)
    assert [name for name in before if before[name] != after[name]] == ["item-001.wav"]
    again = batch.run(replace(asked, defaults=replace(DEFAULTS, seed=4)), [model])
    assert (again.done, again.before) == (3, 0)


def same_bytes(converted, model, folder: Path, rows: list[dict], expected: dict[str, bytes]) -> None:
    """The job shuffled, in two shards, and interrupted and resumed, beside what it was at first."""
    shuffled = random.Random(1).sample(rows, len(rows))
    asked = job(converted, folder / "shuffled", shuffled)
    batch.run(asked, [model])
    assert jobs.outputs(asked.folder) == expected

    asked = job(converted, folder / "shards", rows)
    summaries = [batch.run(replace(asked, shard=Shard(i, 2)), [model]) for i in range(2)]
    assert min(summary.items for summary in summaries) > 0
    assert sum(summary.items for summary in summaries) == len(rows)
    assert jobs.outputs(asked.folder) == expected
    items, left, failed = batch.merge_shards(asked)
    assert (items, len(left), len(failed)) == (len(rows), len(rows) - len(expected), len(rows) - len(expected))
    assert {entry["id"] for entry in journal(asked)} == {row["id"] for row in rows}

    asked = job(converted, folder / "resumed", rows)

    def stop(summary, _):
        if summary.done >= 1 and interrupts.pending() is None:
            os.kill(os.getpid(), 2)

    with pytest.raises(interrupts.Interrupted), interrupts.handled():
        batch.run(asked, [model], stop)
    assert 1 <= len(jobs.outputs(asked.folder)) < len(expected)
    done = {entry["output"] for entry in journal(asked) if entry["status"] == "done"}
    assert done == set(jobs.outputs(asked.folder))
    batch.run(asked, [model])
    assert jobs.outputs(asked.folder) == expected
    ids = Counter(entry["id"] for entry in journal(asked) if entry["status"] == "done")
    assert set(ids.values()) == {1}


DEVICES = """
import sys
from pathlib import Path, PurePosixPath
import jax
from indextts_jax import batch, devices, manifest
from indextts_jax.model import Model, load

manifest_path, folder, model_folder, voice = map(Path, sys.argv[1:])
assert len(jax.devices()) == 4
jax.config.update("jax_numpy_rank_promotion", "raise")
model = load(model_folder)
models = [Model(params, model.cfg, model.text) for params in devices.copies(model.params, jax.local_devices())]
places = {leaf.devices().pop() for one in models for leaf in jax.tree.leaves(one.params["gpt"])}
assert places == set(jax.devices())
defaults = manifest.Defaults(voice=voice, beams=1, max_codes=10, steps=1, seed=3)
for name, used in (("one", models[:1]), ("four", models)):
    (folder / name).mkdir(parents=True)
    print(batch.run(batch.Job(manifest_path, folder / name, model_folder, defaults, batch=4), used))
"""


def four_devices_are_as_one(converted, folder: Path, rows: list[dict], count: int) -> None:
    """Both in one process: XLA splits a CPU's loops by its threads, at least one for each device, and what remains of a
    loop is rounded otherwise."""
    manifest = jobs.write(folder / "devices.jsonl", rows)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, "-c", DEVICES, manifest, folder / "devices", converted, VOICE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, four = (jobs.outputs(folder / "devices" / name) for name in ("one", "four"))
    assert len(one) == count
    assert four == one


def test_the_same_bytes_shuffled_in_shards_and_resumed(first, converted, model, tmp_path):
    same_bytes(converted, model, tmp_path, jobs.rows(COUNT), first[2])


@pytest.mark.slow
def test_the_same_bytes_on_four_devices(converted, tmp_path):
    four_devices_are_as_one(converted, tmp_path, jobs.rows(COUNT), COUNT - len(FAIL))


@pytest.mark.slow
@pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="takes many minutes: set INDEXTTS_LONG to run it")
def test_two_hundred_items(converted, model, tmp_path):
    rows = jobs.rows(200)
    asked = job(converted, tmp_path / "first", rows)
    summary = batch.run(asked, [model])
    assert summary.failed == sum(row.get("voice") == "broken.wav" for row in rows)
    assert summary.done == 200 - summary.failed
    expected = jobs.outputs(asked.folder)
    same_bytes(converted, model, tmp_path, rows, expected)
    four_devices_are_as_one(converted, tmp_path, rows, len(expected))


def test_an_item_is_what_speak_says_alone(first, model):
    """Another number of rows: the same codes, and samples of one unit in the last place."""
    asked, _, _ = first
    for row in (jobs.rows(COUNT)[i] for i in (0, 2, 8)):
        [item] = [item for item in asked.items() if item.id == row["id"]]
        voice = model.listen(item.voice)
        analysis = model.text.analyse(item.text, item.segment_tokens)
        options = replace(item.options, batch=1)
        [speech] = pipeline.speak(model.params, model.cfg, [analysis], [voice], [item.seed], options)
        samples, _ = soundfile.read(asked.folder / item.output, dtype="int16")
        assert np.abs(samples.astype(int) - audio.to_int16(speech.samples)).max() <= 1
        [entry] = [entry for entry in journal(asked) if entry["id"] == item.id and entry["status"] == "done"][-1:]
        assert sum(len(segment.codes) for segment in speech.segments) == entry["codes"]


def test_everything_wrong_is_found_before_the_weights_are_loaded(converted, tmp_path):
    rows = [
        {"id": "a", "text": "Hello.", "voise": "x"},
        {"id": "a", "text": "Hello.", "temperature": -1},
        {"id": "c", "text": "...", "voice": "none.wav"},
        {"id": "d", "text": "!?"},
        {"id": "e", "text": "small test " * 150, "segment_tokens": 1000},
        {"id": "f", "text": "Hello."},
        {"id": "g", "text": "Hello.", "output": "../g.wav"},
    ]
    asked = job(converted, tmp_path / "out", rows)
    (asked.folder / "f.wav").write_bytes(b"precious")
    with pytest.raises(Refused) as caught:
        batch.check(asked)
    found = Counter(problem.line for problem in caught.value.problems)
    assert set(found) == {1, 2, 3, 4, 5, 6, 7}
    said = {problem.line: problem.message for problem in caught.value.problems}
    assert "write voice" in said[1]
    assert "nothing to pronounce" in said[4]
    assert "segment_tokens" in said[5]
    assert "add --force" in said[6]
    assert not asked.journal.exists()
    jobs.write(asked.manifest, rows[5:6])
    assert batch.check(replace(asked, force=True)).items == 1


def test_a_disk_that_is_full_for_a_while_is_waited_for(first, model, converted, tmp_path, monkeypatch, caplog):
    failing, write = [3], files.write_whole

    def full(path, content):
        if path.suffix == ".wav" and failing[0]:
            failing[0] -= 1
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise files.FileError(f"cannot write {path}: No space left on device") from error
        write(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    monkeypatch.setattr(batch.time, "sleep", lambda seconds: None)
    asked = job(converted, tmp_path / "out", jobs.rows(2))
    assert batch.run(asked, [model]).done == 2
    assert caplog.text.count("trying again in") == 3
    # A disk that stays full is the item's failure, and it is tried again by the next run.
    failing[0] = 10**6
    monkeypatch.setattr(batch, "PATIENCE", 0.0)
    changed = replace(asked, defaults=replace(DEFAULTS, seed=9))
    assert batch.run(changed, [model]).failed == 2
    failing[0] = 0
    assert batch.run(changed, [model]).done == 2


def test_a_journal_that_cannot_be_written_ends_the_run(model, converted, tmp_path, monkeypatch):
    asked = job(converted, tmp_path / "out", jobs.rows(2))
    with Journal.open(asked.journal), pytest.raises(Error, match="journal"):
        batch.run(asked, [model])  # another process has it
    monkeypatch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(files.FileError("journal: broken")))
    with pytest.raises(Error, match="journal: broken"):
        batch.run(asked, [model])


def test_what_a_device_finds_wrong_is_the_items_failure(model, converted, tmp_path):
    """Samples that are not finite fail their item, whatever stands beside it."""
    from indextts_jax import voice

    heard = model.listen(VOICE)
    bad = heard._replace(mel=np.full_like(heard.mel, np.nan))
    voice.save_voice(tmp_path / "bad.safetensors", bad)
    rows = [*jobs.rows(2), {"id": "bad", "text": "Hello world.", "voice": str(tmp_path / "bad.safetensors")}]
    summary = batch.run(asked := job(converted, tmp_path / "out", rows), [model])
    assert (summary.done, summary.failed) == (2, 1)
    [entry] = [entry for entry in journal(asked) if entry["status"] == "failed"]
    assert entry["id"] == "bad"
    assert "NaN" in entry["error"]


def test_outputs_are_joined_with_silences_and_subtitles(first, model, converted, tmp_path):
    rows = [row for i, row in enumerate(jobs.rows(5)) if i not in FAIL]
    whole, srt = tmp_path / "whole.flac", tmp_path / "whole.srt"
    asked = job(converted, tmp_path / "out", rows, kind="flac", joined=whole, subtitles=(srt,), rate=16000)
    with pytest.raises(Error, match="5 items are not done"):
        batch.join_outputs(asked)
    batch.run(asked, [model])
    seconds = batch.join_outputs(asked)
    parts = [soundfile.read(asked.folder / f"{row['id']}.flac")[0] for row in rows]
    expected = np.concatenate(
        [np.concatenate([part, np.zeros(16 * row["silence_after_ms"])]) for part, row in zip(parts, rows, strict=True)]
    )
    samples, rate = soundfile.read(whole)
    assert rate == 16000
    np.testing.assert_array_equal(samples, expected)
    assert seconds == len(samples) / rate
    lines = srt.read_text().splitlines()
    assert lines[:3] == ["1", f"00:00:00,000 --> 00:00:00,{round(len(parts[0]) / 16):03d}", rows[0]["text"]]
    assert lines.count("") == len(rows)


def test_the_command_line(converted, tmp_path, capsys):
    manifest = jobs.write(tmp_path / "m.jsonl", [*jobs.rows(2), jobs.rows(COUNT)[min(FAIL)]])
    options = ("--voice", VOICE, "--beams", 1, "--max-codes", 10, "--steps", 1, "--seed", 3, "--batch", 4)

    def run(*more) -> tuple[int, str, str]:
        command = ("batch", manifest, "--model", converted, "--output-dir", tmp_path / "out", *options, *more)
        status = cli.main([str(argument) for argument in command])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    status, out, _ = run("--dry-run")
    assert status == 0
    assert out.startswith("3 items (0 of them done), 3 voices; to be spoken: 3 segments, about")
    assert not (tmp_path / "out").exists()
    status, out, err = run()
    assert status == 1
    assert "2 items done, 1 failed" in out
    assert "1 items have failed and 0 are left" in err
    status, out, err = run("--limit", 2, "--concat", tmp_path / "all.wav", "--srt", tmp_path / "all.srt")
    assert status == 0, err
    assert "0 items done, 2 were done before" in out
    assert (tmp_path / "all.srt").exists()
    status, _, err = run("--shard", "0/2", "--concat", tmp_path / "more.wav")
    assert (status, "needs all items" in err) == (2, True)
    status, _, err = run("--merge")
    assert (status, "holds no journals of shards" in err) == (1, True)
    manifest.write_text('{"id": "x"}\n')
    status, _, err = run()
    assert status == 2
    assert f"{manifest}:1: " in err
    assert "nothing was begun" in err
    manifest.unlink()
    assert run()[0] == 2


def test_shapes_are_fixed(model, converted, tmp_path, monkeypatch):
    """What makes bytes equal: a job has the scheduler fix its shapes."""
    asked, fixed, spoken = job(converted, tmp_path / "out", jobs.rows(1)), [], scheduling.run
    monkeypatch.setattr(scheduling, "run", lambda *inputs, **more: fixed.append(inputs[4]) or spoken(*inputs, **more))
    batch.run(asked, [model])
    assert fixed == [True]
