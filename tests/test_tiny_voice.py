"""The recipe of the small voice: what of it needs no teacher and no recogniser."""

import inspect
import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from indextts_jax import Options, Sampling, audio, checkpoint, config, features, load, text
from indextts_jax.errors import Error
from indextts_jax.models import campplus, conditioner, gpt, s2mel, w2vbert
from indextts_jax.train import settings, stages
from indextts_jax.train.recipes.tiny_voice import assemble, corpus, grammar, measure, model
from indextts_jax.voice import Voice
from tests import small

GREEDY = Options(sampling=Sampling(beams=1, sample=False), max_codes=6, steps=1)
OPTIONS = Options(sampling=Sampling(beams=1), max_codes=6, retries=5, steps=1)
PACKAGE = Path(model.__file__).parent
# The smallest system with this vocoder's hop; its texts have room for a sentence.
SIZES = replace(
    small.CONFIG,
    mel=features.MelConfig(),
    gpt=replace(small.CONFIG.gpt, text_positions=122, code_vocabulary=22, start_code=20, stop_code=21),
    prototypes=replace(model.SIZES.prototypes, style=6, width=16),
    s2mel=replace(small.CONFIG.s2mel, mels=80),
    bigvgan=small.VOCODER,
    campplus=replace(small.CONFIG.campplus, embedding=6),
)


def drawn(count: int, seed: int, held_out: bool = False) -> list[str]:
    return list(itertools.islice(grammar.sentences(seed, held_out), count))


def test_sentences_come_of_the_seed_and_never_twice():
    found = drawn(500, 3)
    assert found == drawn(500, 3)
    assert found != drawn(500, 4)
    assert len(set(found)) == 500


def test_what_is_held_out_is_never_trained_on():
    held, trained = (
        {tuple(grammar.words(one)) for seed in range(3) for one in drawn(200, seed, out)} for out in (True, False)
    )
    assert held
    assert not held & trained
    assert grammar.is_held_out(drawn(1, 0, True)[0].upper().rstrip(".?"))  # its words alone count


def test_the_vocabulary_is_small_and_all_of_it_is_spoken():
    words = grammar.vocabulary()
    assert 200 <= len(words) <= 250
    assert {word for sentence in drawn(4000, 0) for word in grammar.words(sentence)} == set(words)


def test_sentences_begin_and_end_as_sentences_do():
    for sentence in drawn(300, 1):
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert not set("{};") & set(sentence)
        assert 4 <= len(grammar.words(sentence)) <= 16


def test_free_text_is_cut_into_plain_sentences():
    text = "One two three four.  Only three words. It's 5 o'clock.\nWell, this one\ngoes on!\n%\nTHE END is not near.\n"
    assert corpus.free_sentences(text) == ["One two three four.", "Well, this one goes on!"]


def test_the_plan_takes_a_third_of_free_text_and_each_speaker_in_turn():
    free = ["Here is a sentence.", "There is another one.", "This is the last one."]
    planned = list(itertools.islice(corpus.plan(0, free, 2), 12))
    assert {one.text for one in planned[2::3]} >= set(free)
    assert not set(free) & {one.text for i, one in enumerate(planned) if i % 3 != 2}
    assert [one.speaker for one in planned] == ["heart", "low"] * 6
    assert planned == list(itertools.islice(corpus.plan(0, free, 2), 12))
    assert len({one.name for one in planned}) == 12


def test_silence_at_the_ends_is_cut():
    samples = np.zeros(24000, np.float32)
    samples[9000:12000] = 0.5
    cut = corpus.trimmed(samples, 24000)
    assert len(cut) == 3000 + 24000 * (0.06 + 0.12)
    assert (cut[1440:4440] == 0.5).all()
    assert len(corpus.trimmed(np.zeros(10, np.float32), 24000)) == 10


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of toy size, made of the grammar's texts and a little noise, of which nothing is measured."""
    made = tmp_path_factory.mktemp("voice")
    (made / "wavs").mkdir()
    audio.write_wav(made / "wavs" / "0.wav", audio.to_int16(small.speech(1.0, 24000)), 24000)
    rows = [{"audio": "wavs/0.wav", "text": text, "speaker": "a"} for text in drawn(100, 0)]
    (made / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        means = np.full(80, -6.0, np.float32), np.zeros(12, np.float32), np.ones(12, np.float32)
        patch.setattr(model, "measured", lambda params, cfg, recordings: means)
        model.make(made, made / "model", 0, SIZES, 300)
    return made / "model"


def test_the_sizes_are_within_bounds():
    config.check(model.SIZES)


def test_the_front_end_finds_its_pieces(folder):
    front = checkpoint.load_text(folder)
    assert front.processor.vocab_size() <= 300
    assert [front.processor.id_to_piece(i) for i in range(3)] == ["<s>", "</s>", "<unk>"]
    for sentence in drawn(50, 1, held_out=True):
        found = front.analyse(sentence)
        assert not found.unknown
        assert min(found.ids) > 2
        assert found.pieces[-1] in text.STOPS
        assert max(found.ids) < checkpoint.read_description(folder)[0].gpt.text_vocabulary
    # Each mark is a piece of its own, and words of other letters have pieces, too.
    found = front.analyse("Well, is Xavier-Quinn's zebra fizzy! Yes? Now.")
    assert {",", "-", "!", "?", "."} <= set(found.pieces)
    assert not found.unknown


def test_the_model_speaks_and_is_measured(folder, monkeypatch):
    loaded = load(folder)
    cfg = loaded.cfg
    voice = Voice(
        small.normal(0, cfg.conditioner.latents, cfg.gpt.width), *small.normal(1, 2, cfg.gpt.width),
        small.normal(2, cfg.s2mel.style), small.normal(3, 20, cfg.s2mel.mels), small.normal(4, 20, cfg.s2mel.content),
    )  # fmt: skip
    spoken = loaded.speak("Anna found a book.", voice, seed=0, options=OPTIONS)
    assert len(spoken.samples) > 0
    sentences = [measure.Sentence("Anna found a book.", np.zeros(0))]
    monkeypatch.setitem(measure.SPOKEN, "speech", OPTIONS)
    [heard] = measure.spoken(loaded, voice, sentences)
    np.testing.assert_array_equal(heard, spoken.samples)
    monkeypatch.setitem(measure.SPOKEN, "stream", GREEDY)
    [heard] = measure.spoken(loaded, voice, sentences, "stream")
    np.testing.assert_array_equal(heard, loaded.speak("Anna found a book.", voice, seed=0, options=GREEDY).samples)
    # Of two, one cannot be spoken: it alone is silence.
    heard = measure.spoken(loaded, voice, [sentences[0], sentences[0]._replace(text=" ")])
    np.testing.assert_array_equal(heard[0], spoken.samples)
    assert not heard[1].any()


def test_the_vocoder_hears_nothing_in_the_mean():
    """As it is drawn, it answers a log-mel, whose mean is some -6, with samples beyond ±1, where no gradient is."""
    drawn = {
        "in": {"kernel": small.normal(0, 7, 5, 4), "bias": np.ones(4, np.float32)},
        "out": {"kernel": small.normal(1, 7, 4, 1)},
        "stage_0": {"plain_0_0": {"kernel": np.ones(3), "bias": np.ones(2)}, "dilated_0_0": {"kernel": np.ones(3)}},
    }
    mean = small.normal(2, 5) - 6
    made = model.quiet(drawn, mean)
    first = np.einsum("kmc,m->c", made["in"]["kernel"], mean) + made["in"]["bias"]
    np.testing.assert_allclose(first, 0, atol=1e-4)
    assert made["stage_0"]["plain_0_0"]["kernel"].tolist() == pytest.approx([0.3] * 3)
    assert made["stage_0"]["dilated_0_0"]["kernel"].tolist() == [1] * 3
    assert np.abs(made["out"]["kernel"]).max() == pytest.approx(0.1 * np.abs(drawn["out"]["kernel"]).max())


def test_a_layer_of_the_encoder_adds_little():
    cfg = replace(small.W2VBERT, layers=8)
    drawn, x, lengths = small.parameters("w2vbert", cfg), small.normal(0, 1, 20, 6), np.array([20])
    kept = []
    for params in (drawn, model.near_identity(drawn)):
        whole = w2vbert.encode(params, cfg, x, np.ones((1, 20), bool), lengths)
        without = {**params, "encoder": {k: v for k, v in params["encoder"].items() if k != "layer_7"}}
        less = w2vbert.encode(without, replace(cfg, layers=7), x, np.ones((1, 20), bool), lengths)
        kept.append(np.corrcoef(np.ravel(whole), np.ravel(less))[0, 1])
    assert 1 - kept[1] < (1 - kept[0]) / 3, kept


def test_one_speaker_has_one_style(folder):
    cfg = checkpoint.read_description(folder)[0]
    own = checkpoint.restore(folder, "campplus", cfg.campplus, np.dtype(np.float32))
    heard = small.normal(0, 2, 30, 80)
    one, other = campplus.embed(own, cfg.campplus, heard, np.array([30, 20]))
    np.testing.assert_array_equal(one, other)


def test_one_speaker_is_heard_as_one(folder):
    cfg = checkpoint.read_description(folder)[0].conditioner
    own = checkpoint.restore(folder, "conditioner", cfg, np.dtype(np.float32))
    heard, lengths = small.normal(0, 2, 30, cfg.semantic), np.array([30, 20])
    for one, other in (
        conditioner.speaker_latents(own, cfg, heard, lengths),
        conditioner.emotion_vector(own, cfg, heard, lengths),
    ):
        np.testing.assert_array_equal(one, other)
        assert np.all(np.abs(one).max(axis=-1) > 0.01)  # at zero, a norm has no gradient


def test_a_layer_of_the_gpt_adds_little():
    cfg = replace(small.GPT, layers=2)
    drawn = small.parameters("gpt", cfg)
    codes = np.array([[1, 2, 3, 4]])
    kept = []
    for params in (drawn, model.text_first(drawn)):
        fed = params["code"]["embedding"][codes] + params["code_position"]["embedding"][None, 1:5]
        given = gpt.Prefix(small.normal(0, 1, 1, cfg.width), np.array([1]))
        _, whole = gpt.states(params, cfg, given, codes)
        kept.append(np.corrcoef(np.ravel(whole[:, 1:]), np.ravel(fed))[0, 1])
    assert 1 - kept[1] < (1 - kept[0]) / 3, kept


def test_the_flow_begins_at_the_mean():
    cfg, mean = small.S2MEL, np.linspace(-7, -5, small.S2MEL.mels).astype(np.float32)
    made = model.plain(small.parameters("s2mel", cfg), mean)
    x, style = small.normal(0, 2, 20, cfg.mels), small.normal(1, 2, cfg.style)
    content, lengths = small.normal(2, 2, 20, cfg.content), np.array([20, 15])
    found = s2mel.estimate(made, cfg, x, 0 * x, content, style, np.array([0.2, 0.7], np.float32), lengths)
    np.testing.assert_allclose(np.asarray(found)[1, :15].mean(axis=0), mean, atol=1)
    leaves = made["estimator"]["transformer"]["layer_0"]["attention_norm"]["project"]["bias"]
    np.testing.assert_array_equal(leaves[: cfg.width], np.ones(cfg.width))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_are_read(path):
    assert path.stem in stages.RECIPES
    found = settings.read(path, data="corpus")
    assert set(found.loss) <= set(inspect.signature(stages.RECIPES[path.stem].loss).parameters)


def test_one_model_is_made_of_several(folder, tmp_path):
    changed = checkpoint.read_description(folder)[0].bigvgan
    other = small.parameters("bigvgan", changed, seed=7)
    checkpoint.derive(folder, tmp_path / "run", {"bigvgan": other})
    assemble.assemble(folder, tmp_path / "whole", {"bigvgan": tmp_path / "run"})
    found = checkpoint.restore(tmp_path / "whole", "bigvgan", changed, np.dtype(np.float32))
    np.testing.assert_array_equal(found["in"]["kernel"], other["in"]["kernel"])
    assert (tmp_path / "whole" / "bpe.model").read_bytes() == (folder / "bpe.model").read_bytes()
    with pytest.raises(Error, match="prototypes is none of"):
        assemble.assemble(folder, tmp_path / "other", {"prototypes": tmp_path / "run"})


def test_a_model_of_half_size(folder, tmp_path):
    """It is loaded as any other; a part of it is kept, and is found again where a model is put together."""
    assemble.assemble(folder, tmp_path / "half", {}, half=True)
    half, whole = load(tmp_path / "half"), load(folder)
    assert half.cfg == whole.cfg
    for name, tree in whole.params.items():
        expected = jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.ndim > 1 else leaf, tree
        )
        jax.tree.map(np.testing.assert_array_equal, half.params[name], expected)
    sizes = [sum(f.stat().st_size for f in at.rglob("d/*")) for at in (folder, tmp_path / "half")]
    saved = 2 * sum(leaf.size for leaf in jax.tree.leaves(whole.params))
    assert saved / 2 < sizes[0] - sizes[1] < 2 * saved  # what else is in these files is larger in a small model
    assemble.assemble(folder, tmp_path / "part", {}, half=True, only=["repcodec"])
    assert {path.name for path in (tmp_path / "part").iterdir() if path.is_dir()} == {"repcodec"}
    assemble.assemble(folder, tmp_path / "again", {"repcodec": tmp_path / "part"})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "again").params["repcodec"], half.params["repcodec"])


# ---- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard", "spoken", "errors"),
    [("a b c", "a b c", 0), ("a c", "a b c", 1), ("a x b c", "a b c", 1), ("", "a b", 2), ("c a b", "a b c", 2)],
)
def test_wrong_words_are_counted(heard, spoken, errors):
    assert measure.wrong(heard.split(), spoken.split()) == errors


def test_numbers_count_as_they_are_spoken():
    assert measure.words("At 7 o'clock, 12 dogs.") == measure.words("at seven o'clock twelve dogs")


def test_six_sentences_are_heard_at_once():
    sizes = []

    def recognise(samples: np.ndarray) -> str:
        sizes.append(len(samples))
        return "one two " * (6 if len(sizes) == 1 else 1)

    found = measure.rate([np.zeros(22050, np.float32)] * 8, ["One two."] * 8, recognise)
    assert sizes == [6 * 24000, 2 * 24000]
    assert found == measure.Rate(2, 16)
    assert found.percent == 12.5
