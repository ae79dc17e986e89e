"""Rows of a data set become what a batch job makes of them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMPILED

from debug.golden import FIXTURES
from indextts_jax import batch
from indextts_jax.errors import Error
from indextts_jax.manifest import Defaults, item_seed
from indextts_jax.ray import Speaker

VOICE = FIXTURES / "audio" / "voice_24k.wav"
QUICK = {"max_codes": 8, "steps": 1, "greedy": True}
HAPPY = [0.7, 0, 0, 0, 0, 0, 0, 0.1]


@pytest.fixture(scope="module", autouse=True)
def cache():
    """Workers and this process share compiled programs."""
    before = os.environ.get("INDEXTTS_CACHE")
    os.environ["INDEXTTS_CACHE"] = str(COMPILED)
    yield
    os.environ.pop("INDEXTTS_CACHE")
    if before is not None:
        os.environ["INDEXTTS_CACHE"] = before


def job(rows: list[dict[str, Any]], folder: Path, converted: Path, model: Any) -> dict[str, bytes]:
    """What a batch job writes: id -> bytes."""
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job").mkdir()
    batch.run(batch.Job(manifest, folder / "job", converted, Defaults(voice=VOICE, **QUICK), batch=2), [model])
    return {path.stem: path.read_bytes() for path in (folder / "job").glob("*.wav")}


@pytest.mark.whole
def test_rows_become_the_files_of_a_job(converted, model, tmp_path):
    rows = [
        {"id": "a", "text": "Hello."},
        {"id": "b", "text": "Hello.", "seed": 5},
        {"id": "c", "text": " "},
        {"id": "d", "text": "It rains.", "emotion_vector": HAPPY},
    ]
    expected = job(rows, tmp_path, converted, model)
    speaker = Speaker(converted, voice=VOICE, batch=2, **QUICK)
    columns = {
        "id": np.array(["a", "b", "c", "d", None], object),
        "text": np.array(["Hello.", "Hello.", " ", "It rains.", "No id."], object),
        "seed": np.array([np.nan, 5, np.nan, np.nan, np.nan]),
        "emotion_vector": np.array([None, None, None, np.array(HAPPY), None], object),
    }
    found = speaker(columns)
    assert list(found["id"]) == ["a", "b", "c", "d", None]
    assert dict(zip(found["id"], found["audio"], strict=True)) == expected | {"c": None, None: None}
    assert list(found["seed"][:2]) == [item_seed(0, "a"), 5]
    assert np.isnan(found["seconds"]).tolist() == [False, False, True, False, True]
    assert [error and error.split(";")[0] for error in found["error"]] == [
        None, None, "text is empty", None, "there is no id",
    ]  # fmt: skip
    again = speaker({name: column[[3]] for name, column in columns.items()})  # a batch that is tried again
    assert again["audio"][0] == expected["d"]
    files = Speaker(converted, voice=VOICE, batch=2, output_dir=tmp_path / "out", **QUICK)
    assert Path(files({"id": ["a"], "text": ["Hello."]})["output"][0]).read_bytes() == expected["a"]


def test_what_no_row_could_have_is_refused(converted):
    for wrong in ({"format": "mp3"}, {"steps": 0}, {"voice": "nowhere.wav"}, {"emotion": [1, 2]}):
        with pytest.raises(Error):
            Speaker(converted, **wrong)
    with pytest.raises(TypeError):
        Speaker(converted, stepz=1)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(converted, model, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'indextts-jax[ray]'")
    pytest.importorskip("ray.data", reason="ray.data lacks something: pip install 'indextts-jax[ray]'")
    rows = [{"id": f"i{i:02}", "text": ("Hello.", "It rains.")[i % 2]} for i in range(12)] + [{"id": "x", "text": " "}]
    begun = tmp_path / "begun"
    begun.mkdir()

    class Watched(Speaker):
        """Says which process has begun how many batches; the first one to begin its second is killed in it."""

        def __call__(self, rows: Any) -> Any:
            (begun / f"{os.getpid()}-{time.time_ns()}").touch()
            mine = len(list(begun.glob(f"{os.getpid()}-*")))
            if mine == 2 and not (begun / "killed").exists():
                (begun / "killed").write_text(str(os.getpid()))
                found = super().__call__({name: column[:1] for name, column in rows.items()})
                assert len(found["audio"]) == 1
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(rows)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        arguments = {"model": str(converted), "voice": str(VOICE), "batch": 2, **QUICK}
        data = ray.data.from_items(rows).map_batches(
            Watched, fn_constructor_kwargs=arguments, batch_size=2, concurrency=2
        )
        found = {row["id"]: row for row in data.take_all()}
    finally:
        ray.shutdown()
    processes = {path.name.split("-")[0] for path in begun.glob("*-*")}
    assert (begun / "killed").read_text() in processes
    assert len(processes) >= 2
    assert len(found) == len(rows)
    expected = job(rows, tmp_path, converted, model)
    assert {id: row["audio"] for id, row in found.items() if row["audio"] is not None} == expected
    assert [id for id, row in found.items() if row["error"]] == ["x"]
