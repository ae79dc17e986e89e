"""A recording becomes a Voice, or an emotion vector; voice files.

    voice = listen(model.params, model.cfg, audio.load_speaker("voice.wav"))

Dimensions: B batch, N samples, T semantic frames, L latents, P prompt frames, M mels, K content width, D width.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from indextts_jax import audio, buckets, emotion, features, files
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.errors import Error, NotFound
from indextts_jax.models import Params, campplus, conditioner, repcodec, s2mel, w2vbert


class Voice(NamedTuple):
    """Everything the system needs to know of a speaker, float32; made once by `listen`, kept as a file."""

    latents: Any  # [L, D] what the GPT hears
    emotion: Any  # [D] the recording's own
    base: Any  # [D] its emotion by way of the speaker's features: what other emotions are mixed into
    style: Any  # [style]
    mel: Any  # [P, M] log-mel of the recording, the prompt of the flow
    content: Any  # [P, K] what is said in it


def listen(params: Params, cfg: Config, recording: audio.Recording) -> Voice:
    """Make a Voice of a recording (`audio.load_speaker` or `audio.recording`).

    Computed in the dtype of the weights, given back as float32 numpy arrays. Reference: indextts/infer_v2.py and
    infer_v2_5.py.
    """
    semantic, lengths = hear(params, cfg, [recording.samples_16k, recording.emotion_16k])
    samples, samples_lengths = padded([recording.samples_16k], features.SPEECH_RATE)
    style = campplus.embed(params["campplus"], cfg.campplus, *features.campplus_features(samples, samples_lengths))
    mel, mel_lengths = features.mel(*padded([recording.samples_22k], cfg.mel.rate), cfg.mel)
    own, own_length = semantic[:1], lengths[:1]
    said = own  # what codes are restored to: the recording has it already
    if cfg.repcodec.stride is None:
        said = repcodec.quantize(params["repcodec"], cfg.repcodec, own, own_length).embeddings
    content = s2mel.regulate(
        params["s2mel"], cfg.s2mel, said, own_length, frames=mel.shape[1], target_lengths=mel_lengths
    )
    if cfg.conditioner.speaker is None:
        latents = conditioner.style_latents(params["conditioner"], cfg.conditioner, style)
    else:
        latents = conditioner.speaker_latents(params["conditioner"], cfg.conditioner, own, own_length)
    base, other = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, semantic, lengths)
    frames = int(mel_lengths[0])
    voice = Voice(latents[0], emotion.mix(base, other, 1.0), base, style[0], mel[0, :frames], content[0, :frames])
    return Voice(*(np.asarray(array, np.float32) for array in voice))


def feel(params: Params, cfg: Config, recording: np.ndarray) -> np.ndarray:
    """The emotion vector [D] float32 of a recording at 16 kHz (`audio.load_emotion`), for `Emotion(vector=...)`."""
    semantic, lengths = hear(params, cfg, [recording])
    vector = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, semantic, lengths)
    return np.asarray(vector[0], np.float32)


def hear(params: Params, cfg: Config, recordings: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Semantic features of recordings at 16 kHz: -> ([B, T, width], lengths [B]), 50 frames a second."""
    heard, lengths, seen = features.w2vbert_features(*padded(recordings, features.SPEECH_RATE))
    return w2vbert.encode(params["w2vbert"], cfg.w2vbert, heard, seen, lengths), lengths


def padded(recordings: Sequence[np.ndarray], rate: int) -> tuple[Array, Array]:
    """Samples of several recordings, padded to a bucket of seconds: [B, N], lengths [B]."""
    seconds = bucket(-(-max(map(len, recordings)) // rate), buckets.SECONDS)
    rows = [np.pad(samples, (0, seconds * rate - len(samples))) for samples in recordings]
    return jnp.asarray(np.stack(rows)), jnp.array([len(samples) for samples in recordings])


_VOICE_FORMAT = "indextts-jax voice 1"


def save_voice(path: str | PathLike[str], voice: Voice) -> None:
    """Write a Voice as a safetensors file, which appears only once it is complete. Raises OSError."""
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in voice._asdict().items()}
    files.write_whole(Path(path), safetensors.numpy.save(arrays, {"format": _VOICE_FORMAT}))


def load_voice(path: str | PathLike[str], cfg: Config) -> Voice:
    """Read a Voice that `save_voice` wrote. Raises NotFound, or Error for what does not fit the model."""
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = (file.metadata() or {}).get("format") == _VOICE_FORMAT
            voice = Voice(*(file.get_tensor(name) for name in Voice._fields)) if known else None
    except (safetensors.SafetensorError, OSError) as error:
        raise Error(f"{path}: not a voice file, or cut short ({error}); make it again") from None
    if voice is None:
        raise Error(f"{path}: not a voice file of this version; make it with `indextts-jax voice`")
    width, mels = cfg.gpt.width, cfg.s2mel.mels
    if voice.latents.shape != (expected := (cfg.conditioner.latents, width)) or voice.mel.shape[1:] != (mels,):
        raise Error(
            f"{path}: made with another model (latents of shape {voice.latents.shape}, not {expected}); make it again"
        )
    return voice
