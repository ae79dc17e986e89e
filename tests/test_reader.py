"""Emotions read off texts, as the reference reads them."""

import json

import pytest

from debug.golden import FIXTURES
from indextts_jax import checkpoint
from indextts_jax.buckets import QUESTION
from indextts_jax.emotion import NAMES
from indextts_jax.reader import LONGEST, PROMPT, answer_in, understand

pytestmark = pytest.mark.whole

QWEN = json.loads((FIXTURES / "golden" / "qwen_emotion.json").read_text("utf-8"))


@pytest.mark.parametrize("case", QWEN["convert_table"], ids=lambda case: case["completion"])
def test_answers_are_understood_as_the_reference_does(case):
    if case["result"] is None:
        with pytest.raises(ValueError, match="say the text in other words") as error:
            understand(case["completion"], case["text"])
        assert repr(case["completion"]) in str(error.value)
    else:
        assert understand(case["completion"], case["text"]) == tuple(case["result"].values())
        assert tuple(case["result"]) == NAMES


@pytest.fixture(scope="module")
def reader(converted):
    return checkpoint.load_reader(converted)


@pytest.mark.parametrize("run", QWEN["runs"], ids=lambda run: run["text"])
def test_texts_are_read_as_the_reference_does(reader, run):
    ids = run["input_ids"]
    assert reader.tokenizer.encode(PROMPT.format(text=run["text"])).ids == ids
    drawn = len(run["output_ids"]) - len(ids)
    assert reader.answer(run["text"], drawn) == run["decoded"]
    assert reader.read(run["text"]) == tuple(run["result"].values())
    with pytest.raises(ValueError, match="the text to read an emotion off is empty"):
        reader.read("  ")


def test_what_was_thought_is_left_out(reader):
    """Of ids drawn by hand: the answer begins after the last </think>, and special tokens are no part of it."""
    thought, [happy] = reader.tokenizer.token_to_id("</think>"), reader.tokenizer.encode("a").ids[:1]
    assert thought is not None
    answers = {(happy, thought, happy): "a", (happy, thought, thought): "", (happy,): "a"}
    for ids, expected in answers.items():
        assert answer_in(reader.tokenizer, list(ids)) == expected


def test_a_long_text_is_cut_and_said_so(reader, caplog):
    """20,000 letters took 13 GB: no more is asked than fits the last rung of questions."""
    long = "I am so glad today! " * 5000
    cut = reader._cut(long)
    assert long.startswith(cut)
    assert 0.9 * LONGEST <= len(reader.tokenizer.encode(cut).ids) <= LONGEST
    assert len(reader.tokenizer.encode(PROMPT.format(text=cut)).ids) <= QUESTION[-1]
    assert f"first {len(cut)} characters of a text; this one has {len(long)}" in caplog.text
    assert reader._cut("I am so glad today!") == "I am so glad today!"
