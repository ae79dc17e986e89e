"""What a stopwatch says of programs: traced, loaded from the cache or compiled."""

import time

import jax
import jax.numpy as jnp

from indextts_jax.timing import Stopwatch


def test_a_second_time_is_loaded_and_not_compiled(tmp_path):
    def run() -> Stopwatch:
        jax.clear_caches()
        with Stopwatch() as watch:
            jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))
            time.sleep(0.2)
        return watch

    directory, least = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        first, second = run(), run()
    finally:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert first.programs == second.programs == second.fetched > first.fetched == 0
    assert first.compiling > 0 == first.loading
    assert second.loading > 0 == second.compiling
    for watch in (first, second):
        assert watch.tracing > 0
        assert watch.preparing <= watch.tracing + watch.loading + watch.compiling + 1e-6
        assert watch.seconds - watch.preparing >= 0.2
