"""Every loss can be brought to nearly zero on one batch, and a batch has the gradient of its rows. Parity:
test_train_parity.py."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax.models import repcodec
from indextts_jax.models.discriminators import DiscriminatorsConfig
from indextts_jax.train import losses
from tests.small import CONFIG, normal, parameters

pytestmark = pytest.mark.whole

KEY = jax.random.key(0)
DISCRIMINATORS = DiscriminatorsConfig((2, 3), (4, 8), 5, (3, 1), (0, 1), (4, 8), (15, 5), (2, 1), (1, 4))


class Case(NamedTuple):
    loss: Callable[[Any, Any], losses.Loss]  # of parameters and batch
    params: Any
    batch: Any
    weights: np.ndarray  # of the rows in the loss
    steps: int
    least: float  # what the loss comes down to, as a fraction of what it was


LENGTHS = np.array([11, 7], np.int32)


def frames(seed: int, channels: int, lengths: np.ndarray = LENGTHS) -> np.ndarray:
    """Random frames [B, T, C], NaN past each row's own."""
    x = normal(seed, len(lengths), lengths.max(), channels)
    return np.where(np.arange(x.shape[1])[None, :, None] < lengths[:, None, None], x, np.float32(np.nan))


def integers(seed: int, least: int, most: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(least, most, (2, length)).astype(np.int32)


def networks(*names: str) -> Any:
    return {name: parameters(name, getattr(CONFIG, name)) for name in names}


def dense(seed: int, inputs: int, outputs: int) -> Any:
    return {"kernel": jnp.asarray(normal(seed, inputs, outputs)) * inputs**-0.5, "bias": jnp.zeros(outputs)}


def gpt_case() -> Case:
    short, recordings = np.array([5, 2], np.int32), np.array([9, 7], np.int32)
    batch = losses.GPTBatch(
        integers(0, 2, 50, 5), short, integers(1, 0, 20, 5), short, frames(2, 12, recordings), recordings,
        frames(3, 12, recordings[::-1]), recordings[::-1],
    )  # fmt: skip
    params = networks("gpt", "conditioner") | {"text_head": dense(4, CONFIG.gpt.width, CONFIG.gpt.text_vocabulary)}
    return Case(partial(losses.gpt, cfg=CONFIG, key=KEY), params, batch, short + 1, 150, 0.02)


def flow_case(content: float = 0.0) -> Case:
    codes = np.array([6, 4], np.int32)
    batch = losses.FlowBatch(integers(0, 0, 20, 6), codes, frames(1, 16, codes), frames(2, 8), LENGTHS, normal(3, 2, 6))
    draw = losses.FlowDraw(
        np.array([0.3, 0.8], np.float32), normal(4, 2, 11, 8), np.array([2, 1], np.int32), np.array([False, True])
    )

    def loss(params: Any, batch: Any) -> losses.Loss:
        return losses.flow_given(params, CONFIG, batch[0], *batch[1], content)

    # 2 codes are 3 frames of a prompt, 1 is 1
    params = networks("s2mel", "repcodec") | {"mel_head": dense(5, CONFIG.s2mel.content, 8)}
    return Case(loss, params, (batch, draw), np.array([8, 6]), 800, 0.1)


def vocoder_batch() -> losses.VocoderBatch:
    samples = np.sin(np.arange(88, dtype=np.float32).reshape(2, 44, 1) / 3)
    samples = np.where(np.isnan(frames(0, 1, 4 * LENGTHS)), np.float32(np.nan), 0.3 * samples)
    return losses.VocoderBatch(frames(1, 8), samples[:, :, 0], LENGTHS)


def generator() -> Any:
    params = networks("bigvgan")
    params["bigvgan"]["out"]["kernel"] *= 0.1  # within ±1: what is clipped has no gradient
    return params


def vocoder_case() -> Case:
    return Case(partial(losses.vocoder, cfg=CONFIG, key=KEY), generator(), vocoder_batch(), LENGTHS, 400, 0.05)


def discriminator_case() -> Case:
    params = generator() | {"discriminators": parameters("discriminators", DISCRIMINATORS)}
    loss = partial(losses.discriminator, cfg=CONFIG, key=KEY, networks=DISCRIMINATORS)
    return Case(loss, params, vocoder_batch(), LENGTHS, 150, 0.05)


def codec_case() -> Case:
    decoder = parameters("repcodec", CONFIG.repcodec, seed=1)["encoder"]  # they have one form
    params = networks("repcodec") | {"codec_decoder": decoder}
    batch = losses.CodecBatch(frames(0, 12), LENGTHS)
    return Case(partial(losses.codec, cfg=CONFIG, key=KEY), params, batch, LENGTHS, 300, 0.05)


def encoder_case() -> Case:
    characters, many = np.array([[1, 2, 2, 3], [4, 1, 0, 0]], np.int32), np.array([4, 2], np.int32)
    seen = np.arange(11)[None] < LENGTHS[:, None]
    batch = losses.EncoderBatch(frames(0, 160), seen, LENGTHS, characters, many)
    params = networks("w2vbert") | {"ctc_head": dense(1, 12, 5)}
    return Case(partial(losses.encoder, cfg=CONFIG, key=KEY), params, batch, many, 100, 0.05)


def speaker_case() -> Case:
    params = networks("campplus") | {"speakers": jnp.asarray(normal(1, 3, 6))}
    batch = losses.SpeakerBatch(frames(2, 80), LENGTHS, np.array([2, 0], np.int32))
    return Case(partial(losses.speaker, cfg=CONFIG, key=KEY), params, batch, np.array([1, 1]), 60, 0.02)


CASES = {
    "gpt": gpt_case, "flow": flow_case, "flow_content": partial(flow_case, 0.5), "vocoder": vocoder_case,
    "discriminator": discriminator_case,
    "codec": codec_case, "encoder": encoder_case, "speaker": speaker_case,
}  # fmt: skip


@cache
def compiled(name: str) -> tuple[Case, Any]:
    """A case, and its program: parameters, optimiser and batch -> the loss, its gradients and what a step makes."""
    case = CASES[name]()
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, case.steps))

    def step(params: Any, state: Any, batch: Any) -> Any:
        state = optimiser.init(params) if state is None else state
        found, gradients = jax.value_and_grad(lambda params: case.loss(params, batch=batch), has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # in which optax counts its steps
            updates, state = optimiser.update(gradients, state, params)
        return found, gradients, optax.apply_updates(params, updates), state

    return case, jax.jit(step)


@pytest.mark.parametrize("name", CASES)
def test_one_batch_is_learnt(name):
    case, step = compiled(name)
    params, state, first = case.params, None, None
    for _ in range(case.steps):
        (loss, _), _, params, state = step(params, state, case.batch)
        first = loss if first is None else first
    assert first is not None
    assert 0 <= float(loss) <= case.least * float(first)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_rows(name):
    """Loss and gradient are the means of those of the rows, by length. Padding, NaN and any codes, has no part."""
    case, step = compiled(name)

    def run(batch: Any) -> Any:
        (loss, _), gradient, *_ = step(case.params, None, batch)
        return jax.tree.map(np.asarray, {"loss": loss, **gradient})

    def twice(row: int) -> Any:
        return jax.tree.map(lambda array: np.stack([array[row]] * 2), case.batch)

    share = (case.weights / case.weights.sum()).astype(np.float32)
    rows = [run(twice(row)) for row in range(2)]
    expected = jax.tree.map(lambda a, b: share[0] * a + share[1] * b, *rows)
    scale = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))

    def compare(path: Any, ours: Any, theirs: Any) -> None:
        assert np.linalg.norm(ours - theirs) <= TOLERANCE["block"] * (np.linalg.norm(theirs) + 1e-2 * scale), path

    jax.tree_util.tree_map_with_path(compare, run(case.batch), expected)


def test_draws_of_the_flow_do_not_depend_on_padding():
    (batch, _), key = flow_case().batch, jax.random.key(3)
    draw = jax.jit(partial(losses.flow_draw, CONFIG))
    few = draw(batch, key)
    wide = batch._replace(mel=np.pad(batch.mel, ((0, 1), (0, 4), (0, 0))), code_lengths=np.array([6, 4, 3], np.int32))
    many = draw(wide, key)
    for ours, theirs in zip(few, many, strict=True):
        np.testing.assert_array_equal(ours, theirs[:2, :11] if ours.ndim > 1 else theirs[:2])


def test_draws_of_the_flow_are_as_said():
    """Of 2000 rows: a prompt in nine tenths, shorter than the row, conditions in nine tenths."""
    rows, lengths = 2000, np.full(2000, 5, np.int32)
    batch = losses.FlowBatch(*[np.zeros(0)] * 3, np.zeros((rows, 1, 8)), lengths, np.zeros(0))._replace(
        code_lengths=lengths
    )
    draw = jax.jit(partial(losses.flow_draw, CONFIG))(batch, KEY)
    assert abs(np.mean(draw.dropped) - losses.DROPPED) <= 0.02
    # Of the others a fifth draws no code
    assert abs(np.mean(draw.prompt_codes == 0) - (0.1 + 0.9 / 5)) <= 0.03
    assert set(np.asarray(draw.prompt_codes)) == {0, 1, 2, 3, 4}
    assert 0 <= draw.t.min() < 0.01
    assert 0.99 < draw.t.max() < 1


def test_short_prompts_and_early_times_are_drawn_where_asked_for():
    rows = 2000
    batch = losses.FlowBatch(*[np.zeros(0)] * 3, np.zeros((rows, 1, 8)), np.zeros(0), np.zeros(0))
    batch = batch._replace(code_lengths=np.full(rows, 10, np.int32))
    draw = jax.jit(partial(losses.flow_draw, CONFIG, early=2.0, prompt=0.4))(batch, KEY)
    assert set(np.asarray(draw.prompt_codes)) == {0, 1, 2, 3}
    assert abs(np.mean(draw.t < 0.25) - 0.5) <= 0.03


def test_codes_are_corrupted_as_said():
    """Of each row another part, at most half; by others of all codes; whatever the padding."""
    codes = np.full((2000, 40), 7, np.int32)
    made = np.asarray(losses.corrupted(KEY, codes, 20, 0.5))
    part = (made != 7).mean(axis=1)
    assert abs(part.mean() - 0.25 * 19 / 20) <= 0.01
    assert (part < 0.05).mean() > 0.05  # some rows are nearly whole
    assert part.max() < 0.8
    assert set(made.ravel()) == set(range(20))
    np.testing.assert_array_equal(losses.corrupted(KEY, codes[:3, :30], 20, 0.5), made[:3, :30])


def test_the_gpt_learns_the_codes_as_they_are_from_corrupted_ones(monkeypatch):
    """What it is fed is corrupted; the codes that it is to predict, and the text before them, are not."""
    case, fed = gpt_case(), []
    _, whole = case.loss(case.params, batch=case.batch)
    monkeypatch.setattr(losses, "corrupted", lambda key, codes, count, most: fed.append((count, most)) or codes * 0 + 3)
    _, parts = case.loss(case.params, batch=case.batch, corrupt=0.5)
    assert fed == [(CONFIG.gpt.start_code, 0.5)]
    assert parts["text_loss"] == whole["text_loss"]
    assert parts["code_loss"] != whole["code_loss"]
    threes = case.batch._replace(codes=np.full_like(case.batch.codes, 3))
    assert case.loss(case.params, batch=threes)[1]["code_loss"] != parts["code_loss"]


def test_a_codebook_follows_the_outputs_that_have_its_codes():
    case = codec_case()
    average = losses.averaged(case.params["repcodec"]["quantizer"]["codebook"]["embedding"])

    @jax.jit
    def run(params: Any) -> Any:
        at_once = losses.moved(params, CONFIG, case.batch, average, decay=0.0, smoothing=0.0)
        found = repcodec.quantize_straight(params["repcodec"], CONFIG.repcodec, *case.batch)
        return found, at_once, losses.moved(params, CONFIG, case.batch, average)

    found, (codebook, _), (slow, state) = jax.tree.map(np.asarray, run(case.params))
    inside = np.arange(11)[None] < LENGTHS[:, None]
    codes, outputs = found.codes[inside], found.projected[inside]
    for code in set(codes):
        assert relative(codebook[code], outputs[codes == code].mean(axis=0)) <= TOLERANCE["block"]
    unused = set(range(CONFIG.repcodec.codes)) - set(codes)
    assert np.isfinite(slow).all()
    for code in unused:  # it stays where it is
        assert relative(slow[code], average.sums[code]) <= 1e-3
        assert state.counts[code] == np.float32(0.99)


def test_generator_and_discriminators_pull_apart():
    """What a generator gains of the discriminators is what they lose, and each side moves its own parameters alone."""
    case = discriminator_case()

    def adversarial(params: Any) -> losses.Loss:
        return losses.vocoder_adversarial(params, CONFIG, case.batch, KEY, DISCRIMINATORS)

    (loss, parts), gradient = jax.jit(jax.value_and_grad(adversarial, has_aux=True))(case.params)
    total = parts["adversarial_loss"] + 2 * parts["matching_loss"] + 45 * parts["mel_loss"]
    assert relative(loss, total) <= 1e-6
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["discriminators"]))
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient["bigvgan"]))
    _, step = compiled("discriminator")
    _, gradient, *_ = step(case.params, None, case.batch)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["bigvgan"]))
