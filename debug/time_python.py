"""How long the PyTorch reference takes, stage by stage; `debug.bench_reference` runs it.

It runs in the environment of the reference, like dump_python.py and dump_25.py, which build it: IndexTTS-2.5 where the
model folder has its codec.pth, else IndexTTS-2. Once warm, it runs again for every line on standard input, so that
whoever asks can time something else in between. Each time one line of JSON comes out, beside what the reference prints:
the seconds of every repetition so far, by stage.
"""

import argparse
import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dump_25
import dump_python
from dump_python import Refusal, wrap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of github.com/index-tts/index-tts")
    parser.add_argument("--model-dir", type=Path, required=True, help="folder in the official layout")
    parser.add_argument("--speaker", type=Path, required=True, help="recording of the voice")
    parser.add_argument("--pieces", type=int, default=30, help="of the text (%(default)s)")
    parser.add_argument("--codes", type=int, default=150, help="which are drawn, whatever the weights (%(default)s)")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--force", action="store_true", help="try an unknown version of the reference")
    options = parser.parse_args()
    options.emotion_audio = options.emotion_text = options.output = None
    options.text, options.max_codes = "A", options.codes
    try:
        newer = (options.model_dir / "codec.pth").is_file()
        for found in measure(*(_of_25 if newer else _of_2)(options), options):
            print(json.dumps(found), flush=True)
    except Refusal as refusal:
        print(f"time_python.py: error: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    return 0


def _of_2(options: argparse.Namespace) -> tuple[Any, Any, tuple[Any, ...]]:
    """IndexTTS-2 with `options.pieces` pieces of text: -> the system, torch, what it is given after the recording."""
    tts, torch, _, _ = dump_python.build(options, dump_python._check(options))
    wrap(tts.tokenizer, "tokenize", lambda original, text: original(text)[:1] * options.pieces)
    return tts, torch, (options.text, None)


def _of_25(options: argparse.Namespace) -> tuple[Any, Any, tuple[Any, ...]]:
    """The same of IndexTTS-2.5."""
    options.ids = [list(range(2, 2 + options.pieces))]
    tts, torch, _ = dump_25.build(options, options.device)
    return tts, torch, ("ids", None, "en")


def measure(tts: Any, torch: Any, given: tuple[Any, ...], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the reference once to warm up, then for every line on standard input with a clock at every stage."""
    kaldi: Any = importlib.import_module("torchaudio.compliance.kaldi")
    gpt, models = tts.gpt, tts.s2mel.models
    seconds: dict[str, list[float]] = defaultdict(list)
    now: dict[str, float] = {}
    inside: list[float] = []  # seconds that stages within the running ones have taken

    def clock(owner: Any, attribute: str, stage: str) -> None:
        def timed(original: Any, *arguments: Any, **more: Any) -> Any:
            inside.append(0.0)
            begin = time.perf_counter()
            out = original(*arguments, **more)
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            taken = time.perf_counter() - begin
            now[stage] = now.get(stage, 0.0) + taken - inside.pop()
            if inside:
                inside[-1] += taken
            return out

        wrap(owner, attribute, timed)

    with torch.no_grad():
        gpt.mel_head.bias[tts.stop_mel_token] = -1e4
    for owner, attribute, stage in (
        (tts, "extract_features", "w2v-BERT"), (tts, "get_emb", "w2v-BERT"),
        (tts.semantic_codec, "quantize", "RepCodec"),
        (kaldi, "fbank", "CAMPPlus"), (tts.campplus_model, "forward", "CAMPPlus"), (tts, "mel_fn", "mel"),
        (gpt, "get_conditioning", "conditioners"),
        (gpt, "merge_emovec", "conditioners"), (gpt, "inference_speech", "codes"), (gpt, "forward", "second pass"),
        (models["length_regulator"], "forward", "content"),
        (tts.semantic_codec.quantizer, "vq2emb", "content"), (models["cfm"], "inference", "flow"),
        (tts.bigvgan, "forward", "BigVGAN"),
    ):  # fmt: skip
        clock(owner, attribute, stage)
    if "gpt_layer" in models:
        clock(models["gpt_layer"], "forward", "content")
    else:
        clock(tts.semantic_codec, "decode", "codec's decoder")
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "stages": seconds}
    while True:
        now.clear()
        tts.cache_spk_cond = tts.cache_emo_cond = None  # so that it listens again
        begin = time.perf_counter()
        rate, wave = next(
            tts.infer_generator(str(options.speaker), *given, num_beams=options.beams, max_mel_tokens=options.codes)
        )
        now["whole chain"] = time.perf_counter() - begin
        if "audio_s" in found:  # it was warm
            for stage, taken in now.items():
                seconds[stage].append(taken)
        found["audio_s"] = len(wave) / rate
        yield found
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    sys.exit(main())
