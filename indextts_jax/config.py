"""config.yaml -> one frozen dataclass per component; the same as JSON in a converted folder.

The file leaves some sizes out (semantic width, widths of the latent layers, ...): here they take the official values,
and the converters read them off the tensors instead.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from indextts_jax import files, yaml_file
from indextts_jax.errors import Error, NotFound, short, shown
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
_MOST_BYTES = 1_000_000  # of a JSON file


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


class ConfigError(Error):
    """A configuration that cannot be used; the message names the file and the entry."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The contents of config.yaml. Raises NotFound or ConfigError."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file; a model folder holds config.yaml")
    try:
        settings = yaml_file.read(path)
    except yaml_file.YamlError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({files.reason(error)}); check its permissions") from None
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
        raise ConfigError(f"config.yaml: entry {name} is {short(value)}, not of type {kind.__name__}")
    return value


def inside(settings: dict[str, Any], name: str) -> str:
    """The entry of config.yaml that names a file or folder of the model folder. Raises ConfigError for one outside.

    A link inside the folder may lead anywhere: whoever owns the folder made it.
    """
    path = PurePosixPath(place := entry(settings, name, str).strip())
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"config.yaml: entry {name} is {short(place)}, outside the model folder; move the file into the folder"
        )
    return str(path)


class Limits(NamedTuple):
    """What a number must lie between: generous for any model, and small enough for nothing to run out of memory."""

    least: float
    most: float

    def check(self, name: str, value: Any) -> None:
        if not self.least <= value <= self.most:  # NaN lies nowhere
            raise ConfigError(f"{name} is {short(value)}, but must lie between {self.least:,} and {self.most:,}")


_WIDTH, _LAYERS, _VOCABULARY = Limits(1, 65_536), Limits(1, 512), Limits(1, 1 << 24)
_ID, _POSITIONS, _KERNEL, _RATE = Limits(0, 1 << 24), Limits(1, 1 << 20), Limits(1, 1024), Limits(1, 1 << 20)
_HERTZ, _RATIO = Limits(0.0, 1e6), Limits(0.0, 1024.0)
_MOST_ITEMS = 64
_LIMITS = {  # by the names of our fields; others are widths
    **dict.fromkeys(("layers", "perceiver_layers", "depth", "regulator_layers", "wavenet_layers", "blocks"), _LAYERS),
    **dict.fromkeys(("text_vocabulary", "code_vocabulary", "codes", "vocabulary", "languages"), _VOCABULARY),
    **dict.fromkeys(("start_text", "stop_text", "start_code", "stop_code", "stops"), _ID),
    **dict.fromkeys(("text_positions", "code_positions"), _POSITIONS),
    **dict.fromkeys(("kernel", "kernels", "wavenet_kernel", "upsample_rates", "upsample_kernels"), _KERNEL),
    **dict.fromkeys(("left", "right"), Limits(0, 65_536)),
    **dict.fromkeys(("fmin", "fmax"), _HERTZ),
    "stride": Limits(1, 64),
    "rate": _RATE,
    "base": Limits(1.0, 1e12),
    "epsilon": Limits(0.0, 1.0),
    "repetition_penalty": Limits(1e-3, 1000.0),
}


class _Variant(NamedTuple):
    """What a version of the system has that config.yaml does not say."""

    languages: int | None = None  # the GPT has an embedding of so many, and none of the speed
    stride: int | None = None  # of the codec, whose decoder makes the content without the GPT's latents
    projected: bool = False  # the style is what the GPT hears of a speaker


_VARIANTS = {"2.5": _Variant(languages=107, stride=2, projected=True)}  # by `version`; others are as 2.0


def from_yaml(settings: dict[str, Any]) -> Config:
    """The configuration that config.yaml states, official where it is silent. Raises ConfigError."""
    variant = _VARIANTS.get(str(settings.get("version")), _Variant())

    def number(name: str, limits: Limits = _WIDTH) -> int:
        value = entry(settings, name, int)
        limits.check(f"config.yaml: entry {name}", value)
        return value

    def real(name: str, limits: Limits) -> float:
        value = entry(settings, name, float)
        limits.check(f"config.yaml: entry {name}", value)
        return value

    def encoder(name: str, latents: int, latent_width: int) -> EncoderConfig:
        return EncoderConfig(
            width=number(f"{name}.output_size"),
            heads=number(f"{name}.attention_heads"),
            units=number(f"{name}.linear_units"),
            layers=number(f"{name}.num_blocks", _LAYERS),
            latents=latents,
            latent_width=latent_width,
            perceiver_units=int(latent_width * real(f"{name}.perceiver_mult", _RATIO) * 2 / 3),
        )

    for name, known in (("gpt.condition_type", "conformer_perceiver"), ("s2mel.DiT.final_layer_type", "wavenet")):
        if (value := entry(settings, name, str)) != known:
            raise ConfigError(f"config.yaml: entry {name} is {short(value)}, only {known!r} is supported")
    spectrum = "s2mel.preprocess_params.spect_params"
    limits = entry(settings, spectrum, dict)
    semantic, width = number("semantic_codec.hidden_size"), number("gpt.model_dim")
    texts, codes = number("gpt.number_text_tokens", _VOCABULARY), number("gpt.number_mel_codes", _VOCABULARY)
    style, mels = number("s2mel.style_encoder.dim"), number(f"{spectrum}.n_mels")
    return Config(
        mel=MelConfig(
            rate=number("s2mel.preprocess_params.sr", _RATE),
            n_fft=number(f"{spectrum}.n_fft"),
            window=number(f"{spectrum}.win_length"),
            hop=number(f"{spectrum}.hop_length"),
            mels=mels,
            fmin=real(f"{spectrum}.fmin", _HERTZ) if "fmin" in limits else 0.0,
            # the reference takes 8000 for whatever is not "None"
            fmax=None if limits.get("fmax", "None") == "None" else 8000.0,
        ),
        w2vbert=W2VBertConfig(width=semantic),
        repcodec=RepCodecConfig(
            width=semantic,
            codes=number("semantic_codec.codebook_size", _VOCABULARY),
            code_width=number("semantic_codec.codebook_dim"),
            channels=number("semantic_codec.vocos_dim"),
            intermediate=number("semantic_codec.vocos_intermediate_dim"),
            layers=number("semantic_codec.vocos_num_layers", _LAYERS),
            stride=variant.stride,
        ),
        campplus=CAMPPlusConfig(embedding=style),
        conditioner=ConditionerConfig(
            semantic=semantic,
            width=width,
            speaker=None if variant.projected else encoder("gpt.condition_module", 32, width),
            emotion=encoder("gpt.emo_condition_module", 1, semantic),
            style=style if variant.projected else None,
        ),
        prototypes=PrototypesConfig(_groups(entry(settings, "emo_num", list)), style, width),
        gpt=GPTConfig(
            width=width,
            layers=number("gpt.layers", _LAYERS),
            heads=number("gpt.heads"),
            text_vocabulary=texts + 1,
            text_positions=number("gpt.max_text_tokens", _POSITIONS) + 2,
            code_vocabulary=codes,
            code_positions=number("gpt.max_mel_tokens", _POSITIONS) + 3,
            start_text=number("gpt.start_text_token", Limits(0, texts)),
            stop_text=number("gpt.stop_text_token", Limits(0, texts)),
            start_code=number("gpt.start_mel_token", Limits(0, codes - 1)),
            stop_code=number("gpt.stop_mel_token", Limits(0, codes - 1)),
            languages=variant.languages,
        ),
        s2mel=S2MelConfig(
            mels=number("s2mel.DiT.in_channels"),
            style=style,
            semantic=semantic,
            latent=width,
            latent_layers=() if variant.stride else (256, 128, semantic),
            regulator_channels=number("s2mel.length_regulator.channels"),
            regulator_layers=_count(settings, "s2mel.length_regulator.sampling_ratios"),
            content=number("s2mel.DiT.content_dim"),
            width=number("s2mel.DiT.hidden_dim"),
            heads=number("s2mel.DiT.num_heads"),
            depth=number("s2mel.DiT.depth", _LAYERS),
            wavenet_width=number("s2mel.wavenet.hidden_dim"),
            wavenet_layers=number("s2mel.wavenet.num_layers", _LAYERS),
            wavenet_kernel=number("s2mel.wavenet.kernel_size", _KERNEL),
        ),
        bigvgan=BigVGANConfig(mels=mels),
    )


def _groups(counts: list[Any]) -> tuple[int, ...]:
    known = len(PrototypesConfig().groups)
    if len(counts) != known or any(type(count) is not int or count < 1 for count in counts):
        raise ConfigError(f"config.yaml: entry emo_num is {short(counts)}, expected {known} numbers of at least 1")
    for count in counts:
        _WIDTH.check("config.yaml: a number of entry emo_num", count)
    return tuple(counts)


def _count(settings: dict[str, Any], name: str) -> int:
    _LAYERS.check(f"config.yaml: the number of items of entry {name}", count := len(entry(settings, name, list)))
    return count


def read_json(path: Path) -> dict[str, Any]:
    """The entries of a JSON file such as config.json. Raises NotFound or ConfigError."""
    try:
        content = json.loads(files.read(path, _MOST_BYTES))
    except files.FileError as error:
        raise ConfigError(str(error)) from None
    except NotFound:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {shown(error)}; download it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no entries; download it again")
    return content


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists, for JSON."""
    return dataclasses.asdict(cfg)


def from_dict(kind: type[T], values: Any) -> T:
    """The inverse of `to_dict`. Raises ConfigError for a missing, unknown or mistyped entry, or one past its limits."""
    return _typed(kind.__name__, "", kind, values)


def check(cfg: Any) -> None:
    """Hold a configuration that was put together to the types and limits of its fields. Raises ConfigError."""
    from_dict(type(cfg), to_dict(cfg))


def _typed(name: str, last: str, hint: Any, value: Any) -> Any:
    """`value` as `hint` has it; name: where it stands, last: of the field that it belongs to."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if isinstance(value, dict):  # written before there was such an entry
            value = {entry: None for entry, kind in hints.items() if type(None) in typing.get_args(kind)} | value
        if not isinstance(value, dict) or value.keys() != hints.keys():
            wrong = short(sorted(value.keys() ^ hints.keys())) if isinstance(value, dict) else "all"
            raise ConfigError(f"{name}: entries are missing or unknown: {wrong}")
        fields = {field: _typed(f"{name}.{field}", field, hints[field], value[field]) for field in hints}
        return typing.cast(type, hint)(**fields)
    if isinstance(hint, types.UnionType):  # only "... or None"
        return None if value is None else _typed(name, last, typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        if len(value) > _MOST_ITEMS:
            raise ConfigError(f"{name}: holds {len(value)} items, but at most {_MOST_ITEMS} are possible")
        return tuple(_typed(name, last, typing.get_args(hint)[0], item) for item in value)
    if type(value) is not hint:
        raise ConfigError(f"{name}: is {short(value)}, expected {getattr(hint, '__name__', hint)}")
    _LIMITS.get(last, _WIDTH).check(name, value)
    return value
