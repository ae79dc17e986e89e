"""Shards: which items of a job belong to this process, when several processes do it together."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from indextts_jax.errors import Error, short


@dataclass(frozen=True)
class Shard:
    """One part of a job: `index` of `count`, from 0. The whole job is Shard(0, 1)."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise Error(f"shard {self.index}/{self.count}: of {self.count} shards, give one from 0 to {self.count - 1}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, id: str) -> bool:
        """Whether an item belongs here: each id belongs to one shard, whatever else is in the manifest."""
        return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % self.count == self.index


def parse(text: str) -> Shard:
    """A shard as people write it: "i/n", i from 0 to n - 1. Raises Error."""
    if not (match := re.fullmatch(r"([0-9]{1,9})/(0*[1-9][0-9]{0,8})", text.strip())):
        raise Error(f"shard {short(text)}: write i/n, for example 0/8 to 7/8 for the eight shards of a job")
    return Shard(int(match[1]), int(match[2]))


def from_environment(environ: Mapping[str, str], count: int | None = None) -> Shard:
    """The shard that the surroundings of this process give it; the whole job where they say nothing.

    `count` is the number of shards, if it was given. From the first of these that is there:

    - a SLURM array: its tasks in order are the shards. With `count`, SLURM_ARRAY_TASK_ID itself is the index, so that
      a part of the array can be submitted again (without it, that part would divide the whole job among itself). Where
      `srun` starts several tasks in each, every one of them is a shard;
    - tasks that `srun` started: SLURM_PROCID of SLURM_NTASKS;
    - an indexed job of Kubernetes: JOB_COMPLETION_INDEX of `count`, which its pods are not told.

    Raises Error, naming the variable, for values that make no sense and for a `count` that does not agree.
    """
    shard, source = Shard(), "SLURM_NTASKS"
    if "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ:
        shard = _shard(environ, "SLURM_PROCID", _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_NTASKS"))
    if "SLURM_ARRAY_TASK_ID" in environ:
        source = "SLURM_ARRAY_TASK_ID"
        index = _number(environ, source)
        if count is not None:
            return _shard(environ, source, index * shard.count + shard.index, count)
        first, step = _number(environ, "SLURM_ARRAY_TASK_MIN"), _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
        place, rest = divmod(index - first, max(step, 1))
        array = _shard(environ, source, -1 if rest else place, _number(environ, "SLURM_ARRAY_TASK_COUNT"))
        return Shard(array.index * shard.count + shard.index, array.count * shard.count)
    if shard.count == 1 and "JOB_COMPLETION_INDEX" in environ:
        source = "JOB_COMPLETION_INDEX"
        if count is None:
            raise Error(
                f"{source} is {environ[source]}, but says not of how many: give --shard ${source}/N, where N is the "
                "number of completions of the job"
            )
        return _shard(environ, source, _number(environ, source), count)
    if count not in (None, shard.count):
        raise Error(
            f"there are to be {count} shards, but {source} says {shard.count}: say which this is with --shard i/n"
        )
    return shard


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name, default)
    if not re.fullmatch("[0-9]{1,9}", value):
        raise Error(f"{name} is {short(value)}, but must be a whole number: say which shard this is with --shard i/n")
    return int(value)


def _shard(environ: Mapping[str, str], name: str, index: int, count: int) -> Shard:
    if not 0 <= index < count:
        raise Error(
            f"{name} is {environ[name]}, which is none of {count} shards: say which this is with --shard i/n, or "
            "number them without gaps"
        )
    return Shard(index, count)
