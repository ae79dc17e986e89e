"""The recipe of the small voice: what of it needs no teacher and no recogniser."""

import itertools

import numpy as np

from indextts_jax.train.recipes.tiny_voice import corpus, grammar


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
