"""Shards: every item belongs to one of them, and the surroundings say which one this process does."""

import pytest

from indextts_jax import shards
from indextts_jax.errors import Error
from indextts_jax.shards import Shard


def test_every_item_belongs_to_one_shard():
    ids = [f"item-{i}" for i in range(4000)] + ["声音", ""]
    for count in (1, 2, 7, 8):
        held = [[id for id in ids if Shard(i, count).holds(id)] for i in range(count)]
        assert sorted(id for part in held for id in part) == sorted(ids)
        assert max(map(len, held)) < 1.2 * len(ids) / count


def test_where_an_item_belongs_never_changes():
    """Another hash would do finished items again elsewhere."""
    assert [next(i for i in range(8) if Shard(i, 8).holds(id)) for id in ("a", "b", "line-000001", "声音")] == [
        2, 2, 6, 5
    ]  # fmt: skip


def test_parse():
    assert shards.parse("2/8") == Shard(2, 8)
    assert shards.parse(" 0/1 ") == Shard()
    assert str(shards.parse("07/08")) == "7/8"
    for text in ("8/8", "1/1"):
        with pytest.raises(Error, match=rf"^shard {text}: of . shards, give one from 0 to "):
            shards.parse(text)
    for text in ("", "1", "-1/2", "1/0", "0/0", "a/2", "1/2/3", "٣/٨", "1.0/2", "1 / 2", "0/9999999999"):
        with pytest.raises(Error, match=r"^shard '.*': write i/n, for example 0/8 to 7/8"):
            shards.parse(text)


def array(index: int, first: int, count: int, step: int = 1) -> dict[str, str]:
    names = {"ID": index, "MIN": first, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("environ", "count", "expected"),
    [
        ({}, None, Shard(0, 1)),
        ({}, 1, Shard(0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None, Shard(0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, None, Shard(3, 8)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, 8, Shard(3, 8)),
        ({"SLURM_NTASKS": "8"}, None, Shard(0, 1)),  # a shell within an allocation: nothing else runs
        (array(0, 0, 4), None, Shard(0, 4)),
        (array(4, 1, 4), None, Shard(3, 4)),
        (array(5, 1, 4, 2), None, Shard(2, 4)),
        (array(7, 7, 1), 8, Shard(7, 8)),  # one task of the array, submitted again
        (array(2, 1, 4) | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, None, Shard(3, 8)),
        (array(2, 2, 1) | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 8, Shard(5, 8)),
        ({"JOB_COMPLETION_INDEX": "2"}, 8, Shard(2, 8)),
        ({"JOB_COMPLETION_INDEX": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, None, Shard(1, 4)),
    ],
)
def test_the_surroundings_say_which_shard_this_is(environ: dict[str, str], count: int | None, expected: Shard):
    assert shards.from_environment(environ, count) == expected


@pytest.mark.parametrize(
    ("environ", "count", "message"),
    [
        ({"SLURM_PROCID": "8", "SLURM_NTASKS": "8"}, None, "SLURM_PROCID is 8, which is none of 8 shards"),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "8"}, None, "SLURM_PROCID is 'x', but must be a whole number"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": ""}, None, "SLURM_NTASKS is '', but must be a whole number"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "0"}, None, "SLURM_PROCID is 0, which is none of 0 shards"),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, 4, "are to be 4 shards, but SLURM_NTASKS says 8"),
        ({}, 4, "are to be 4 shards, but SLURM_NTASKS says 1: say which this is with --shard i/n"),
        (array(7, 1, 3), None, "SLURM_ARRAY_TASK_ID is 7, which is none of 3 shards"),  # --array=1,2,7
        (array(0, 1, 3), None, "SLURM_ARRAY_TASK_ID is 0, which is none of 3 shards"),
        (array(2, 1, 3, 2), None, "SLURM_ARRAY_TASK_ID is 2, which is none of 3 shards"),
        (array(8, 8, 1), 8, "SLURM_ARRAY_TASK_ID is 8, which is none of 8 shards"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, None, "SLURM_ARRAY_TASK_MIN is '', but must be a whole number"),
        ({"JOB_COMPLETION_INDEX": "2"}, None, "JOB_COMPLETION_INDEX is 2, but says not of how many: give --shard "),
        ({"JOB_COMPLETION_INDEX": "8"}, 8, "JOB_COMPLETION_INDEX is 8, which is none of 8 shards"),
        ({"JOB_COMPLETION_INDEX": "-1"}, 8, "JOB_COMPLETION_INDEX is '-1', but must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_named(environ: dict[str, str], count: int | None, message: str):
    with pytest.raises(Error, match=message):
        shards.from_environment(environ, count)
