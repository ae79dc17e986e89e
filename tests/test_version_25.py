"""IndexTTS-2.5: its tiny checkpoint converted, and every stage of its own against the reference.

w2v-BERT, CAMPPlus, emotions and the vocoder are those of 2.0, whose tests hold them to the reference.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug import validate
from debug.follow import Case, Golden
from debug.golden import FIXTURES, TOLERANCE, absolute, read, relative
from indextts_jax import byte_pairs, checkpoint, convert, drawing, emotion
from indextts_jax.config import Config, from_dict, from_yaml, read_yaml, to_dict
from indextts_jax.convert.tensors import CheckpointError, read_pth
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.model import Model
from indextts_jax.models import conditioner, gpt, repcodec, s2mel
from tests.small import CONDITIONER, GPT, REPCODEC, normal, parameters
from tests.test_validate import names, scaled

OWN = FIXTURES / "tiny25"
LONG = pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="takes long: set INDEXTTS_LONG to run it")


def assembled(folder: Path) -> Path:
    """A model folder of 2.5 in links: what it has of its own, and the rest of the tiny 2.0."""
    folder.mkdir()
    for path in (*OWN.iterdir(), *(FIXTURES / "tiny").iterdir()):
        if path.name != "bpe.model" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return assembled(tmp_path_factory.mktemp("models") / "tiny25")


OWN_COMPONENTS = ("repcodec", "conditioner", "prototypes", "gpt", "s2mel")  # the others are those of the tiny 2.0


@pytest.fixture(scope="module")
def converted(folder) -> Path:
    """It as a converted folder, without the components that are those of 2.0."""
    out = folder.parent / "converted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "components", lambda *_: OWN_COMPONENTS)
        convert.convert(folder, out, strict=True)
    return out


@pytest.fixture(scope="module")
def model(converted) -> Model:
    """It loaded, without a text front end: ids are given."""
    cfg, _ = checkpoint.read_description(converted)
    params = {
        name: checkpoint.restore(converted, name, getattr(cfg, name), jnp.dtype(jnp.float32)) for name in OWN_COMPONENTS
    }
    return Model(params, cfg, SimpleNamespace())  # type: ignore[arg-type]


def golden(name: str) -> Golden:
    return Golden(read(FIXTURES / "golden" / f"{name}.npz"))


@pytest.fixture(scope="module")
def known() -> Golden:
    return golden("v25_greedy")


# ---- configuration and conversion -----------------------------------------------------------------------------------


def test_the_configuration_of_2_5():
    """What its config.yaml states, and what only its version says; official sizes are those of 2.0."""
    cfg, old = from_yaml(read_yaml(FIXTURES / "config_25.yaml")), Config()
    assert cfg.gpt == replace(old.gpt, text_vocabulary=60510, languages=107)
    assert cfg.conditioner == replace(old.conditioner, speaker=None, style=192)
    assert (cfg.conditioner.latents, old.conditioner.latents) == (1, 32)
    assert cfg.repcodec == replace(old.repcodec, stride=2)
    assert cfg.s2mel == replace(old.s2mel, latent_layers=())
    same = {"gpt": old.gpt, "conditioner": old.conditioner, "repcodec": old.repcodec, "s2mel": old.s2mel}
    assert replace(cfg, **same) == old
    assert from_dict(Config, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_models_converted_before_are_those_of_2_0():
    """Their model.json has none of the entries that 2.5 brought."""
    values = to_dict(Config())
    del values["gpt"]["languages"], values["conditioner"]["style"], values["repcodec"]["stride"]
    assert from_dict(Config, values) == Config()


def test_every_tensor_is_used_or_known_as_unused(folder, converted):
    cfg = convert.read_config(folder)
    assert (cfg.gpt.languages, cfg.conditioner.style, cfg.repcodec.stride) == (107, 192, 2)
    assert cfg.s2mel.latent_layers == ()
    reports = {name: convert.read(name, folder, strict=True)[1] for name in ("conditioner", "gpt", "repcodec", "s2mel")}
    assert not any(report.unknown for report in reports.values())
    counted = {name: report.tensors + len(report.unused) for name, report in reports.items()}
    assert counted["conditioner"] + counted["gpt"] == len(read_pth(folder / "gpt.pth")["model"])
    assert counted["repcodec"] == len(read_pth(folder / "codec.pth")["model"]) == reports["repcodec"].tensors
    assert reports["gpt"].unused == ["text_head.bias", "text_head.weight"]
    assert reports["conditioner"].unused == ["emo_conditioning_encoder.embed.pos_enc.pe"]
    theirs = read_pth(folder / "gpt.pth")["model"]["spk_emb_proj.weight"].read()
    kernel = convert.read("conditioner", folder)[0]["speaker"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs.T)
    assert (converted / byte_pairs.NAME).read_bytes() == (folder / byte_pairs.NAME).read_bytes()
    assert not (converted / "bpe.model").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("codec.pth", r"codec\.pth: no such file"),
        (byte_pairs.NAME, r"\.tiktoken: no such file; it belongs to the model"),
    ],
)
def test_a_missing_file_is_named(folder, tmp_path, name, message):
    other = tmp_path / "other"
    shutil.copytree(folder, other, symlinks=True)
    (other / name).unlink()
    with pytest.raises((CheckpointError, convert.NotFound), match=message):
        convert.convert(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_vocabulary_is_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other, symlinks=True)
    content = (other / byte_pairs.NAME).read_bytes()
    (other / byte_pairs.NAME).unlink()
    (other / byte_pairs.NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(Error, match=r"\.tiktoken: not a readable tiktoken vocabulary"):
        convert.convert(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage", "least"),
    [
        ("v25_greedy", "repcodec", 15),
        ("v25_greedy", "conditioner", 12),
        ("v25_greedy", "gpt", 7),
        ("v25_greedy", "s2mel", 15),
        pytest.param("v25_greedy", "bigvgan", 1, marks=LONG),  # the network and the weights of 2.0
        ("v25_segments", "conditioner", 4),
        ("v25_segments", "gpt", 14),
        ("v25_sample", "gpt", 1),
        ("v25_beam3_sample", "gpt", 1),
    ],
)
def test_every_stage_equals_reference(model, tiny, name, stage, least):
    """Greedy in English; in Chinese two segments, 3 beams, an emotion vector, ids of start and stop inside a text.

    Of codes that are drawn, in English with one beam and three, the scores that they are drawn by.
    """
    if stage == "bigvgan":
        model = replace(changed(model, stage, tiny.params(stage)), cfg=replace(model.cfg, bigvgan=tiny.cfg.bigvgan))
    verdicts = list(validate.validate(Case(model, golden(name)), [stage]))
    assert not [validate.cells(verdict) for verdict in verdicts if not verdict.held]
    assert len(verdicts) >= least


def changed(model: Model, component: str, tree: Any) -> Model:
    return replace(model, params={**model.params, component: tree})


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("conditioner", "speaker/kernel"),
        ("conditioner", "speaker/bias"),
        ("conditioner", "emotion/project/kernel"),
        ("gpt", "language/embedding"),
        ("gpt", "head/weight"),
        ("repcodec", "shrink/conv/kernel"),
        ("repcodec", "shrink/conv/bias"),
        ("repcodec", "encoder/layer_1/up/kernel"),
        ("repcodec", "decoder/embed/kernel"),
        ("repcodec", "decoder/layer_0/depthwise/bias"),
        ("repcodec", "decoder/out/kernel"),
        ("repcodec", "stretch/conv/kernel"),
        ("repcodec", "stretch/conv/bias"),
        ("s2mel", "regulator/project/kernel"),
    ],
)
def test_a_scaled_weight_is_named(model, known, component, path):
    """By 1.01: the first tensor that does not hold is that of its module."""
    other = changed(model, component, scaled(model.params[component], path))
    found = validate.validate(Case(other, known), [component])
    first = next((verdict for verdict in found if not verdict.held), None)
    assert first
    assert names(first.where, "prefix" if path == "language/embedding" else path), first.where


def test_the_chain_equals_reference(model, known):
    """From features and style to a mel on our own results alone: codes, content of prompt and target, flow."""
    params, cfg = model.params, model.cfg
    heard, style = known["w2v.spk.normalized"], known["campplus.out"]
    length = np.array([heard.shape[1]])
    own = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, heard, length)
    latents = conditioner.style_latents(params["conditioner"], cfg.conditioner, style)
    felt = emotion.mix(own, conditioner.emotion_vector(
        params["conditioner"], cfg.conditioner, known["w2v.emo.normalized"], length), 1.0)  # fmt: skip
    ids = known["seg0.text_tokens"]
    ids = ids[:, ids[0] > 1]  # start and stop inside a text are dropped
    language = known["seg0.language"].astype(np.int32)
    prefix = gpt.prefix(params["gpt"], cfg.gpt, latents, felt, ids, np.array([ids.shape[1]]), language)
    expected = known["seg0.gpt.codes"].astype(np.int32)
    sampling = Sampling(beams=1, sample=False, repetition_penalty=10.0).of(cfg.gpt)
    drawn = drawing.generate(params["gpt"], cfg.gpt, prefix, [jax.random.key(0)], sampling, expected.shape[1])
    codes, count = np.asarray(drawn.codes)[:, : expected.shape[1]], np.array([expected.shape[1]])
    np.testing.assert_array_equal(codes, expected)

    features = repcodec.restore(params["repcodec"], cfg.repcodec, codes, count)
    assert relative(features, known["seg0.codec.decode"]) <= TOLERANCE["component"]
    mel = known["ref_mel"].swapaxes(1, 2)
    prompt, before = np.array([mel.shape[1]]), heard
    before = s2mel.regulate(params["s2mel"], cfg.s2mel, heard, length, frames=mel.shape[1], target_lengths=prompt)
    frames = known["seg0.bigvgan.in"].shape[2]
    target = s2mel.target_lengths(2 * count)
    assert target.tolist() == [frames]
    content = s2mel.regulate(params["s2mel"], cfg.s2mel, features, 2 * count, frames=frames, target_lengths=target)
    noise = known["seg0.cfm.noise"].swapaxes(1, 2)[:, mel.shape[1] :]
    spoken = s2mel.flow(params["s2mel"], cfg.s2mel, noise, content, target, mel, before, prompt, style)
    assert absolute(spoken, known["seg0.bigvgan.in"].swapaxes(1, 2)) <= TOLERANCE["mel"]


# ---- properties -----------------------------------------------------------------------------------------------------

STRIDED = replace(REPCODEC, stride=2)


def test_padding_changes_nothing_in_a_codec_with_a_stride():
    """Of even and odd lengths, there and back."""
    params, lengths = parameters("repcodec", STRIDED), [11, 6]
    batch = normal(3, 2, 14, STRIDED.width)
    batch[0, 11:] = batch[1, 6:] = np.nan
    found = repcodec.quantize(params, STRIDED, batch, np.array(lengths))
    counts = repcodec.code_lengths(STRIDED, np.array(lengths))
    assert counts.tolist() == [6, 3]
    codes = np.array(found.codes)
    codes[0, 6:] = codes[1, 3:] = 5
    features = np.asarray(repcodec.restore(params, STRIDED, codes, counts))
    for i, (n, count) in enumerate(zip(lengths, counts.tolist(), strict=True)):
        alone = repcodec.quantize(params, STRIDED, batch[i : i + 1, :n], np.array([n]))
        np.testing.assert_array_equal(codes[i : i + 1, :count], alone.codes)
        restored = repcodec.restore(params, STRIDED, alone.codes, np.array([count]))
        assert restored.shape == (1, 2 * count, STRIDED.width)
        assert relative(features[i : i + 1, : 2 * count], restored) <= TOLERANCE["block"]


def test_distributions_restore_as_their_codes_do():
    params, codes = parameters("repcodec", STRIDED), np.array([[0, 7, 19, 3]])
    expected = repcodec.restore(params, STRIDED, codes, np.array([4]))
    one_hot = np.eye(22, dtype=np.float32)[codes]
    np.testing.assert_array_equal(repcodec.restore(params, STRIDED, one_hot, np.array([4])), expected)


MANY = replace(GPT, languages=7)


def test_a_language_is_added_to_the_text_alone():
    """From the start of each row's text to its stop; the speed is two zeros, and the start code knows no language."""
    params = parameters("gpt", MANY)
    given = normal(0, 2, 1, 16), normal(1, 2, 16), np.array([[5, 6, 7, 8], [9, 10, 0, 0]]), np.array([4, 2])
    one, other = (gpt.prefix(params, MANY, *given, np.array(rows)) for rows in ([3, 6], [0, 6]))
    np.testing.assert_array_equal(one.lengths, [1 + 2 + 4 + 3, 1 + 2 + 2 + 3])
    np.testing.assert_array_equal(one.embeddings[:, 1:3], np.zeros((2, 2, 16)))
    table = params["language"]["embedding"]
    difference = np.zeros((2, 10, 16), np.float32)
    difference[0, 3:9] = table[3] - table[0]
    np.testing.assert_allclose(one.embeddings - other.embeddings, difference, atol=1e-6)


def test_a_model_hears_what_it_was_made_for():
    params, heard = parameters("gpt", MANY), replace(CONDITIONER, speaker=None, style=6)
    given = normal(0, 1, 1, 16), normal(1, 1, 16), np.array([[5]]), np.array([1])
    with pytest.raises(ValueError, match="languages are for models"):
        gpt.prefix(params, MANY, *given)
    with pytest.raises(ValueError, match="languages are for models"):
        gpt.prefix(parameters("gpt", GPT), GPT, *given, np.array([0]))
    styles = parameters("conditioner", heard)
    assert conditioner.style_latents(styles, heard, normal(0, 3, 6)).shape == (3, 1, 16)
    with pytest.raises(ValueError, match="style_latents, not speaker_latents"):
        conditioner.speaker_latents(styles, heard, normal(0, 1, 9, 12), np.array([9]))
    with pytest.raises(ValueError, match="speaker_latents, not style_latents"):
        conditioner.style_latents(styles, CONDITIONER, normal(0, 3, 6))
