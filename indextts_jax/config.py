"""config.yaml -> one frozen dataclass per component; the same as JSON in a converted folder.

The file leaves some sizes out (semantic width, widths of the latent layers, ...): here they take the official values,
and the converters read them off the tensors instead.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from indextts_jax.features import MelConfig
from indextts_jax.models.bigvgan import BigVGANConfig
from indextts_jax.models.campplus import CAMPPlusConfig
from indextts_jax.models.conditioner import ConditionerConfig, EncoderConfig
from indextts_jax.models.gpt import GPTConfig
from indextts_jax.models.prototypes import PrototypesConfig
from indextts_jax.models.qwen3 import Qwen3Config
from indextts_jax.models.repcodec import RepCodecConfig
from indextts_jax.models.s2mel import S2MelConfig
from indextts_jax.models.w2vbert import W2VBertConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Every size of the system. `Config()` is the official IndexTTS-2."""

    mel: MelConfig = field(default_factory=MelConfig)
    w2vbert: W2VBertConfig = field(default_factory=W2VBertConfig)
    repcodec: RepCodecConfig = field(default_factory=RepCodecConfig)
    campplus: CAMPPlusConfig = field(default_factory=CAMPPlusConfig)
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    gpt: GPTConfig = field(default_factory=GPTConfig)
    s2mel: S2MelConfig = field(default_factory=S2MelConfig)
    bigvgan: BigVGANConfig = field(default_factory=BigVGANConfig)
    qwen3: Qwen3Config | None = None


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


def entry(settings: dict[str, Any], name: str, kind: type[T]) -> T:
    """The entry of config.yaml under a dotted name, e.g. "gpt.heads". Raises ConfigError if it is not of that kind."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        raise ConfigError(f"config.yaml: entry {name} is missing")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # a bool is no int here
        raise ConfigError(f"config.yaml: entry {name} is {value!r}, not of type {kind.__name__}")
    return value


def from_yaml(settings: dict[str, Any]) -> Config:
    """The configuration that config.yaml states, official where it is silent. Raises ConfigError."""

    def number(name: str) -> int:
        return entry(settings, name, int)

    def encoder(name: str, latents: int, latent_width: int) -> EncoderConfig:
        return EncoderConfig(
            width=number(f"{name}.output_size"),
            heads=number(f"{name}.attention_heads"),
            units=number(f"{name}.linear_units"),
            layers=number(f"{name}.num_blocks"),
            latents=latents,
            latent_width=latent_width,
            perceiver_units=int(latent_width * entry(settings, f"{name}.perceiver_mult", float) * 2 / 3),
        )

    for name, known in (("gpt.condition_type", "conformer_perceiver"), ("s2mel.DiT.final_layer_type", "wavenet")):
        if (value := entry(settings, name, str)) != known:
            raise ConfigError(f"config.yaml: entry {name} is {value!r}, only {known!r} is supported")
    spectrum = "s2mel.preprocess_params.spect_params"
    limits = entry(settings, spectrum, dict)
    semantic, width = number("semantic_codec.hidden_size"), number("gpt.model_dim")
    style, mels = number("s2mel.style_encoder.dim"), number(f"{spectrum}.n_mels")
    return Config(
        mel=MelConfig(
            rate=number("s2mel.preprocess_params.sr"),
            n_fft=number(f"{spectrum}.n_fft"),
            window=number(f"{spectrum}.win_length"),
            hop=number(f"{spectrum}.hop_length"),
            mels=mels,
            fmin=entry(settings, f"{spectrum}.fmin", float) if "fmin" in limits else 0.0,
            # the reference takes 8000 for whatever is not "None"
            fmax=None if limits.get("fmax", "None") == "None" else 8000.0,
        ),
        w2vbert=W2VBertConfig(width=semantic),
        repcodec=RepCodecConfig(
            width=semantic,
            codes=number("semantic_codec.codebook_size"),
            code_width=number("semantic_codec.codebook_dim"),
            channels=number("semantic_codec.vocos_dim"),
            intermediate=number("semantic_codec.vocos_intermediate_dim"),
            layers=number("semantic_codec.vocos_num_layers"),
        ),
        campplus=CAMPPlusConfig(embedding=style),
        conditioner=ConditionerConfig(
            semantic=semantic,
            width=width,
            speaker=encoder("gpt.condition_module", 32, width),
            emotion=encoder("gpt.emo_condition_module", 1, semantic),
        ),
        prototypes=PrototypesConfig(_groups(entry(settings, "emo_num", list)), style, width),
        gpt=GPTConfig(
            width=width,
            layers=number("gpt.layers"),
            heads=number("gpt.heads"),
            text_vocabulary=number("gpt.number_text_tokens") + 1,
            text_positions=number("gpt.max_text_tokens") + 2,
            code_vocabulary=number("gpt.number_mel_codes"),
            code_positions=number("gpt.max_mel_tokens") + 3,
            start_text=number("gpt.start_text_token"),
            stop_text=number("gpt.stop_text_token"),
            start_code=number("gpt.start_mel_token"),
            stop_code=number("gpt.stop_mel_token"),
        ),
        s2mel=S2MelConfig(
            mels=number("s2mel.DiT.in_channels"),
            style=style,
            semantic=semantic,
            latent=width,
            latent_layers=(256, 128, semantic),
            regulator_channels=number("s2mel.length_regulator.channels"),
            regulator_layers=len(entry(settings, "s2mel.length_regulator.sampling_ratios", list)),
            content=number("s2mel.DiT.content_dim"),
            width=number("s2mel.DiT.hidden_dim"),
            heads=number("s2mel.DiT.num_heads"),
            depth=number("s2mel.DiT.depth"),
            wavenet_width=number("s2mel.wavenet.hidden_dim"),
            wavenet_layers=number("s2mel.wavenet.num_layers"),
            wavenet_kernel=number("s2mel.wavenet.kernel_size"),
        ),
        bigvgan=BigVGANConfig(mels=mels),
    )


def _groups(counts: list[Any]) -> tuple[int, ...]:
    known = len(PrototypesConfig().groups)
    if len(counts) != known or any(type(count) is not int or count < 1 for count in counts):
        raise ConfigError(f"config.yaml: entry emo_num is {counts}, expected {known} numbers of at least 1")
    return tuple(counts)


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists, for JSON."""
    return dataclasses.asdict(cfg)


def from_dict(kind: type[T], values: Any) -> T:
    """The inverse of `to_dict`. Raises ConfigError for a missing, unknown or mistyped entry."""
    return _typed(kind.__name__, kind, values)


def _typed(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            wrong = sorted(value.keys() ^ hints.keys()) if isinstance(value, dict) else "all"
            raise ConfigError(f"{name}: entries are missing or unknown: {wrong}")
        fields = {field: _typed(f"{name}.{field}", hints[field], value[field]) for field in hints}
        return typing.cast(type, hint)(**fields)
    if isinstance(hint, types.UnionType):  # only "... or None"
        return None if value is None else _typed(name, typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(name, typing.get_args(hint)[0], item) for item in value)
    if type(value) is not hint:
        raise ConfigError(f"{name}: is {value!r}, expected {hint}")
    return value
