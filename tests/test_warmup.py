"""What was warmed up is not compiled again, and what is warmed up is what was asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from debug.golden import FIXTURES
from indextts_jax import audio, checkpoint, pipeline, warmup
from indextts_jax.decoding import Sampling
from indextts_jax.model import load
from indextts_jax.request import Options
from indextts_jax.voice import listen
from indextts_jax.warmup import Uses

pytestmark = pytest.mark.whole

VOICE = FIXTURES / "audio" / "voice_24k.wav"
SETTINGS = ["--beams", "2", "--steps", "2", "--max-codes", "30"]


def command(cache: Path, *arguments: object) -> str:
    """Run a command in a process of its own, with an own cache that keeps what takes no time as well."""
    script = (
        "import sys, jax; from indextts_jax import cli; update = jax.config.update\n"
        "jax.config.update = lambda name, value: update(name, 0 if 'min_compile_time' in name else value)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "INDEXTTS_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def programs(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir() if file.name.endswith("-cache")}


@pytest.mark.slow
def test_speaking_after_warming_up_compiles_no_stage(tiny, converted, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out.wav"
    sizes = ["--batch", 2, "--pieces", 16, "--codes", 30, "--voice-seconds", 4.56]
    printed = command(cache, "warmup", "--model", converted, *sizes, *SETTINGS)
    assert "of which 0 were there already" in printed
    warm = programs(cache)
    text = "One small test. Where is the money?"
    speak = "speak", "--model", converted, "--voice", VOICE, "--text", text, "--segment-tokens", 12, "--output", out
    command(cache, *speak, *SETTINGS)
    uses = Uses((2,), (16,), (30,), (4.56,))
    stages = {f"jit_{p.function.__name__}" for p in warmup.programs(tiny.cfg, Options(), uses, "float32")}
    assert {"jit_encode", "jit_admit", "jit_advance", "jit_latents", "jit_solve", "jit_vocode"} <= stages
    assert stages <= {name.split("-")[0] for name in warm}
    # What is left are the few operations between the stages.
    assert {name.split("-")[0] for name in programs(cache) - warm} & stages == set()


@pytest.mark.slow
def test_what_is_made_while_the_weights_are_read(converted, caplog):
    """After it, neither listening nor drawing compiles a stage; what follows the codes is not known yet."""
    recording = audio.load_speaker(VOICE)
    analysis = checkpoint.load_text(converted).analyse("One small test. Where is the money?", 12)
    options = Options(Sampling(beams=1), max_codes=30, steps=2, batch=2)
    lengths = [len(ids) for ids in analysis.segment_ids]
    jax.clear_caches()
    with warmup.ahead(converted, "float32", len(recording.samples_16k) / 16000, lengths, options) as thread:
        model = load(converted)
        thread.join()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        voice = listen(model.params, model.cfg, recording)
        pipeline.speak(model.params, model.cfg, [analysis], [voice], [jax.random.key(0)], options)
    compiled = set(re.findall(r"XLA compilation of jit\((\w+)\)", caplog.text))
    first = {"encode", "embed", "quantize", "mel", "speaker_latents", "emotion_vector", "prefix", "prefill", "admit"}
    assert compiled & {*first, "advance"} <= {"embed"}  # repcodec's, after the codes
    assert {"solve", "vocode"} <= compiled


def test_what_cannot_be_made_ahead_is_no_error(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with warmup.ahead(folder, "float32", 1.0, [5], Options()) as thread:
            thread.join()
    with pytest.raises(KeyboardInterrupt), warmup.ahead(tmp_path, "float32") as thread:
        raise KeyboardInterrupt
    assert not thread.is_alive()


def test_what_is_listed(tiny):
    def stages(platform="gpu", **uses):
        found = warmup.programs(tiny.cfg, Options(Sampling(beams=1)), Uses(**uses), "float32", platform=platform)
        assert len({(program.stage, program.shape) for program in found}) == len(found)
        return [program.stage for program in found]

    one = stages()
    assert one.count("w2v-BERT") == 1
    more = stages(batches=(3,), codes=(30, 60), seconds=(3, 9), texts=(10, 20))
    assert more.count("w2v-BERT") == 2
    assert more.count("BigVGAN") == 3 * 2  # groups of 1, 2 and 3, and two lengths
    assert more.count("prefix") == 3 * 2
    assert more.count("prefill") == 2  # of one row each
    assert stages("cpu", batches=(3,), codes=(30, 60)).count("BigVGAN") == 2  # where there are no groups
    assert more.count("flow") > one.count("flow")


@pytest.mark.parametrize("bad", [{"batches": ()}, {"texts": (0,)}, {"seconds": (-1.0,)}])
def test_bad_uses_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Uses(**bad)


def test_a_model_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.read_description(tmp_path)
