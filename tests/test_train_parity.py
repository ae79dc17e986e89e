"""Losses and the gradient of every parameter equal autograd's on the reference's modules: debug/gradient_golden.py."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from debug.golden import TOLERANCE, golden, relative, sketch
from indextts_jax.config import read_yaml
from indextts_jax.convert import gpt as gpt_table
from indextts_jax.train import losses

pytestmark = pytest.mark.whole


def batch(kind: Any, arrays: dict[str, np.ndarray]) -> Any:
    return kind(**{name: jnp.asarray(arrays[f"batch.{name}"]) for name in kind._fields})


def compare(arrays: dict[str, np.ndarray], loss: Any, params: Any, level: str = "") -> None:
    """The loss, its parts, and all gradients of a golden file against those of `loss(params) -> (loss, parts)`.

    level: of this kernel of few numbers, what all taps of a channel have in common is allowed 2 % of the whole.
    """
    (value, parts), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative(value, arrays["loss"]) <= TOLERANCE["component"]
    for name in parts:
        if f"part.{name}" in arrays:
            assert relative(parts[name], arrays[f"part.{name}"]) <= TOLERANCE["component"], name
    found = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(gradients).items()}
    start, wrong = 0, []
    for name, norm in zip(arrays["names"].tolist(), arrays["norms"], strict=True):
        shape, ours = found[name].shape, sketch(found.pop(name))
        theirs, start = arrays["sketches"][start : start + ours.size], start + ours.size
        if name == level:
            assert np.linalg.norm(ours - theirs) <= 2e-2 * norm
            ours, theirs = (x.reshape(shape) - x.reshape(shape).mean(axis=0) for x in (ours, theirs))
        off = np.linalg.norm(ours - theirs) / max(norm, 1e-30)
        # What is zero on one side alone is off by all of it
        if not off <= TOLERANCE["component"]:
            wrong.append((name, off, norm))
    assert not wrong, sorted(wrong, key=lambda one: -one[1])
    assert start == arrays["sketches"].size
    assert not any(leaf.any() for leaf in found.values()), "a gradient that the reference lacks"


def test_gpt(tiny):
    """Row 0 at the code positions of the second pass, row 1 at those of decoding."""
    arrays = golden("gradients_gpt")
    tensors = gpt_table.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))
    kernel, bias = (tensors[f"text_head.{name}"].read() for name in ("weight", "bias"))
    params = {name: tiny.params(name) for name in ("gpt", "conditioner")}
    params["text_head"] = {"kernel": jnp.asarray(kernel.T), "bias": jnp.asarray(bias)}
    keys = map(jax.random.key, range(20))
    key = next(key for key in keys if losses.skipped(key, 2).tolist() == arrays["draw.skipped"].tolist())
    given = batch(losses.GPTBatch, arrays)
    compare(arrays, lambda params: losses.gpt(params, tiny.cfg, given, key, positions="both"), params)


def test_flow(tiny):
    """Rows with a prompt, without one, and without conditions."""
    arrays = golden("gradients_flow")
    params = {name: tiny.params(name) for name in ("s2mel", "repcodec")}
    given = batch(losses.FlowBatch, arrays)
    draw = batch(losses.FlowDraw, {name.replace("draw.", "batch."): array for name, array in arrays.items()})
    compare(arrays, lambda params: losses.flow_given(params, tiny.cfg, given, *draw), params)


@pytest.mark.slow
@pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="takes some minutes: set INDEXTTS_LONG to run it")
def test_vocoder(tiny):
    """The last kernel's level follows the sum of the loss's slopes over all samples, and so the quiet bins at 0 Hz.

    There the slope of the log is 1 / magnitude: an offset of 1e-7 in the samples moves that sum by 4 % in float64.
    """
    arrays = golden("gradients_vocoder")
    given = batch(losses.VocoderBatch, arrays)
    params = {"bigvgan": tiny.params("bigvgan")}
    level = "bigvgan/out/kernel"
    compare(arrays, lambda params: losses.vocoder(params, tiny.cfg, given, jax.random.key(0)), params, level)
