"""Every jitted stage between files and samples by its name, in the order of the data.

One list for everything that goes through the stages: the benchmark times them, `warmup` compiles them, the tests lower
them for every platform. Which of them a model has, its configuration says: `of`.
"""

from types import ModuleType
from typing import Any, NamedTuple

from indextts_jax import decoding, features
from indextts_jax.config import Config
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert


class Stage(NamedTuple):
    """A jitted function, as the attribute of the module where its callers look it up."""

    module: ModuleType
    attribute: str

    @property
    def function(self) -> Any:
        return getattr(self.module, self.attribute)


ALL = {
    # listening to a recording
    "w2v-BERT features": Stage(features, "w2vbert_features"),
    "w2v-BERT": Stage(w2vbert, "encode"),
    "CAMPPlus features": Stage(features, "campplus_features"),
    "CAMPPlus": Stage(campplus, "embed"),
    "mel": Stage(features, "mel"),
    "RepCodec": Stage(repcodec, "quantize"),
    "prompt content": Stage(s2mel, "regulate"),  # that of restored features as well
    "speaker latents": Stage(conditioner, "speaker_latents"),
    "style latents": Stage(conditioner, "style_latents"),
    "emotion vector": Stage(conditioner, "emotion_vector"),
    # drawing codes
    "prefix": Stage(gpt, "prefix"),
    "empty cache": Stage(decoding, "empty"),
    "prefill": Stage(gpt, "prefill"),
    "admission": Stage(decoding, "admit"),
    "decoding": Stage(decoding, "advance"),
    "more cache": Stage(decoding, "more"),
    "winning codes": Stage(decoding, "winners"),
    # from codes to samples
    "second pass": Stage(gpt, "latents"),
    "code embeddings": Stage(repcodec, "embed"),
    "content": Stage(s2mel, "content"),
    "restored features": Stage(repcodec, "restore"),
    "noise": Stage(s2mel, "noise"),
    "joining prompt and target": Stage(s2mel, "join"),
    "flow": Stage(s2mel, "solve"),
    "BigVGAN": Stage(bigvgan, "vocode"),
}


def of(cfg: Config) -> dict[str, Stage]:
    """The stages of a model, in their order."""
    restores, hears = cfg.repcodec.stride is not None, cfg.conditioner.speaker is not None
    latents = bool(cfg.s2mel.latent_layers)
    there = {
        "RepCodec": not restores, "speaker latents": hears, "style latents": not hears, "second pass": latents,
        "code embeddings": latents, "content": latents, "restored features": not latents,
    }  # fmt: skip
    return {name: stage for name, stage in ALL.items() if there.get(name, True)}


STAGES = of(Config())  # of IndexTTS-2
