"""How soon streamed speech is heard, and how near it is to the same codes spoken whole; as tables.

    python -m debug.streaming MODEL --voice VOICE [--beams 1,3] [--steps 25] [--codes 300] [--joins 200]

Latency: a text spoken in chunks (`streaming.stream`), segment by segment, and whole, every program made before. A
player starts with the first chunk; what it waits for later is an underrun. Nearness: the log-mel of the sound, frame by
frame, beside that of the whole segment, for several lengths of the context and with the regulator's norms over the
window alone; and the step from sample to sample at the joins beside those elsewhere.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from indextts_jax import chunks, features, models, pipeline, render, scheduling
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.model import Model, load
from indextts_jax.models import s2mel
from indextts_jax.request import Chunk, Given, Options, Request, Streaming
from indextts_jax.streaming import stream
from indextts_jax.voice import Voice
from indextts_jax.warmup import keep_programs

TEXT = (
    "One small test of the speech system, which goes on for a while. "
    "Where is the money, I do not know? Please read the next sentence slowly."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--voice", type=Path, required=True)
    parser.add_argument("--beams", default="1,3", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of the flow (%(default)s)")
    parser.add_argument("--codes", type=int, default=300, help="of each segment at most (%(default)s)")
    parser.add_argument("--segment-tokens", type=int, default=40)
    parser.add_argument("--joins", type=int, default=0, help="how many joins to measure; 0: none (%(default)s)")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--official", action="store_true", help="random weights of the official sizes; MODEL's texts")
    options = parser.parse_args()
    keep_programs()
    model = load(options.model, options.dtype)
    if options.official:
        cfg, dtype = replace(Config(), qwen3=None), options.dtype or models.default_dtype()
        params = {name: models.random(name, getattr(cfg, name), i, dtype) for i, name in enumerate(models.COMPONENTS)}
        model = Model(params, cfg, model.text)
    voice = model.listen(options.voice)
    latency(model, voice, options)
    if options.joins:
        nearness(model, voice, options)


# ---- latency --------------------------------------------------------------------------------------------------------


def latency(model: Model, voice: Voice, options: argparse.Namespace) -> None:
    text = model.text.analyse(TEXT, options.segment_tokens)
    print(f"\n{len(text.segments)} segments of at most {options.codes} codes, {options.steps} steps")
    print("| beams | how | first sound s | seconds of sound | real-time factor | a player waits s |")
    print("|---|---|---|---|---|---|")
    for beams in map(int, options.beams.split(",")):
        settings = Options(Sampling(beams=beams), max_codes=options.codes, steps=options.steps, batch=1)
        ways: dict[str, Any] = {
            "chunks": lambda settings=settings: _chunks(model, text, voice, settings, Streaming()),
            "chunks, --hop 100": lambda settings=settings: _chunks(model, text, voice, settings, Streaming(hop=100)),
            "segments": lambda settings=settings: _chunks(model, text, voice, settings, Streaming(first_codes=1500)),
            "whole": lambda settings=settings: _whole(model, text, voice, settings),
        }
        for name, way in ways.items():
            list(way())  # makes the programs
            begin, first, played, waits, seconds, now = time.perf_counter(), None, 0.0, 0.0, 0.0, 0.0
            for samples in way():
                now = time.perf_counter() - begin
                if first is None:
                    first = played = now
                waits += max(0.0, now - played)
                played = max(played, now) + len(samples) / model.cfg.mel.rate
                seconds += len(samples) / model.cfg.mel.rate
            print(f"| {beams} | {name} | {first:.2f} | {seconds:.2f} | {now / seconds:.2f} | {waits:.2f} |", flush=True)


def _chunks(model: Model, text: Any, voice: Voice, settings: Options, streaming: Streaming) -> Iterator[np.ndarray]:
    for piece in stream(model.params, model.cfg, text, voice, 0, settings, streaming=streaming):
        yield piece.samples


def _whole(model: Model, text: Any, voice: Voice, settings: Options) -> Iterator[np.ndarray]:
    yield pipeline.speak(model.params, model.cfg, [text], [voice], [0], settings)[0].samples


# ---- nearness -------------------------------------------------------------------------------------------------------


def nearness(model: Model, voice: Voice, options: argparse.Namespace) -> None:
    settings = Options(Sampling(beams=1), steps=options.steps, fade_ms=0)
    text = model.text.analyse("One small test.")

    def request(seed: int) -> Request:
        [made] = pipeline.requests(model.params, model.cfg, text, voice, seed, settings)
        codes = np.random.default_rng(seed).integers(0, model.cfg.repcodec.codes, options.codes)
        return replace(made, given=Given(codes=codes))

    bounds = [0]
    while bounds[-1] < options.codes:
        bounds.append(Streaming(hop=60).after(bounds[-1]))
    seeds = range(-(-options.joins // (len(bounds) - 2)))
    whole = [_spoken(model, request(seed))[1] for seed in seeds]
    other = [_spoken(model, replace(request(seed), keys=request(seed + 1000).keys))[1] for seed in seeds]
    floor = np.mean([_distance(model, a, b).mean() for a, b in zip(whole, other, strict=True)])
    print(f"\n{len(seeds)} segments of {options.codes} codes, {options.steps} steps, {len(bounds) - 2} joins in each")
    print(f"log-mel of the same codes with other noise: {floor:.3f} mean absolute distance")
    print("| | log-mel distance | within 8 frames of a join | steps at joins: median rank | above 99 % |")
    print("|---|---|---|---|---|")
    for name, streaming, patched in (
        ("2 s of context", Streaming(hop=60), {}),
        ("1 s", Streaming(hop=60, context=86), {}),
        ("4 s", Streaming(hop=60, context=344), {}),
        ("2 s, norms over the window", Streaming(hop=60), {"window": True}),
        ("2 s, without the cross-fade", Streaming(hop=60), {"fade": False}),
    ):
        distances, near, ranks = [], [], []
        with _patched(**patched):
            for seed, expected in zip(seeds, whole, strict=True):
                pieces, samples = _spoken(model, replace(request(seed), streaming=streaming))
                distance = _distance(model, samples, expected)
                joins = [piece.start for piece in pieces[1:]]
                at = [join // model.cfg.mel.hop for join in joins]
                distances.append(distance.mean())
                near += [distance[max(0, place - 8) : place + 8].mean() for place in at]
                ranks += list(_ranks(samples, joins))
        print(
            f"| {name} | {np.mean(distances):.3f} | {np.mean(near):.3f} | {np.median(ranks):.2f} | "
            f"{np.mean(np.array(ranks) > 0.99):.3f} of {len(ranks)} |",
            flush=True,
        )


def _spoken(model: Model, request: Request) -> tuple[list[Chunk], np.ndarray]:
    *pieces, result = scheduling.run(model.params, model.cfg, [request], 1)
    assert not isinstance(result, Chunk)
    if result.error:
        raise result.error
    assert result.samples is not None
    return [piece for piece in pieces if isinstance(piece, Chunk)], result.samples


def _distance(model: Model, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute distance of two log-mels, [F]."""
    mels = [features.mel(x[None], np.array([len(x)]), model.cfg.mel)[0][0] for x in (a, b)]
    return np.asarray(jnp.abs(mels[0] - mels[1]).mean(axis=-1))


def _ranks(samples: np.ndarray, joins: list[int]) -> Iterator[float]:
    """Of every join, how its second difference ranks among those of the segment, 0 to 1."""
    steps = np.abs(np.diff(samples, 2))
    highest = np.sort(np.lib.stride_tricks.sliding_window_view(steps, 3).max(axis=1))
    for join in joins:
        yield np.searchsorted(highest, steps[join - 2 : join + 1].max()) / len(highest)


@contextmanager
def _patched(window: bool = False, fade: bool = True) -> Iterator[None]:
    """Another way to make chunks: the content regulated from the window alone, or no cross-fade."""
    faded, to_chunk = chunks.faded, chunks.to_chunk
    if not fade:
        chunks.faded = lambda before, samples: samples
    if window:
        chunks.to_chunk = _of_window
    try:
        yield
    finally:
        chunks.faded, chunks.to_chunk = faded, to_chunk


def _of_window(
    params: Any, cfg: Any, voices: Any, codes: Any, lengths: Any, latents: Any, noise: Any, spoken: Any, heard: Any,
    starts: Any, ends: Any, *more: Any,
) -> Any:  # fmt: skip
    """`render.to_chunk` of the codes of the window alone."""
    first = int((int(starts[0]) - int(heard[0])) / s2mel.FRAMES_PER_CODE)
    frame = render.spoken_frames(first)
    own = np.asarray(codes)[:, first:]
    own = jnp.asarray(np.pad(own, ((0, 0), (0, first))))
    moved = jnp.asarray(np.pad(np.asarray(latents)[:, first:], ((0, 0), (0, first), (0, 0))))
    return render.to_chunk(
        params, cfg, voices, own, lengths - first, moved, noise, spoken, np.minimum(heard, starts - frame),
        starts - frame, ends - frame, *more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
