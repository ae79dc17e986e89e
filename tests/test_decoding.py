"""Drawing codes: rules, distributions, batches; caches grow unseen. Parity of one row: test_validate.py."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from indextts_jax import buckets, decoding, drawing, seeds
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.models import gpt
from tests.marks import LONG
from tests.small import GPT, normal, parameters

GREEDY, SAMPLED = Sampling(beams=1, sample=False).of(GPT), Sampling(beams=1).of(GPT)


def with_stop_bias(params, cfg, bias):
    """The weights with which decoding stops by itself (the tiny ones have -20 there)."""
    head = params["head"]
    return {**params, "head": {**head, "bias": head["bias"].at[cfg.stop_code].set(bias)}}


candidates = jax.jit(decoding.candidates, static_argnames="cfg")


def test_sampled_candidates_follow_the_exact_distribution():
    """Chi-square over all sets of four that two beams of four codes can give, drawn without replacement."""
    cfg = gpt.GPTConfig(code_vocabulary=4, start_code=3, stop_code=2)
    sampling, n = Sampling(beams=2, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0), 20000
    logits, running = 0.7 * normal(5, 1, 2, 4), np.array([[-200.0, -200.4]], np.float32)
    p = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True) * np.exp(running[0, :, None] + 200)
    p = p[:, :3].reshape(-1) / p[:, :3].sum()  # the start code, the last, is never drawn
    expected: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(6), 4):
        left, chance = 1.0, 1.0
        for i in order:
            chance, left = chance * p[i] / left, left - p[i]
        expected[frozenset(order)] = expected.get(frozenset(order), 0.0) + chance
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) == 15
    rows = [np.repeat(a, n, 0) for a in (logits, logits > 99, running)]
    scores, beams, codes = map(np.asarray, candidates(*rows, jax.random.split(jax.random.key(1), n), sampling, cfg))
    assert (np.diff(scores) <= 0).all()
    drawn = Counter(map(frozenset, (beams * 3 + codes).tolist()))
    assert set(drawn) <= set(expected)
    chi = sum((drawn[key] - n * chance) ** 2 / (n * chance) for key, chance in expected.items())
    assert chi < 14 + 4 * np.sqrt(28)
    # The order of drawing is forgotten: the scores are those of the codes.
    exact = jax.nn.log_softmax(logits)[0] + running[0][:, None]
    np.testing.assert_allclose(scores[:5], np.asarray(exact)[beams, codes][:5], rtol=1e-6)


class Bigram:
    """A model of six codes whose next code depends on the last alone, in numpy: what beams are checked against."""

    def __init__(self, seed):
        self.table = 2 * normal(seed, 6, 6)
        self.cfg = gpt.GPTConfig(code_vocabulary=6, start_code=4, stop_code=5, code_positions=15)


def beams_by_hand(table, cfg, beams, limit, penalty, kept_codes=None, rng=None):
    """Beam search as transformers does it, written with lists: -> (codes, score, whether it stopped).

    With kept_codes: as it samples where so few codes of each beam are possible that all continuations are drawn. What
    is missing from 2 * beams is filled up with impossible codes of the first beam, the stop code or others.
    """
    running: list[tuple[float, list[int]]] = [(0.0, [])] + [(-1e9, [])] * (beams - 1)
    kept: list[tuple[float, list[int], bool]] = []

    def enter(score, codes, stopped):
        if len(kept) < beams or score > min(kept)[0]:
            kept.append((score, codes, stopped))
            if len(kept) > beams:
                kept.remove(min(kept, key=lambda h: h[0]))

    for step in range(1, limit + 1):
        found = []
        for score, codes in running:
            logits = table[codes[-1] if codes else cfg.start_code].astype(np.float64)
            scores = logits - np.log(np.exp(logits).sum())
            allowed = [code for code in range(cfg.code_vocabulary) if code != cfg.start_code]
            if kept_codes is not None:
                if score < -5e8:
                    continue
                allowed = sorted(allowed, key=lambda code: -scores[code])[:kept_codes]
            found += [(score + scores[code], codes, code) for code in allowed]
        if kept_codes is not None:
            taken = {code for _, codes, code in found if codes == running[0][1]}
            impossible = [code for code in range(cfg.code_vocabulary) if code not in taken and code != cfg.start_code]
            fill = rng.choice(impossible, max(0, 2 * beams - len(found)))
            found += [(-1e9, running[0][1], int(code)) for code in fill]
        found = sorted(found, key=lambda f: -f[0])[: 2 * beams]
        running = []
        for rank, (score, codes, code) in enumerate(found):
            if code == cfg.stop_code:
                if rank < beams:
                    enter(score / step**penalty, codes, True)
            elif len(running) < beams:
                running.append((score, [*codes, code]))
        if len(kept) == beams and min(kept)[0] >= found[0][0] / step**penalty:
            break
    else:
        for score, codes in running:
            enter(score / limit**penalty, codes, False)
    score, codes, stopped = max(kept, key=lambda h: h[0])
    return codes, score, stopped


decide = jax.jit(decoding._decide, static_argnames="cfg")


def beams_of_ours(model, sampling, limit):
    """What our rules make of a small model: -> (codes, score, whether it stopped)."""
    cfg, beams = model.cfg, sampling.beams
    state = decoding.empty(cfg, sampling, 1, 1, np.float32)._replace(caches=(), done=np.array([False]))
    state = state._replace(limits=np.array([limit], np.int32))
    state = state._replace(scores=np.where(np.arange(beams) == 0, 0.0, -1e9)[None].astype(np.float32))
    last = np.full(beams, cfg.start_code)
    while not state.done[0]:
        state, drawn = decide(state, model.table[last][None], cfg)
        at, last = int(state.counts[0]) - 1, np.asarray(drawn.codes[0])
        pairs = zip(state.trace, drawn, strict=True)
        state = state._replace(trace=decoding.Trace(*(old.at[:, at].set(new) for old, new in pairs)))
    won = row(decoding.winners(cfg, state), 0)
    return np.asarray(won.codes)[: int(won.lengths)], float(won.scores), bool(won.stopped)


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_follow_the_rules(beams):
    """Many small models, limits and length penalties, against beam search written by hand."""
    sampling = Sampling(beams=beams, sample=False, repetition_penalty=1.0)
    outcomes = Counter()
    for seed in range(30):
        model, limit, penalty = Bigram(seed), (12, 5, 3)[seed % 3], (0.0, 1.0, 2.0, -1.0)[seed % 4]
        codes, score, ended = beams_of_ours(model, replace(sampling, length_penalty=penalty), limit)
        expected, best, stopped = beams_by_hand(model.table, model.cfg, beams, limit, penalty)
        assert codes.tolist() == expected
        assert score == pytest.approx(best, rel=1e-5)
        assert (len(codes) < limit) == ended == stopped
        outcomes[stopped] += 1
    assert min(outcomes[True], outcomes[False]) >= 3


@pytest.mark.parametrize("beams", [2, 3])
def test_too_few_possible_continuations_change_no_result(beams):
    """Sampled with two possible codes per beam, so that all are drawn and the missing ones are filled up.

    The reference fills up with impossible codes, ours with beams that do not count yet: neither wins, and the search
    ends neither sooner nor later.
    """
    sampling = Sampling(beams, top_k=2, top_p=1.0, temperature=1.0, repetition_penalty=1.0)
    outcomes, rng = Counter(), np.random.default_rng(0)
    for seed in range(60):
        model, limit, penalty = Bigram(seed), (12, 5, 3)[seed % 3], (0.0, 1.0, 3.0, -1.0, -3.0)[seed % 5]
        codes, score, ended = beams_of_ours(model, replace(sampling, length_penalty=penalty), limit)
        found = [beams_by_hand(model.table, model.cfg, beams, limit, penalty, 2, rng) for _ in range(3)]
        for expected, best, stopped in found:
            assert codes.tolist() == expected
            assert score == pytest.approx(best, rel=1e-5)
            assert ended == stopped
        outcomes[ended] += 1
    assert min(outcomes[True], outcomes[False]) >= 3


def test_a_beam_that_does_not_count_never_wins():
    """Nor where a length penalty of -10 makes every long hypothesis worse than a short one at -1e9."""
    sampling = Sampling(3, top_k=2, top_p=1.0, temperature=1.0, repetition_penalty=1.0, length_penalty=-10.0)
    worse = 0
    for seed in range(60):
        model = Bigram(seed)
        codes, score, ended = beams_of_ours(model, sampling, 12)
        path = [*codes, model.cfg.stop_code] if ended else codes
        chances = jax.nn.log_softmax(model.table)[np.array([model.cfg.start_code, *path[:-1]]), np.array(path)]
        assert score == pytest.approx(float(chances.sum()) * len(path) ** 10, rel=1e-4)
        worse += score < -1e9
    assert worse > 3


def reference_chain(scores, seen, sampling):
    """The chain written the long way round, in numpy: full sorts, as the definition reads."""
    penalty = sampling.repetition_penalty
    scores = np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = np.where(scores < np.sort(scores)[-min(sampling.top_k, len(scores))], -np.inf, scores)
    order = np.argsort(scores, kind="stable")
    p = np.exp(scores[order] - scores.max())
    removed = np.cumsum(p / p.sum()) <= 1 - sampling.top_p
    removed[-1] = False
    scores[order[removed]] = -np.inf
    return scores


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (7, 0.5), (3, 0.0), (100, 0.9)])
def test_process_follows_its_definition(top_k, top_p):
    rng = np.random.default_rng(top_k)
    scores, seen = rng.normal(size=(20, 40)).astype(np.float32) * 3, rng.random((20, 40)) < 0.3
    sampling = Sampling(beams=1, top_k=top_k, top_p=top_p, temperature=0.7, repetition_penalty=2.0)
    ours = np.asarray(jax.jit(decoding.process)(scores, seen, sampling))
    for row, (a, b) in enumerate(zip(scores, seen, strict=True)):
        expected = reference_chain(a.astype(np.float64), b, sampling)
        np.testing.assert_array_equal(np.isinf(ours[row]), np.isinf(expected))
        kept = np.isfinite(expected)
        np.testing.assert_allclose(ours[row][kept], expected[kept], rtol=1e-5)


draw = jax.jit(decoding.draw, static_argnames="cfg")


def test_draws_follow_the_distribution(tiny):
    """Chi-square of 4000 draws against the probabilities of the processed scores."""
    cfg = tiny.cfg.gpt
    n = 4000
    scores = np.float32(0.7) * normal(3, 1, cfg.code_vocabulary)
    scores[:, cfg.start_code] = -np.inf
    seen = np.zeros(scores.shape, bool)
    expected = np.asarray(jax.jit(decoding.process)(scores, seen, SAMPLED), np.float64)[0]
    expected = np.exp(expected - expected.max())
    expected /= expected.sum()
    keys = jax.random.split(jax.random.key(4), n)
    scores[:, cfg.start_code] = 0
    drawn = draw(scores.repeat(n, 0), seen.repeat(n, 0), keys, SAMPLED, cfg)
    counts = np.bincount(np.asarray(drawn), minlength=cfg.code_vocabulary)
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    chi = (np.square(counts[likely] - n * expected[likely]) / (n * expected[likely])).sum()
    freedom = likely.sum() - 1
    assert freedom >= 3
    assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_a_penalty_that_is_not_given_is_the_model_s(tiny):
    """Wherever the model is known; `process` does not know it, and says so."""
    cfg, keys = replace(tiny.cfg.gpt, repetition_penalty=2.0), jax.random.split(jax.random.key(0), 2)
    scores = normal(3, 2, 3, cfg.code_vocabulary)
    seen = np.zeros(scores.shape, bool)
    seen[:, :, np.argsort(scores[0, 0])[-20:]] = True
    for sampling in (Sampling(1, sample=False), Sampling(1, sample=False, repetition_penalty=2.0)):
        codes = draw(scores[:, 0], seen[:, 0], keys, sampling, cfg)
        found = candidates(scores, seen, np.zeros((2, 3), np.float32), keys, sampling, cfg)
        if sampling.repetition_penalty is None:
            first = codes, *found
    for own, given in zip(first, (codes, *found), strict=True):
        np.testing.assert_array_equal(own, given)
    other = draw(scores[:, 0], seen[:, 0], keys, Sampling(1, sample=False), replace(cfg, repetition_penalty=50.0))
    assert (other != first[0]).any()
    with pytest.raises(Error, match=r"repetition_penalty is None"):
        decoding.process(scores, seen, Sampling())


def test_start_code_is_never_drawn(tiny):
    cfg = tiny.cfg.gpt
    scores = np.zeros((1, cfg.code_vocabulary), np.float32)
    scores[:, cfg.start_code] = 50.0
    for sampling in (GREEDY, SAMPLED):
        code = draw(scores, scores > 99, jax.random.split(jax.random.key(0), 1), sampling, cfg)
        assert code[0] != cfg.start_code


def row(drawn, i):
    return jax.tree.map(lambda a: a[i], drawn)


OTHERS = [pytest.param(sampling, marks=LONG) for sampling in (GREEDY, SAMPLED, Sampling(sample=False))]


@pytest.mark.parametrize("sampling", [Sampling(), *OTHERS])
def test_one_program_draws_the_same(sampling):
    """`decode`, compiled as a whole, under vmap over keys and with parameters of numpy, equals `generate`."""
    params, cfg, limit = with_stop_bias(parameters("gpt", GPT), GPT, 0.5), GPT, 13
    texts, lengths = np.full((3, 5), 7, np.int32), np.array([5, 4, 2])
    prefix = gpt.prefix(params, cfg, normal(1, 3, 4, 16), normal(2, 3, 16), texts, lengths)
    keys = jax.random.split(jax.random.key(3), 3)
    expected = drawing.generate(params, cfg, prefix, list(keys), sampling, limit)
    assert len({tuple(codes) for codes in expected.codes.tolist()}) == 3

    def same(drawn):
        for name in ("codes", "lengths", "stopped"):
            np.testing.assert_array_equal(getattr(drawn, name), getattr(expected, name))
        np.testing.assert_allclose(drawn.scores, expected.scores, rtol=1e-5)

    same(decoding.decode(params, cfg, prefix, keys, sampling, limit))

    def one(row, key):
        return decoding.decode(params, cfg, jax.tree.map(lambda a: a[None], row), key[None], sampling, limit)

    same(jax.tree.map(lambda a: a[:, 0], jax.jit(jax.vmap(one))(prefix, keys)))
    host, host_prefix = jax.tree.map(np.asarray, (params, prefix))
    same(decoding.decode(host, cfg, host_prefix, keys, sampling, limit))


def test_one_program_refuses_what_does_not_fit():
    prefix = gpt.Prefix(jnp.zeros((1, 3, 16)), jnp.array([3]))
    for bad, why in (({"max_codes": 0}, "max_codes is 0"), ({"sampling": Sampling(beams=30)}, "at most 20")):
        with pytest.raises(ValueError, match=why):
            decoding.decode(parameters("gpt", GPT), GPT, prefix, jax.random.split(jax.random.key(0), 1), **{
                "sampling": SAMPLED, **bad,
            })  # fmt: skip
    with pytest.raises(ValueError, match="not typed keys"):
        decoding.decode(parameters("gpt", GPT), GPT, prefix, jnp.zeros((1, 2), jnp.uint32), SAMPLED)


SHARDED = """
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from indextts_jax import decoding, drawing
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.models import gpt
from tests.small import GPT, normal, parameters

params, texts, lengths = parameters("gpt", GPT), np.full((8, 5), 7, np.int32), np.array([5, 4, 2, 5, 3, 1, 5, 2])
params["head"]["bias"] = params["head"]["bias"].at[GPT.stop_code].set(0.5)
prefix = gpt.prefix(params, GPT, normal(1, 8, 4, 16), normal(2, 8, 16), texts, lengths)
keys, mesh = jax.random.split(jax.random.key(3), 8), Mesh(np.array(jax.devices()), ("batch",))
assert len(jax.devices()) == 4
for beams in (1, 3):
    def decode(params, prefix, keys):
        return decoding.decode(params, GPT, prefix, keys, Sampling(beams=beams), 13)
    sharded = jax.shard_map(decode, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P("batch"))
    drawn, expected = jax.jit(sharded)(params, prefix, keys), drawing.generate(
        params, GPT, prefix, list(keys), Sampling(beams=beams), 13
    )
    assert len(set(expected.lengths.tolist())) > 1
    np.testing.assert_array_equal(drawn.codes, expected.codes)
    np.testing.assert_array_equal(drawn.lengths, expected.lengths)
"""


@pytest.mark.slow
def test_one_program_runs_on_shards():
    """Two rows on each of four virtual devices, which stop at different times."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    subprocess.run([sys.executable, "-c", SHARDED], env={**os.environ, "XLA_FLAGS": flags}, check=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"beams": 0},
        {"length_penalty": 99.0},
        {"top_p": 1.5},
        {"temperature": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


compact = jax.jit(decoding._compact, donate_argnums=0)


def test_slots_that_no_beam_sees_are_dropped_where_it_is_time():
    """In rows that have taken 64 steps since the last time; beside the cache there is memory for one row."""
    cfg = gpt.GPTConfig(64, 8, 4, text_vocabulary=8, code_vocabulary=16, start_code=14, stop_code=15)
    state = decoding.empty(cfg, Sampling(), 4, 2, jnp.dtype(jnp.float32))
    visible = np.random.default_rng(0).random((4, 3, 512)) < 0.05
    filled, before = np.full(4, 500, np.int32), normal(1, 4, 4, 16, 512)
    blocks = tuple(
        block._replace(k=jnp.asarray(before[..., i * 256 : (i + 1) * 256])) for i, block in enumerate(state.caches[1])
    )
    state = state._replace(
        visible=jnp.asarray(visible), filled=jnp.asarray(filled), done=jnp.array([False, False, True, False]),
        counts=jnp.array([65, 49, 129, 257]), caches=(state.caches[0], blocks, *state.caches[2:]),
    )  # fmt: skip
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(state.caches))
    assert compact.lower(state).compile().memory_analysis().temp_size_in_bytes < 1.1 * cache / 4
    moved = compact(state)
    after = np.concatenate([np.asarray(block.k) for block in moved.caches[1]], axis=3)
    for b, due in enumerate((True, False, False, True)):
        if not due:
            np.testing.assert_array_equal(after[b], before[b])
            np.testing.assert_array_equal(moved.visible[b], visible[b])
            assert moved.filled[b] == 500
            continue
        seen = visible[b].any(axis=0)
        assert moved.filled[b] == seen.sum()
        np.testing.assert_array_equal(after[b, :, :, : seen.sum()], before[b][:, :, seen])
        np.testing.assert_array_equal(moved.visible[b, :, : seen.sum()], visible[b][:, seen])
        assert not moved.visible[b, :, seen.sum() :].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_slots_in_another_order_by_a_product_are_the_slots(dtype):
    x, order = jnp.asarray(normal(0, 1, 2, 3, 40) * 1e3, dtype), jnp.asarray(np.random.default_rng(0).permutation(40))
    by_product = decoding._permute_by_product(x, order)
    assert by_product.dtype == dtype
    np.testing.assert_array_equal(by_product, x[..., order])
    np.testing.assert_array_equal(decoding._permute(x, order), x[..., order])


def test_the_slots_of_a_chunk_come_behind_those_before_them():
    """In a row that goes on; across the border of two blocks as well. What lies elsewhere stays."""
    state = decoding.empty(GPT, Sampling(), 4, 2, jnp.dtype(jnp.float32))
    filled, done, R = np.array([10, 240, 300, 256], np.int32), [False, False, True, False], 48
    rng = np.random.default_rng(0)
    before = rng.normal(size=(4, *state.caches[0][0].k.shape[1:3], 512)).astype(np.float32)
    fresh = rng.normal(size=(*before.shape[:3], R)).astype(np.float32)
    visible = rng.random((4, 3, 512 + R)) < 0.5
    visible[:, :, :512] &= np.arange(512) < filled[:, None, None]
    blocks = tuple(gpt.LayerCache(*[jnp.asarray(before[..., at : at + 256])] * 2) for at in (0, 256))
    state = state._replace(
        caches=(blocks, *state.caches[1:]), recent=(gpt.LayerCache(fresh, -fresh), *state.recent[1:]),
        visible=jnp.asarray(visible), filled=jnp.asarray(filled), done=jnp.array(done),
    )  # fmt: skip
    settled = jax.jit(decoding._settle)(state)
    for part, sign in (("k", 1), ("v", -1)):
        after = np.concatenate([np.asarray(getattr(block, part)) for block in settled.caches[0]], axis=3)
        for b, at in enumerate(filled):
            expected = before[b].copy()
            if not done[b]:
                expected[..., at : at + R] = sign * fresh[b]
            np.testing.assert_array_equal(after[b], expected)
    for b, at in enumerate(filled):
        seen = np.zeros((3, 512), bool)
        seen[:, :at] = visible[b, :, :at]
        seen[:, at : at + R] = visible[b, :, 512:]
        np.testing.assert_array_equal(settled.visible[b], seen)
    np.testing.assert_array_equal(settled.filled, [58, 288, 300, 304])


@pytest.mark.parametrize("beams", [pytest.param(1, marks=LONG), 3])
def test_rows_are_the_same_bits_whatever_the_cache_and_the_neighbours(beams):
    """In a batch of one size, at the width of the official model: the scores of every step."""
    cfg = gpt.GPTConfig(layers=1, text_vocabulary=8, code_vocabulary=64, start_code=62, stop_code=63)
    params, sampling, limit = with_stop_bias(parameters("gpt", cfg), cfg, -50.0), Sampling(beams), 140

    def begun(length, seed):
        prefix = gpt.Prefix(normal(seed, 1, 72, cfg.width), np.array([length]))
        return gpt.prefill(params, cfg, prefix)

    def scores(blocks, place, neighbours):
        state = decoding.empty(cfg, sampling, 4, blocks, jnp.dtype(jnp.float32))
        rows = {place: (67, 1)} | {row: (40 + row, 10 + row) for row in range(4) if row != place and neighbours}
        for row, (length, seed) in rows.items():
            state = decoding.admit(
                cfg, state, np.array([length]), *begun(length, seed), np.array([row], np.int32),
                np.asarray(seeds.data(seeds.key(seed)))[None], sampling, np.int32(limit),
            )  # fmt: skip
        while not np.asarray(state.done).all():
            state = decoding.advance(params, cfg, state, np.bool_(False), np.int32(100))
        return np.asarray(state.trace.scores[place]), np.asarray(decoding.winners(cfg, state).codes[place])

    expected = scores(3, 0, False)
    for blocks, place, neighbours in ((7, 0, False), (2, 3, True)):
        for a, b in zip(scores(blocks, place, neighbours), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("sampling", "bias"),
    [
        (SAMPLED, 0.2),
        (Sampling(sample=False, repetition_penalty=1.0), 0.2),
        pytest.param(GREEDY, 0.1, marks=LONG),
        pytest.param(Sampling(top_p=1.0), 0.2, marks=LONG),
    ],
)
def test_what_is_agreed_on_is_what_wins(sampling, bias, monkeypatch):
    """After every step, for eight rows that stop by themselves: the codes known then begin those that win."""
    monkeypatch.setattr(decoding, "CHUNK", 1)
    cfg = replace(GPT, code_positions=41)  # no other test has programs for it
    params = with_stop_bias(parameters("gpt", cfg, seed=3), cfg, bias)
    prefix = gpt.prefix(
        params, cfg, normal(0, 8, 4, cfg.width), normal(1, 8, cfg.width),
        np.random.default_rng(0).integers(2, 50, (8, 5), np.int32), np.full(8, 5),
    )  # fmt: skip
    logits, caches = gpt.prefill(params, cfg, prefix)
    state = decoding.empty(cfg, sampling, 8, 1, prefix.embeddings.dtype)
    keys = seeds.data(jax.random.split(jax.random.key(0), 8))
    state = decoding.admit(cfg, state, prefix.lengths, logits, caches, jnp.arange(8), keys, sampling, jnp.int32(37))
    known = []
    while True:
        codes, lengths = map(np.asarray, decoding.agreed(cfg, state))
        done, counts = np.asarray(state.done), np.asarray(state.counts)
        known += [(row, codes[row, : lengths[row]]) for row in range(8) if not done[row]]
        assert (lengths <= counts).all()
        if sampling.beams == 1:
            assert (lengths == counts)[~done].all()
        if done.all():
            break
        state = decoding.advance(params, cfg, state, jnp.array(False), jnp.int32(1))
    won = decoding.winners(cfg, state)
    assert len(set(np.asarray(won.lengths).tolist())) > 1
    for row, codes in known:
        assert won.lengths[row] >= len(codes)
        np.testing.assert_array_equal(np.asarray(won.codes)[row, : len(codes)], codes)
    assert sum(len(codes) for _, codes in known) > 8 * 5  # or nothing was shown


def test_buckets_hold_and_go_on():
    assert [buckets.within(n, (4, 8, 15)) for n in (4, 7, 8, 15, 16, 22, 36)] == [4, 4, 8, 15, 15, 22, 36]
    assert [buckets.bucket(n, (4, 8, 15)) for n in (1, 4, 5, 15, 16, 23)] == [4, 4, 8, 15, 22, 29]
