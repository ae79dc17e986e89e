"""Programs compiled before they are needed: every jitted stage, for the rungs of the ladders that somebody will use.

Nothing is computed and no weights are read: stages are lowered for shapes. What is compiled is kept by JAX's
persistent compilation cache, where the first utterance finds it.
"""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from indextts_jax import audio, buckets, checkpoint, decoding, features, models, render, scheduling, seeds, settings
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.errors import Error
from indextts_jax.request import Options
from indextts_jax.stages import ALL


def keep_programs() -> None:
    """Have JAX keep compiled programs: in the folder INDEXTTS_CACHE, that of the settings, or where caches are."""
    cache = settings.cache()
    with contextlib.suppress(OSError):  # without a place to keep them, programs are compiled anew each time
        cache.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@dataclass(frozen=True)
class Uses:
    """What will be asked for; each number stands for its rung."""

    batches: Sequence[int] = (1,)  # segments at once
    texts: Sequence[int] = (32,)  # pieces of a segment
    codes: Sequence[int] = (256,)  # of a segment, 50 per second of speech, or as many as the codec has
    seconds: Sequence[float] = (6.0,)  # of a recording

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            low = audio.MIN_SECONDS if name == "seconds" else 1
            if not values or min(values) < low:
                raise Error(f"{name} is {list(values)}, but must be numbers, each at least {low}")


class Program(NamedTuple):
    """One stage for one set of shapes."""

    stage: str  # of `stages.ALL`
    shape: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def function(self) -> Any:
        return ALL[self.stage].function

    def result(self) -> Any:
        """The shapes of what it gives."""
        return self.function.eval_shape(*self.arguments, **self.keywords)

    def compile(self) -> float:
        """Compile it, or find it in the cache: -> seconds."""
        begin = time.perf_counter()
        self.function.lower(*self.arguments, **self.keywords).compile()
        return time.perf_counter() - begin


def programs(
    cfg: Config, options: Options, uses: Uses, dtype: Any, shapes: Callable[[str, Any], Any] = models.shapes,
    platform: str | None = None,
) -> list[Program]:  # fmt: skip
    """Everything that `voice.listen` and `pipeline.speak` run for such uses, each program once.

    shapes: of the parameters of a component, by its name and configuration. platform: where they run (default: here).
    """
    platform = platform or jax.devices()[0].platform
    params = _parameters(cfg, dtype, shapes, platform)
    found: dict[tuple[str, str], Program] = {}
    for program in (
        *_listen(cfg, params, uses),
        *_draw(cfg, params, options, uses),
        *_render(cfg, params, options, uses, platform),
    ):
        found.setdefault((program.stage, program.shape), program)
    return list(found.values())


@contextmanager
def ahead(
    folder: Path, dtype: Any, seconds: float | None = None, texts: Sequence[int] = (), options: Options | None = None
) -> Iterator[threading.Thread]:
    """Make the programs that are needed first while the block runs, which reads the weights of a converted model.

    Those of listening to a recording of so many seconds, and of drawing codes for segments of so many pieces; what
    follows depends on how many codes come. What is not ready when the block ends is left to those who need it, and so
    are errors. Gives the thread that does it.
    """
    over = threading.Event()

    def make() -> None:
        with contextlib.suppress(Exception):
            cfg, _ = checkpoint.read_description(folder)
            params = _parameters(cfg, dtype, partial(checkpoint.shapes, folder))
            drawn = None
            if texts and options:
                rows = scheduling.no_more(options.batch or scheduling.BATCH, len(texts))
                drawn = Uses((rows,), texts, (decoding.CHUNK,))
            listening = _listen(cfg, params, Uses(seconds=(seconds,))) if seconds else ()
            drawing = _draw(cfg, params, options, drawn) if options and drawn else ()
            for program in itertools.chain(listening, drawing):
                if over.is_set():
                    return
                program.compile()

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()


def _parameters(
    cfg: Config, dtype: Any, shapes: Callable[[str, Any], Any], platform: str | None = None
) -> dict[str, Any]:
    return {
        name: _placed(models.cast(name, shapes(name, getattr(cfg, name)), dtype, platform))
        for name in models.COMPONENTS
    }


def struct(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _placed(shapes: Any) -> Any:
    """The same, bound to the device: loaded weights are, and so is what comes of them; programs differ by it."""
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def _result(program: Program) -> Any:
    """The shapes of what a program gives that reads weights, or what came of them."""
    return _placed(program.result())


def _listen(cfg: Config, params: Any, uses: Uses) -> Iterator[Program]:
    for seconds in sorted({bucket(math.ceil(n), buckets.SECONDS) for n in uses.seconds}):

        def program(stage: str, *arguments: Any, at: int = seconds, **keywords: Any) -> Program:
            return Program(stage, f"{at} s", arguments, keywords)

        def integers(n: int) -> Any:
            return struct((n,), np.int32)

        speech, music = seconds * features.SPEECH_RATE, seconds * cfg.mel.rate
        yield (front := program("w2v-BERT features", struct((2, speech)), integers(2)))
        heard, _, seen = front.result()
        yield (encode := program("w2v-BERT", params["w2vbert"], cfg.w2vbert, heard, seen, integers(2)))
        semantic = _result(encode)
        own = _placed(struct((1, *semantic.shape[1:]), semantic.dtype))
        yield (front := program("CAMPPlus features", struct((1, speech)), integers(1)))
        yield (embed := program("CAMPPlus", params["campplus"], cfg.campplus, *front.result()))
        yield (mel := program("mel", struct((1, music)), integers(1), cfg.mel))
        said = own
        if cfg.repcodec.stride is None:
            yield (quantize := program("RepCodec", params["repcodec"], cfg.repcodec, own, integers(1)))
            said = _result(quantize).embeddings
        yield program(
            "prompt content", params["s2mel"], cfg.s2mel, said, integers(1),
            frames=mel.result()[0].shape[1], target_lengths=integers(1),
        )  # fmt: skip
        hear = params["conditioner"], cfg.conditioner
        if cfg.conditioner.speaker is None:
            yield program("style latents", *hear, _result(embed))
        else:
            yield program("speaker latents", *hear, own, integers(1))
        yield program("emotion vector", *hear, semantic, integers(2))


def _prefix(cfg: Config, params: Any, rows: int, text: int) -> Program:
    latents = struct((rows, cfg.conditioner.latents, cfg.gpt.width))
    texts = struct((rows, text), np.int32), struct((rows,), np.int32)
    languages = () if cfg.gpt.languages is None else (struct((rows,), np.int32),)
    arguments = params["gpt"], cfg.gpt, latents, struct((rows, cfg.gpt.width)), *texts, *languages
    return Program("prefix", f"{rows} rows, {text} pieces", arguments, {})


def _draw(cfg: Config, params: Any, options: Options, uses: Uses) -> Iterator[Program]:
    sampling = jax.tree.map(lambda _: struct((1,)), options.sampling.of(cfg.gpt))
    beams, dtype = sampling.beams, jax.tree.leaves(params["gpt"])[0].dtype
    ahead = cfg.conditioner.latents + 5  # slots before and after a text
    longest, most = max(uses.texts) + ahead, min(max(uses.codes), options.max_codes)
    least, most = (-(-(longest + beams * n) // decoding.BLOCK) for n in (decoding.CHUNK, most))
    capacities = sorted({bucket(n, buckets.BLOCKS) for n in range(least, most + 1)})
    for batch in sorted(set(uses.batches)):
        for blocks in capacities:
            shape = f"{batch} rows, {beams} beams, {blocks * decoding.BLOCK} slots"
            yield (empty := Program("empty cache", shape, (cfg.gpt, sampling, batch, blocks, dtype), {}))
            state = _result(empty)
            arguments = params["gpt"], cfg.gpt, state, struct((), bool), struct((), np.int32)
            yield Program("decoding", shape, arguments, {})
            yield Program("winning codes", shape, (cfg.gpt, state), {})
            for larger in (n for n in capacities if n > blocks):
                yield Program("more cache", f"{shape}, {larger - blocks} more", (cfg.gpt, state, larger - blocks), {})
            for text in sorted({bucket(n, buckets.TEXT) for n in uses.texts}):
                yield (prefix := _prefix(cfg, params, 1, text))
                begun = _result(prefix)
                yield (prefill := Program("prefill", f"{text} pieces", (params["gpt"], cfg.gpt, begun), {}))
                row, keys = struct((1,), np.int32), struct((1, seeds.WORDS), np.uint32)
                arguments = cfg.gpt, state, begun.lengths, *_result(prefill), row, keys, sampling, row
                yield Program("admission", f"{text} pieces to {shape}", arguments, {})


def _render(cfg: Config, params: Any, options: Options, uses: Uses, platform: str) -> Iterator[Program]:
    own = cfg.s2mel
    most = 1 if platform == "cpu" else max(uses.batches)  # as in `scheduling.run`
    for batch in sorted({most, *(n for n in buckets.BATCH if n < most)}):
        integers = struct((batch,), np.int32)
        for longest in sorted({render.padded_codes(cfg, n) for n in uses.codes}):
            rung = bucket(longest * cfg.repcodec.frames, buckets.CODES)
            frames = render.target_frames(rung)
            shape = f"{batch} rows, {longest} codes"
            codes = struct((batch, longest), np.int32)
            keywords = {"frames": frames, "target_lengths": integers}
            if own.latent_layers:
                for text in sorted({bucket(n, buckets.TEXT) for n in uses.texts}):
                    yield (prefix := _prefix(cfg, params, batch, text))
                    arguments = params["gpt"], cfg.gpt, _result(prefix), codes
                    yield (latents := Program("second pass", f"{shape}, {text} pieces", arguments, {}))
                arguments = params["repcodec"], cfg.repcodec, codes
                yield (embed := Program("code embeddings", shape, arguments, {}))
                arguments = params["s2mel"], own, _result(embed), _result(latents), integers
                yield (content := Program("content", shape, arguments, keywords))
            else:
                arguments = params["repcodec"], cfg.repcodec, codes, integers
                yield (features := Program("restored features", shape, arguments, {}))
                arguments = params["s2mel"], own, _result(features), integers
                yield (content := Program("prompt content", shape, arguments, keywords))
            mel = _placed(struct((batch, frames, own.mels)))
            arguments = params["bigvgan"], cfg.bigvgan, mel, integers
            yield Program("BigVGAN", shape, arguments, {})
            for seconds in uses.seconds:
                prompt = math.ceil(seconds * cfg.mel.rate / cfg.mel.hop)
                fewest = max((n for n in buckets.CODES if n < rung), default=0) + 1
                ends = prompt - 1 + render.target_frames(fewest), prompt + 1 + render.target_frames(rung)
                for T in sorted({bucket(n, buckets.FRAMES) for n in range(*ends)}):
                    yield from _flow(cfg, params, options, batch, bucket(prompt, buckets.PROMPT), _result(content), T)


def _flow(
    cfg: Config, params: Any, options: Options, batch: int, prompt: int, content: Any, T: int
) -> Iterator[Program]:
    own, dtype, lengths = cfg.s2mel, content.dtype, struct((batch,), np.int32)
    frames = content.shape[1]
    keys = jax.ShapeDtypeStruct((batch,), seeds.key(0).dtype)
    yield Program("noise", f"{batch} rows, {frames} frames", (keys, frames, own.mels), {})
    # The prompt and the content, of which only the latter comes of weights.
    packed = []
    for width, place in ((own.mels, False), (own.content, True)):
        first, second, both = (struct((batch, n, width), dtype) for n in (prompt, frames, T))
        parts = first, lengths, _placed(second) if place else second, T
        yield Program(
            "joining prompt and target",
            f"{batch} rows of {prompt} and {frames} frames, {width} wide, to {T}",
            parts,
            {},
        )
        packed.append(_placed(both) if place else both)
    arguments = (
        params["s2mel"], own, struct((batch, frames, own.mels)), *packed,
        struct((batch, own.style), dtype), lengths, lengths, struct((batch,)), options.steps, False,
        options.guidance != 0,
    )  # fmt: skip
    yield Program("flow", f"{batch} rows, {T} frames of which {frames} are spoken", arguments, {})
