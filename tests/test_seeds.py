"""Seeds and keys: which are taken, which are refused, and that none of them meet."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from indextts_jax import seeds


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_small_seeds_are_jaxs_own(seed):
    assert data(seeds.key(seed)) == data(jax.random.key(seed, impl=seeds.IMPLEMENTATION))


def test_large_seeds_differ_from_small_ones():
    """JAX folds a seed modulo 2**32 unless 64-bit integers are enabled: there it gives what ours gives."""
    assert data(jax.random.key(2**32 + 5)) == data(jax.random.key(5))
    for seed in (2**32, 2**32 + 5, 2**63 + 1, 2**64 - 1):
        assert data(seeds.key(seed)) == (seed >> 32, seed % 2**32)
    with jax.enable_x64(True):
        assert data(jax.random.key(2**40 + 3)) == data(seeds.key(2**40 + 3))


def test_keys_are_taken_as_they_are():
    key = jax.random.key(3)
    assert seeds.key(key) is key
    assert data(seeds.key(np.int32(7))) == data(jax.random.key(7))
    np.testing.assert_array_equal(seeds.data(seeds.wrap(np.arange(6, dtype=np.uint32).reshape(3, 2))).ravel(), range(6))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (-1, "the seed is -1, but must lie between"),
        (2**64, "must lie between 0 and"),
        (1.5, "neither a seed nor a typed key"),
        (np.zeros(2, np.uint32), "neither a seed nor a typed key"),
        (jax.random.split(jax.random.key(0)), "one key is needed"),
        (jax.random.key(0, impl="rbg"), "implementation rbg, whose draws depend on the batch"),
    ],
)
def test_what_is_no_seed_is_refused(bad, why):
    with pytest.raises(ValueError, match=why):
        seeds.key(bad)


def test_keys_of_attempts_are_no_keys_of_steps():
    key = jax.random.key(4)
    steps = {data(jax.random.fold_in(key, n)) for n in range(2000)}
    attempts = {data(seeds.of_attempt(key, n)) for n in range(100)}
    assert len(steps) == 2000
    assert len(attempts) == 100
    assert not steps & attempts
    assert data(key) in attempts  # the first
    assert data(key) not in steps


SCRIPT = """
import sys
import jax
import numpy as np
from indextts_jax import drawing, seeds
from indextts_jax.decoding import Sampling
from indextts_jax.models import gpt, s2mel
from tests.small import GPT, normal, parameters

def drawn(rows):
    prefix = gpt.prefix(params, GPT, normal(1, 3, 4, 16)[rows], normal(2, 3, 16)[rows], texts[rows], lengths[rows])
    keys = [[5, 2**32 + 5, jax.random.key(7, impl=seeds.IMPLEMENTATION)][i] for i in rows]
    yield drawing.generate(params, GPT, prefix, keys, Sampling(), 12).codes
    yield np.asarray(s2mel.noise(seeds.wrap(np.stack([seeds.data(seeds.key(key)) for key in keys])), 5, 3))

params, texts, lengths = parameters("gpt", GPT), np.full((3, 5), 7, np.int32), np.array([5, 4, 3])
params["head"]["bias"] = params["head"]["bias"].at[GPT.stop_code].set(-50.0)
together = [*drawn([0, 1, 2])]
for i in range(3):
    for many, one in zip(together, drawn([i])):
        np.testing.assert_array_equal(many[i], one[0])
np.savez(sys.argv[1], *together)
"""


def test_draws_do_not_depend_on_jaxs_default(tmp_path):
    """With rbg as JAX's default, under which a row's draws would depend on its neighbours."""
    found = []
    for implementation in ("rbg", seeds.IMPLEMENTATION):
        out = tmp_path / f"{implementation}.npz"
        environment = {**os.environ, "JAX_DEFAULT_PRNG_IMPL": implementation}
        subprocess.run([sys.executable, "-c", SCRIPT, str(out)], env=environment, check=True)
        with np.load(out) as file:
            found.append(dict(file))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])
        assert len({row.tobytes() for row in array}) == 3
