"""config.yaml -> one frozen dataclass per component; the same as JSON in a converted folder.

The file leaves some sizes out (semantic width, widths of the latent layers, ...): here they take the official values, and
the converters read them off the tensors instead.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from indextts_jax.audio import MelConfig
from indextts_jax.models.bigvgan import BigVGANConfig
from indextts_jax.models.campplus import CAMPPlusConfig
from indextts_jax.models.conditioner import ConditionerConfig, EncoderConfig
from indextts_jax.models.gpt import GPTConfig
from indextts_jax.models.repcodec import RepCodecConfig
from indextts_jax.models.s2mel import S2MelConfig
from indextts_jax.models.w2vbert import W2VBertConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Every size of the system. `Config()` is the official IndexTTS-2."""

    mel: MelConfig = field(default_factory=MelConfig)
    w2vbert: W2VBertConfig = W2VBertConfig()
    repcodec: RepCodecConfig = RepCodecConfig()
    campplus: CAMPPlusConfig = CAMPPlusConfig()
    conditioner: ConditionerConfig = ConditionerConfig()
    gpt: GPTConfig = GPTConfig()
    s2mel: S2MelConfig = S2MelConfig()
    bigvgan: BigVGANConfig = BigVGANConfig()


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the entry."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The contents of config.yaml. Raises FileNotFoundError or ConfigError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder holds config.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict) or "gpt" not in settings or "s2mel" not in settings:
        raise ConfigError(f"{path}: not an IndexTTS-2 configuration (it has no gpt and s2mel entries)")
    return settings


def from_yaml(settings: dict[str, Any]) -> Config:
    """The configuration that config.yaml states, official where it is silent. Raises ConfigError."""
    try:
        return _from_yaml(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.yaml: entry {error} is missing or of the wrong kind") from None


def _from_yaml(settings: dict[str, Any]) -> Config:
    gpt, codec, s2mel = settings["gpt"], settings["semantic_codec"], settings["s2mel"]
    preprocess, dit, wavenet = s2mel["preprocess_params"], s2mel["DiT"], s2mel["wavenet"]
    spectrum = preprocess["spect_params"]
    semantic, width = int(codec["hidden_size"]), int(gpt["model_dim"])
    if gpt["condition_type"] != "conformer_perceiver" or dit["final_layer_type"] != "wavenet":
        raise ValueError("gpt.condition_type or s2mel.DiT.final_layer_type (only conformer_perceiver and wavenet)")

    def encoder(module: dict[str, Any], latents: int, latent_width: int) -> EncoderConfig:
        return EncoderConfig(
            width=module["output_size"],
            heads=module["attention_heads"],
            units=module["linear_units"],
            layers=module["num_blocks"],
            latents=latents,
            latent_width=latent_width,
            perceiver_units=int(latent_width * module["perceiver_mult"] * 2 / 3),
        )

    return Config(
        mel=MelConfig(
            rate=preprocess["sr"],
            n_fft=spectrum["n_fft"],
            window=spectrum["win_length"],
            hop=spectrum["hop_length"],
            mels=spectrum["n_mels"],
            fmin=float(spectrum.get("fmin", 0)),
            fmax=None if spectrum.get("fmax", "None") == "None" else 8000.0,
        ),
        w2vbert=W2VBertConfig(width=semantic),
        repcodec=RepCodecConfig(
            width=semantic,
            codes=codec["codebook_size"],
            code_width=codec["codebook_dim"],
            channels=codec["vocos_dim"],
            intermediate=codec["vocos_intermediate_dim"],
            layers=codec["vocos_num_layers"],
        ),
        campplus=CAMPPlusConfig(embedding=s2mel["style_encoder"]["dim"]),
        conditioner=ConditionerConfig(
            semantic=semantic,
            width=width,
            speaker=encoder(gpt["condition_module"], 32, width),
            emotion=encoder(gpt["emo_condition_module"], 1, semantic),
        ),
        gpt=GPTConfig(
            width=width,
            layers=gpt["layers"],
            heads=gpt["heads"],
            texts=gpt["number_text_tokens"] + 1,
            text_positions=gpt["max_text_tokens"] + 2,
            codes=gpt["number_mel_codes"],
            code_positions=gpt["max_mel_tokens"] + 3,
            start_text=gpt["start_text_token"],
            stop_text=gpt["stop_text_token"],
            start_code=gpt["start_mel_token"],
            stop_code=gpt["stop_mel_token"],
        ),
        s2mel=S2MelConfig(
            mels=dit["in_channels"],
            style=s2mel["style_encoder"]["dim"],
            semantic=semantic,
            latent=width,
            latent_layers=(256, 128, semantic),
            regulator_channels=s2mel["length_regulator"]["channels"],
            regulator_layers=len(s2mel["length_regulator"]["sampling_ratios"]),
            content=dit["content_dim"],
            width=dit["hidden_dim"],
            heads=dit["num_heads"],
            depth=dit["depth"],
            wavenet_width=wavenet["hidden_dim"],
            wavenet_layers=wavenet["num_layers"],
            wavenet_kernel=wavenet["kernel_size"],
        ),
        bigvgan=BigVGANConfig(mels=spectrum["n_mels"]),
    )


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists, for JSON."""
    return dataclasses.asdict(cfg)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of `to_dict`. Raises ConfigError for a missing or unknown entry."""
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict) or set(values) != set(hints):
        raise ConfigError(f"{kind.__name__}: expected the entries {sorted(hints)}, found {sorted(values)}")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if isinstance(hint, types.UnionType):
        return value
    if isinstance(value, list):
        return tuple(_typed(None, item) for item in value)
    return value
