"""Pauses: marks and blank lines are silences of the length that is written, and are never spoken."""

import random
import re
import time

import pytest

from debug.golden import FIXTURES
from indextts_jax.errors import Error
from indextts_jax.pauses import split, without
from indextts_jax.text import TextFrontEnd


@pytest.fixture(scope="module")
def front() -> TextFrontEnd:
    return TextFrontEnd.load(FIXTURES / "tiny" / "bpe.model")


@pytest.mark.parametrize(
    ("text", "parts", "lead", "pauses"),
    [
        ("Hello.", ["Hello."], 0, [None]),
        ("a [pause 500ms] b", ["a ", " b"], 0, [500, None]),
        ("a[pause 1.5s]b", ["a", "b"], 0, [1500, None]),
        ("a [Pause  .25 s ] b", ["a ", " b"], 0, [250, None]),
        ("a [pause 0ms] b", ["a ", " b"], 0, [0, None]),
        ("[pause 1s] a [pause 2s]", [" a "], 1000, [2000]),
        ("a [pause 1s] [pause 20ms]\n[pause 60s] b", ["a ", " b"], 0, [61_020, None]),
        ("你好，[pause 300ms]世界。", ["你好，", "世界。"], 0, [300, None]),
        # Blank lines: one pause for however many there are, none at the ends, none beside a mark.
        ("a\n\nb", ["a", "b"], 0, [700, None]),
        ("a\r\n\r\nb", ["a\r", "b"], 0, [700, None]),
        ("a\n \t\n\n\u3000\nb", ["a", "b"], 0, [700, None]),
        ("\n\na\n\n", ["a"], 0, [None]),
        ("a\n\n[pause 1s]\n\nb", ["a", "b"], 0, [1000, None]),
        ("\n\n[pause 1s]\n\nb\n\n[pause 2s]\n", ["b"], 1000, [2000]),
        ("a\nb", ["a\nb"], 0, [None]),
        # What is no mark.
        ("[pauses 1s] [p 1s] pause 1s", ["[pauses 1s] [p 1s] pause 1s"], 0, [None]),
        ("[pause 1s]", [], 0, []),
        ("", [], 0, []),
    ],
)
def test_a_text_is_cut_at_its_pauses(text: str, parts: list[str], lead: int, pauses: list[int | None]):
    assert split(text, 700) == (parts, lead, pauses)


def test_blank_lines_may_have_no_meaning():
    assert split("a\n\nb [pause 1s]\n\nc", 0) == (["a\n\nb ", "\n\nc"], 0, [1000, None])


def test_random_texts_lose_nothing_but_their_pauses():
    rng = random.Random(3)
    for _ in range(500):
        words = [f"w{i}." for i in range(rng.randint(1, 6))]
        gaps = [[rng.randint(0, 9999) for _ in range(rng.randint(0, 3))] for _ in range(len(words) + 1)]
        blank = [rng.random() < 0.3 for _ in gaps]
        text = ""
        for i, (gap, empty) in enumerate(zip(gaps, blank, strict=True)):
            marks = [rng.choice([f"[pause {ms}ms]", f"[pause {ms / 1000}s]"]) for ms in gap] + ["\n \n"] * empty
            rng.shuffle(marks)
            text += " ".join(["", *marks, *words[i : i + 1]])
        parts, lead, pauses = split(text, 250)
        assert "".join(parts).split() == words
        assert lead == sum(gaps[0])
        expected = [sum(gap) if gap else 250 * empty for gap, empty in zip(gaps[1:], blank[1:], strict=True)]
        expected[-1] = sum(gaps[-1])
        # Words without anything between them are one part.
        ends = [gap != [] or empty for gap, empty in zip(gaps[1:-1], blank[1:-1], strict=True)] + [True]
        assert [pause or 0 for pause in pauses] == [ms for ms, end in zip(expected, ends, strict=True) if end]


@pytest.mark.parametrize(
    "mark",
    ["[pause]", "[pause ]", "[pause -1s]", "[pause 1h]", "[pause 500]", "[pause s]", "[pause .s]", "[pause 1.s]",
     "[pause 60001ms]", "[pause 60.001s]", "[pause 0.0001s]", "[pause 1.5ms]", "[pause 1e3ms]", "[pause 1 s 2]",
     "[pause １s]", "[pause=1s]", "[pause1s]", "[pause停]", "[PAUSE for effect]", "[pause 99999999999999999999s]"],
)  # fmt: skip
def test_a_mark_that_cannot_be_read_is_one_line(mark: str):
    with pytest.raises(Error, match=re.escape(mark[:40]) + r": write a pause as \[pause 500ms\] or") as found:
        split(f"One. {mark} Two.")
    assert "\n" not in str(found.value)
    with pytest.raises(Error, match="write a pause as"):
        split(f"One. {mark[:-1]}\nTwo.]")  # not closed in its line


def test_a_long_text_is_cut_in_no_time():
    begin = time.perf_counter()
    for text in (
        "[pause 1s] a " * 50_000,
        "a\n\n" * 100_000,
        "\n" + " " * 500_000,
        "[ \t" * 200_000,
        "\n \t" * 200_000,
    ):
        split(text)
    with pytest.raises(Error):
        split("[pause " * 100_000)
    assert time.perf_counter() - begin < 5


# ---- in the front end -----------------------------------------------------------------------------------------------


def test_a_text_with_pauses_is_read_as_its_parts(front: TextFrontEnd):
    texts = ["Hello world, it costs $5.", "Where is 3 of 7?", "I do not know."]
    found = front.analyse(f"[pause 2s]{texts[0]}[pause 500ms] {texts[1]}\n\n{texts[2]} [pause 10ms]", 12)
    alone = [front.analyse(text, 12) for text in texts]
    assert found.segments == [segment for one in alone for segment in one.segments]
    assert found.segment_ids == [ids for one in alone for ids in one.segment_ids]
    assert found.pieces == [piece for one in alone for piece in one.pieces]
    assert found.ids == [i for one in alone for i in one.ids]
    assert found.normalized == " ".join(one.normalized for one in alone)
    assert found.lead == 2000
    inner = [[None] * (len(one.segments) - 1) for one in alone]
    assert found.pauses == (*inner[0], 500, *inner[1], 500, *inner[2], 10)


def test_a_text_without_pauses_is_read_as_before(front: TextFrontEnd):
    text = "Hello world.\nWhere is the money? [Not here.]"
    found = front.analyse(text, 12)
    assert (found.lead, set(found.pauses), len(found.pauses)) == (0, {None}, len(found.segments))
    assert found.normalized == front.normalize(text)
    assert found == front.analyse(text, 12, paragraph_ms=0)
    assert front.analyse("Hello\n\nyou.", paragraph_ms=0).segments == front.analyse("Hello  you.").segments


def test_the_whole_text_decides_its_language(front: TextFrontEnd):
    """2 is read in Chinese on either side of a pause, although no character stands beside it there."""
    found = front.analyse("他有 hello 3 [pause 1s] hello 2")
    assert found.normalized == " ".join(front.normalize(part, "zh") for part in ("他有 hello 3", "hello 2"))
    assert found.normalized != front.analyse("他有 hello 3").normalized + " " + front.analyse("hello 2").normalized
    assert front.analyse("He has 3 [pause 1s] 2").normalized == "He has three two"
    # The letters of a mark are none of the text's.
    assert front.analyse("3 [pause 1s] 2").normalized == "三 二"


def test_a_part_without_a_sound_is_no_segment(front: TextFrontEnd):
    found = front.analyse("Hello [pause 1s]. [pause 20ms] Yes. [pause 3ms]!")
    assert found.segments == front.analyse("Hello").segments + front.analyse("Yes.").segments
    assert (found.lead, found.pauses) == (0, (1020, 3))
    found = front.analyse("... [pause 1s] Yes.")
    assert (found.lead, found.pauses) == (1000, (None,))
    for text in ("[pause 1s]", "[pause 1s]\n\n[pause 2s] ...", "[pause 1s]."):
        with pytest.raises(Error, match=r"nothing to pronounce in '\[pause 1s\]"):
            front.analyse(text)


def test_a_lone_character_is_read_as_without_a_pause(front: TextFrontEnd):
    assert front.analyse("[pause 1s] a ")[:4] == front.analyse(" a ")[:4]


def test_the_first_segments_are_short_over_all_parts(front: TextFrontEnd):
    text = "One, two, three, four, five, six, seven, eight, nine, ten."
    found = front.analyse(f"{text}[pause 1s]{text}", 16, 30)
    first, second = front.analyse(text, 16, 30), front.analyse(text, 16, 30 - len(front.analyse(text).pieces))
    assert first.segments != second.segments
    assert found.segments == first.segments + second.segments


def test_what_people_read_has_no_marks():
    assert without("Hello.\n\nYou. ") == "Hello.\n\nYou. "
    assert without("[pause 1s] Hello.\n\nYou.[pause 1s]  And you. [pause 2s]") == "Hello.\n\nYou. And you."
    with pytest.raises(Error, match=r"^\[pause\]: write"):
        without("One [pause] two")
