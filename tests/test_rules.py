"""The rules part by part: equal to the rules on the whole text, and bounded whatever the text."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from debug.compare_text import Draw, kinds
from indextts_jax import rules

NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh")
DIGITS = dict(zip("1234567890", NAMES, strict=True))
NUMBER_WORDS = re.compile(
    "( |and|hundred|thousand|minus|negative|oh|zero|degrees?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|"
    "twelve|[a-z]+teen|[a-z]+ty)*"
)
FILLER = " and the quiet river went on" * 20


def test_chinese_parts_equal_the_whole() -> None:
    draw = Draw(1)
    for text in [draw.chinese(5, density) for density in (0.05, 0.3) for _ in range(60)]:
        assert rules.read(text, "zh", whole=0) == rules.read(text, "zh", whole=len(text))


@pytest.mark.parametrize(("seed", "sentences", "density"), [(1, 3, 0.03), (5, 1, 0.15)])
def test_english_parts_equal_the_whole(seed: int, sentences: int, density: float) -> None:
    # But for readings of a number that the rules weigh as equal: then the sum of the weights before it decides, which
    # is rounded. "Seven hundred and nine" in one place is "seven hundred nine" in another, for the rules as well.
    draw = Draw(seed)
    texts = [draw.english(sentences, density) for _ in range(60)]
    parts = [rules.read(text, "en", whole=0) for text in texts]
    whole = [rules.read(text, "en", whole=len(text)) for text in texts]
    for (left, right), where in kinds(texts, parts, whole).items():
        assert NUMBER_WORDS.fullmatch(left), where[0]
        assert NUMBER_WORDS.fullmatch(right), where[0]
    assert sum(left != right for left, right in zip(parts, whole, strict=True)) < 0.1 * len(texts)


@pytest.mark.parametrize(
    "text",
    [
        "We met.\nThen it  rained, \n so we left —\nat last.",
        'He said: "Go." "No," she said.\n\n"Why not?"',
        "Well,” he said.”\n“Oh (yes)? ‘No.’”",
        "It's John's, isn't it? the dogs' O'Brien d'Arc",
        "Mr. Smith met Dr. Li and Col. Wu's men on World War I sites in Boston, MA.",
        "J. K. Rowling, A. B. Carter and the U.S. army at 5 p.m. EST on Jan. 5th, 1999.",
        "Call me at 555-123-4567, or hit me up at 555-123-4567 now.",
        "I live at 12 Old Town Road, San Jose, CA 95125 with 3 cats and 12 sq ft.",
        "It took 5 million a minute, 3 per minute and 20 miles per hour.",
        "See example.com or someone@example.com; wait...what? yes--no",
        "well<H>known GPT<H>5<H>nano PRONPLACEHOLDERaPRONPLACEHOLDER",
        "Café Привет кана σ µ ½ x² 😀 a\u00a0b",
    ],
)
def test_english_within_a_long_text(text: str) -> None:
    whole = rules.read(text, "en", whole=len(text))
    assert rules.read(text, "en", whole=0) == whole
    assert f". {whole} Then" in rules.read(f"Once there was a boat{FILLER}. {text} Then it was over{FILLER}", "en")


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("en", "a 1 b", "a one b"),
        ("zh", "甲1乙", "甲一乙"),
        ("zh", "繁體中文３個，ＡＢＣ！", "繁体中文三个,ABC!"),
        ("zh", "10个×2", "十个乘二"),
        ("en", "", ""),
        ("zh", " \n", ""),
        ("en", "\0", ""),
        ("en", "a\0b", "a b"),
        ("zh", "甲\x001", "甲 一"),
        ("en", 'say \\"hi\\" and \\', 'say \\"hi\\" and \\'),
    ],
)
def test_read(language: str, text: str, spoken: str) -> None:
    assert rules.read(text, language) == spoken


@pytest.mark.parametrize(
    ("text", "count"),
    [("the {} end", 30), ("the {} end", 31), ("the {}. End", 500), ("the {}kg", 10_000), ("0.{} end", 10_000)],
)
def test_a_long_number_is_read_digit_by_digit(text: str, count: int) -> None:
    number = ("1234567890" * 1000)[:count]
    spoken = rules.read(text.format(number), "en").replace("zero", "oh")  # after a point the rules say zero
    assert " ".join(DIGITS[digit] for digit in number) in spoken
    chinese = rules.read(f"第{number}个", "zh")
    assert chinese.startswith("第")
    assert chinese.endswith("个")
    assert count <= len(chinese) < 3 * count


WORDS = "the quiet river went on past a mill and nobody said anything about it for a while "
LONG = {
    "words": WORDS * 500,
    "sentences": "It was 5 PM. Mr. Smith left, and “she” came. " * 1000,
    "lines": WORDS.replace(" ", "\n") * 500,
    "chinese": "天地玄黄宇宙洪荒" * 5000,
    "chinese with numbers": "天地玄黄3宇宙，洪荒日月盈昃。" * 3000,
    "one word": "word" * 10_000,
    "one name": "McWord" * 10_000,
    "stops": "." * 40_000,
    "signs": "=" * 40_000,
    "spaces": "a" + " " * 40_000 + "b",
    "digits": "1" * 40_000,
    "groups": "1," * 5000,
    "letters and digits": "a1" * 5000,
    "emoji": "a 😀" * 10_000,
    "cyrillic": "a " + "привет мир " * 4000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_texts_take_seconds(language: str, text: str) -> None:
    start = time.perf_counter()
    assert rules.read(text, language)
    assert time.perf_counter() - start < 10  # two at most, where reading the whole takes 20 to 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_is_bounded() -> None:
    code = """
import random
from pathlib import Path
from indextts_jax import rules

draw = random.Random(1)

def word():
    return str(draw.randrange(3000)) if draw.random() < 0.005 else "".join(draw.choices("etaoinshrdlu", k=5))

rules.read(" ".join(word() for _ in range(20_000)), "en")
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 200_000  # 60 MB; 9 GB if the whole is read at once
