"""Random keys: threefry by name, whatever JAX's default is, and one tag per purpose.

Threefry alone draws for each row of a batch what it would draw for the row by itself. A key is either drawn from or
folded, never both:

    item, a seed or the caller's key
      segment i            fold_in(item, i)
        codes              fold_in(segment, CODES)
          attempt n >= 1   fold_in(codes, ATTEMPT + n); the first attempt has the key of the codes itself
            step n         fold_in(attempt, n), n < ATTEMPT: drawn from
        noise              fold_in(segment, NOISE)
          frame n          fold_in(noise, n): drawn from
"""

from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax.errors import Error

IMPLEMENTATION = "threefry2x32"
WORDS = 2  # uint32 of a key's data
CODES, NOISE = 0, 1  # purposes of a segment's key
ATTEMPT = 2**31  # beyond every step


def key(seed: Any) -> Array:
    """The typed key [] of a seed from 0 to 2**64 - 1, or the threefry key that it is already.

    Seeds below 2**32 give what `jax.random.key` gives, and larger ones what it gives with 64-bit integers enabled.
    Raises Error for other numbers, keys of another implementation and untyped keys.
    """
    if is_key(seed):
        _check(seed)
        if seed.ndim:
            raise Error(f"an array of {seed.shape} keys stands where one key is needed")
        return seed
    try:
        number = index(seed)
    except TypeError:
        raise Error(
            f"{type(seed).__name__} {seed!r} is neither a seed nor a typed key: give an integer or jax.random.key(seed)"
        ) from None
    if not 0 <= number < 2**64:
        raise Error(f"the seed is {number}, but must lie between 0 and 2**64 - 1")
    return wrap(np.array([number >> 32, number & 0xFFFFFFFF], np.uint32))


def of_attempt(key: Array, attempt: int) -> Array:
    """The key of a segment's codes when they are drawn for the n-th time, from 0: the first has the key itself."""
    return jax.random.fold_in(key, ATTEMPT + attempt) if attempt else key


def is_key(value: Any) -> bool:
    """Whether it is an array of typed keys."""
    return isinstance(value, Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def wrap(data: Any) -> Array:
    """Key data [..., WORDS] uint32 as typed keys."""
    return jax.random.wrap_key_data(data, impl=IMPLEMENTATION)


def data(keys: Array) -> Array:
    """The data [..., WORDS] uint32 of typed keys [...]. Raises Error for keys of another implementation."""
    if not is_key(keys):
        raise Error(f"keys are {keys!r}, not typed keys: make them with jax.random.key")
    _check(keys)
    return jax.random.key_data(keys)


def _check(keys: Array) -> None:
    if (found := str(jax.random.key_impl(keys))) != IMPLEMENTATION:
        raise Error(
            f"a key is of the implementation {found}, whose draws depend on the batch: give an integer seed, or "
            f"jax.random.key(seed, impl={IMPLEMENTATION!r})"
        )
