"""The text front end against the reference's cases, and what must hold for any text."""

import json
import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from debug.golden import FIXTURES
from indextts_jax.text import TextFrontEnd, is_chinese, load_glossary, split, written

BPE_MODEL = FIXTURES / "tiny" / "bpe.model"
CASES = json.loads((FIXTURES / "golden" / "text_cases.json").read_text(encoding="utf-8"))
SILENT = {"", "   ", "！", "..."}  # cases of the reference with nothing to pronounce, which `analyse` refuses


@pytest.fixture(scope="module")
def front() -> TextFrontEnd:
    return TextFrontEnd.load(BPE_MODEL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:24])
def test_equals_the_reference(front: TextFrontEnd, case: dict) -> None:
    text, expected = case["text"], case["tiny"]
    assert front.normalize(text) == case["normalized"]
    if text in SILENT:
        pieces = front.encode(case["normalized"])
        assert pieces == expected["tokens"]
        assert front.ids(pieces) == expected["ids"]
        return
    for budget in (120, 20):
        analysis = front.analyse(text, budget)
        assert analysis.pieces == expected["tokens"]
        assert analysis.ids == expected["ids"]
        assert analysis.segments == expected[f"segments_{budget}"]
        assert analysis.segment_ids == [front.ids(segment) for segment in analysis.segments]


# Language


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello 你好", True),
        ("12.5 !", True),
        ("someone@example.com", True),
        ("mail someone@example.com", False),
        ("read CHONG2 aloud", True),
        ("use beta1", False),
        ("カタカナ and Latin", False),
    ],
)
def test_language(text: str, expected: bool) -> None:
    assert is_chinese(text) is expected


@pytest.mark.parametrize(
    ("text", "expected", "english", "chinese"),
    [
        # The reference takes e1 for pinyin, wherever it stands, and reads all the rest by the Chinese rules.
        ("It has 1e10 atoms in 3 g.", "It has 一e1零 atoms in 三 g.", "It has one e ten atoms in three grams.", None),
        ("the 3 of us", "the three of us", None, "the 三 of us"),
        ("他有3个", "他有三个", "他有 three 个", None),
        ("3:30", "三点三十分", "three thirty", None),
        ("$5", "五美元", "five dollars", None),
        ("GPT-5 and 3", "GPT-five and three", None, "GPT-五 and 三"),
    ],
)
def test_a_language_that_is_named_decides(
    front: TextFrontEnd, text: str, expected: str, english: str | None, chinese: str | None
) -> None:
    assert front.normalize(text) == expected
    assert front.normalize(text, "en") == (english or expected)
    assert front.normalize(text, "zh") == (chinese or expected)
    assert front.analyse(text, language="en").normalized == (english or expected)


@pytest.mark.parametrize("language", ["ja", "EN", "", "english" * 100])
def test_other_languages_are_refused(front: TextFrontEnd, language: str) -> None:
    for call in (front.normalize, front.analyse):
        with pytest.raises(ValueError, match="language must be 'zh' or 'en'") as caught:
            call("a 3", language=language)
        assert len(str(caught.value)) < 200


def test_the_language_of_a_term_is_the_one_named(reader: TextFrontEnd) -> None:
    assert reader.normalize("PCIe 5.0", "zh") == "P C I E 五点零"
    assert reader.normalize("PCIe 5.0", "en") == "PCIE five"


# Normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's here? Bob's hat. SHE'S in.", "What is here? Bob's hat. SHE is in."),
        ("¿5$ 是$", "¿五. 是."),  # the dollar sign is a stop in Chinese only
        ("a $ b", "a dollar b"),
        ("一,,,,二，，，，。。。", "一…,二…,…"),
        ("繁體：３個，ＡＢ！", "繁体,三个,AB!"),
        ("GPT-5-nano和135-4567-8900", "GPT-五-nano和一三五四五六七八九零零"),
        ("ju1 lü4 XUN2 qiang2 nüe4 xinge1", "JV1 lü4 XVN2 QIANG2 nüe4 xinge一"),
    ],
)
def test_normalize(front: TextFrontEnd, text: str, expected: str) -> None:
    assert front.normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Chapter 1\n\nIt  was 5 PM.", "Chapter one It was five PM."),
        ("Café2Go opens on Jan. 5th, 1999", "Café two Go opens on the fifth of january, nineteen ninety nine"),
        ("the é2a-5b", "the é two a-five b"),
        ("£1,050 (about $1,300).", "one thousand and fifty pounds 'about one thousand three hundred dollars'."),
        ('He said "3 times" to me.', "He said 'three times' to me."),
        ('他说"3点"见', "他说'三点'见"),
    ],
)
def test_normalize_where_wetext_stumbles(front: TextFrontEnd, text: str, expected: str) -> None:
    assert " ".join(front.normalize(text).split()) == expected


def test_a_pinyin_inside_another_keeps_both(front: TextFrontEnd) -> None:
    # The reference replaces them in the order of a set, so that u4 may break qu4.
    assert front.normalize("读u4和qu4和zhu4") == "读u4和QV4和zhu4"


def test_any_number_of_names_and_pinyin_comes_back(front: TextFrontEnd) -> None:
    names = [f"甲{chr(0x4E8C + i)}·乙" for i in range(40)]
    pinyin = [f"{initial}{final}{tone}" for initial in "bpm" for final in ("a", "o", "ai") for tone in range(1, 6)]
    text = " ".join(names + pinyin) + " 3"
    assert front.normalize(text) == " ".join(names + pinyin).replace("·", "-") + " 三"


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("words", ["请读{}3遍", "read {} 3 times"])
def test_annotations_come_out_as_they_went_in(front: TextFrontEnd, words: str, count: int) -> None:
    annotations = "".join(f"<字-{i}|ZI{i}：$5>" for i in range(count))
    normalized = front.normalize(words.format(annotations))
    assert annotations in normalized
    assert "3" not in normalized.replace(annotations, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<重|> 3个", "<重|> 三个"),
        ("<|a> 3个", "<|a> 三个"),
        ("<a\n|b3> 看3个", "<a |b三> 看三个"),
        ("<<a|b3>> 3个", "<<a|b3>> 三个"),
        ("<|<a|b3> 3个", "<|<a|b3> 三个"),
        ("<a|b|<c3> 3个", "<a|b|<c3> 三个"),
    ],
)
def test_where_an_annotation_begins_and_ends(front: TextFrontEnd, text: str, expected: str) -> None:
    assert front.normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5-GPT-5 是 3a-b-2 和 a--b", "五-GPT-五 是 三a-b-二 和 a--b"),  # from the first letter on
        ("甲·乙·丙·丁3", "甲-乙-丙-丁三"),  # three parts are a name, and the fourth is not
        ("读ba1和alba1和bab1", "读ba1和alba1和bab一"),  # a syllable in one place is one everywhere
        ("读a1和zhuang1和azhuang1", "读a1和zhuang1和azhuang1"),
    ],
)
def test_what_the_rules_leave_alone(front: TextFrontEnd, text: str, expected: str) -> None:
    assert front.normalize(text) == expected


def test_calls_do_not_disturb_each_other(front: TextFrontEnd) -> None:
    texts = ["约翰·李有3只", "read <a|B1> 3", "玛丽·安娜读chong2", "GPT-5 is 3"]
    alone = [TextFrontEnd.load(BPE_MODEL).normalize(text) for text in texts]
    assert [front.normalize(text) for text in texts + texts] == alone + alone


# Long texts


LONG = {
    "a word": "a" * 100_000,
    "letters and digits": "a1" * 5000,
    "hyphens": "a-" * 50_000,
    "hyphenated words": " ".join(f"a-{'b' * (i % 97)}-{'c' * (i // 97)}d" for i in range(1000)),
    "chinese": "天" * 100_000,
    "names": " ".join(f"{chr(0x4E00 + i)}·{chr(0x5E00 + j)}" for i in range(100) for j in range(100)),
    "pinyin": " ".join(f"{a}{b}{c}uang{d}" for a in "zZ" for b in "hH" for c in ("", "u") for d in range(1, 6)) * 500,
    "<": "a" + "<" * 100_000,
    "<|": "a" + "<|" * 50_000 + ">",
    "<a|": "<a|" * 50_000,
    "annotations": "<重|CHONG2>" * 5000,
    "spaces": "a-b" + " " * 100_000 + "中",
    "line ends": "a\n" * 50_000,
    "quotes": "\"'“" * 30_000 + "a",
    "an address": "a" * 100_000 + "@",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_texts_take_seconds(front: TextFrontEnd, text: str) -> None:
    start = time.perf_counter()
    analysis = front.analyse(text)
    assert time.perf_counter() - start < 8  # one at most, where one pass that grows with the square takes 30
    assert len(analysis.segment_ids) == len(analysis.segments)


def test_many_terms_take_seconds() -> None:
    glossary = {f"term{i}x": {"zh": "词", "en": "word"} for i in range(3000)}
    front = TextFrontEnd(TextFrontEnd.load(BPE_MODEL).processor, glossary)
    start = time.perf_counter()
    assert front.normalize("the quiet river went on " * 5000 + "TERM7X") == "the quiet river went on " * 5000 + "word"
    assert time.perf_counter() - start < 8


@pytest.mark.parametrize(
    ("term", "text", "expected"),
    [("kiss", "a KIſS b", "a word b"), ("ITS", "ıTS", "word"), ("its", "İTS", "word"), ("Straße", "STRAßE", "word")],
)
def test_terms_in_any_case(front: TextFrontEnd, term: str, text: str, expected: str) -> None:
    reader = TextFrontEnd(front.processor, {term: {"zh": "词", "en": "word"}})
    assert reader.normalize(text) == expected


# Pieces


def test_a_lone_character_stays_as_it_is(front: TextFrontEnd) -> None:
    assert front.analyse(" a ")[:2] == ("a", ["▁", "a"])
    assert front.analyse("5").pieces == ["▁", "5"]
    assert front.analyse("ab").pieces == front.encode("AB")


@pytest.mark.parametrize("character", ["ᄀ", "々", "あ", "ｶ", "가", "︰", "𠀀"])
def test_cjk_stands_alone(front: TextFrontEnd, character: str) -> None:
    assert front.encode(f"ab{character}cd") == front.encode(f"ab {character} cd")


@pytest.mark.parametrize("character", ["，", "é", "ａ", "𰀀"])
def test_other_characters_do_not(front: TextFrontEnd, character: str) -> None:
    assert front.encode(f"ab{character}cd") != front.encode(f"ab {character} cd")


def test_unknown_pieces_are_named(front: TextFrontEnd, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "indextts_jax.text"):
        analysis = front.analyse("one 龘 two 😀 龘")
    assert analysis.unknown == ["龘", "😀", "龘"]
    (record,) = caplog.records
    assert record.getMessage().endswith("'龘', '😀'")
    assert f"3 of {len(analysis.pieces)}" in record.getMessage()


def test_only_the_first_unknown_pieces_are_named(front: TextFrontEnd, caplog: pytest.LogCaptureFixture) -> None:
    front.analyse("a " + " ".join(chr(0x9000 + i) for i in range(500)))
    (message,) = [record.getMessage() for record in caplog.records if "vocabulary" in record.getMessage()]
    assert len(message) < 250
    assert message.endswith(", ...")


def test_known_pieces_are_not_warned_of(front: TextFrontEnd, caplog: pytest.LogCaptureFixture) -> None:
    assert front.analyse("Hello world.").unknown == []
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "  \n", "！", "...", "?! -- …", "😀", "\u200b\u200b", "“”"])
def test_nothing_to_pronounce_is_refused(front: TextFrontEnd, text: str) -> None:
    with pytest.raises(ValueError, match="nothing to pronounce"):
        front.analyse(text)


@pytest.mark.parametrize("text", ["a\udc80", "\ud800"])
def test_broken_unicode_is_refused(front: TextFrontEnd, text: str) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        front.analyse(text)


# Segments


def pieces_of(seed: int, alphabet: str) -> list[str]:
    draw = random.Random(seed)
    weights = [draw.random() ** 3 for _ in alphabet.split()]
    return draw.choices(alphabet.split(), weights, k=draw.randrange(120))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("budget", "first"), [(1, 0), (2, 0), (7, 0), (7, 30), (20, 1000), (120, 0)])
def test_split_keeps_every_piece_within_the_budget(seed: int, budget: int, first: int) -> None:
    pieces = pieces_of(seed, "A ▁B , ▁, - . ! ? ▁. ▁? ▁... … ▁-")
    segments = split(pieces, budget, first)
    assert [piece for segment in segments for piece in segment] == pieces
    assert all(1 <= len(segment) <= budget for segment in segments)


@pytest.mark.parametrize("seed", range(40))
def test_split_repeats_nothing_but_apostrophes(seed: int) -> None:
    pieces = pieces_of(seed, "A ▁B , . ? ▁. ' ▁'")
    segments = split(pieces, 9)
    joined = [piece for segment in segments for piece in segment]
    marks = ("'", "▁'")
    assert [piece for piece in joined if piece not in marks] == [piece for piece in pieces if piece not in marks]
    for mark in marks:
        assert pieces.count(mark) <= joined.count(mark) <= 2 * pieces.count(mark)
    assert all(len(segment) <= 10 for segment in segments)


def test_split_closes_and_opens_with_the_apostrophe() -> None:
    assert split(["A", "B", ".", "'", "C", "D"], 4) == [["A", "B", ".", "'"], ["'", "C", "D"]]
    assert split(["A", "B", "C", ".", "'", "D"], 4) == [["A", "B", "C", ".", "'"], ["'", "D"]]  # one over the budget
    assert split(["A", "B", ",", "'", "C"], 3) == [["A", "B", ","], ["'", "C"]]  # after a comma it opens only


def test_split_examples() -> None:
    assert split([]) == []
    assert split(list("AB.CD.EF."), 6) == [list("AB.CD."), list("EF.")]
    assert split(list("A.CDE."), 4) == [list("A.CD"), list("E.")]  # a sentence of two pieces is not cut off
    assert split(list("AB!CD…EF"), 3) == [list("AB!"), list("CD…"), list("EF")]
    assert split(["A", "B", "▁!", "C"], 3) == [["A", "B", "▁!"], ["C"]]
    assert split(list("ABCDE,"), 5) == [list("ABCDE"), [","]]
    assert split(list("A,B-CD"), 4) == [list("A,B-"), list("CD")]
    assert split(list("ABCDE"), 2) == [list("AB"), list("C"), list("DE")]


def test_split_says_where_it_cuts_inside_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    assert split(list("AB,CD."), 3) == [list("AB,"), list("CD.")]
    assert not caplog.records
    split(["▁A", "B", "C", "D", "E"], 3)
    assert "cut after ▁ABC (1 times in all)" in caplog.text
    caplog.clear()
    split(["A"] * 1000, 3)
    assert len(caplog.records) == 1


def test_split_streams_short_segments_first() -> None:
    pieces = list("AB.CD.EF.GH.IJ.KL.")
    assert split(pieces, 12) == [pieces[:12], pieces[12:]]
    assert split(pieces, 12, first=9) == [pieces[:6], pieces[6:18]]
    assert split(pieces, 6, first=100) == [pieces[i : i + 3] for i in range(0, 18, 3)]


@pytest.mark.parametrize(("budget", "first"), [(0, 0), (-5, 0), (10, -1)])
def test_split_refuses_an_impossible_budget(budget: int, first: int) -> None:
    with pytest.raises(ValueError, match="budget"):
        split(["A"], budget, first)


# Glossary


GLOSSARY = """
PCIe: {zh: P C I E}
PCIe 5.0: {en: PCIE five, zh: P C I E 五点零}
TTS: T T S
NAS: {zh: 网络存储}
"C++": {en: C plus plus, zh: 'C \\g 加加'}
Pro: professional
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TextFrontEnd:
    path = tmp_path_factory.mktemp("glossary") / "glossary.yaml"
    path.write_text(GLOSSARY, encoding="utf-8")
    return TextFrontEnd.load(BPE_MODEL, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a pcie 5.0 card", "a PCIE five card"),  # the longest term, in any case
        ("a nas box", "a NAS box"),  # no English reading: as the term is written
        ("用pcie 5.0和PCIE", "用P C I E 五点零和P C I E"),
        ("tts与TTS", "T T S与T T S"),
        ("用C++", "用C \\g 加加"),  # readings are text, not patterns
        ("read <重|Pro1> pro", "read <重|Pro1> professional"),  # nor is an annotation read
    ],
)
def test_glossary(reader: TextFrontEnd, text: str, expected: str) -> None:
    assert reader.normalize(text) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A: [", "not valid YAML"),
        ("- A\n- B", "found a list"),
        ("5: five", "the term 5 is not a text"),
        ("'': five", "is not a text"),
        ("A: 5", "'A' needs a text"),
        ("A:", "'A' needs a text"),
        ("A: {en: no}", "'A' needs a text"),
        ("A: {cn: B}", "'A' needs a text"),
        (f"A: [{'B, ' * 5000}B]", "'A' needs a text"),
        (f"{'A' * 900}: 5", "needs a text"),
        (f"? [{'B, ' * 5000}B]\n: 5", "not valid YAML"),
        (f"A: {'9' * 5000}", "a number of 5000 characters"),
        ("A: &b [B]\nC: [*b, *b]", "anchors"),
        ("[" * 5000, "nested more than"),
        ("A: " + "B" * 10_000_000, "larger than 1 MB"),
    ],
)
def test_bad_glossaries_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "glossary.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_glossary(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_glossary_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"glossary\.yaml"):
        TextFrontEnd.load(BPE_MODEL, tmp_path / "glossary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_glossary(tmp_path / "empty.yaml") == {}
    (tmp_path / "latin1.yaml").write_bytes("A: caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1\.yaml: not valid YAML in UTF-8"):
        load_glossary(tmp_path / "latin1.yaml")


# Loading


def test_bad_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    with pytest.raises(FileNotFoundError, match=r"bpe\.model"):
        TextFrontEnd.load(path)
    model = BPE_MODEL.read_bytes()
    cut = [model[:length] for length in (1, 2, 57, 5000, 7953, 7994, len(model) // 2, len(model) - 1)]
    pointer, page = b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>\n" * 100
    for content in (b"", pointer, page, b"\n" * 5000, b"\x0a\xff\xff\xff\xff\xff\xff\xff", model + b"\n\n", *cut):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bpe\.model: not a readable SentencePiece model") as caught:
            TextFrontEnd.load(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200 + len(str(path))


def test_a_model_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # a sparse file
    with pytest.raises(ValueError, match=r"bpe\.model: not a readable SentencePiece model: it is larger than 64 MiB"):
        TextFrontEnd.load(path)


def test_the_rules_are_read_on_first_use() -> None:
    code = "import sys, indextts_jax.text; sys.exit('wetext' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What segments hold of the text


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["text"] not in SILENT], ids=lambda case: case["text"][:24]
)
@pytest.mark.parametrize("budget", [120, 20])
def test_segments_have_their_part_of_the_text(front: TextFrontEnd, case: dict, budget: int) -> None:
    found = front.analyse(case["text"], budget)
    assert len(found.texts) == len(found.segments)
    if len(found.normalized) > 1:
        assert "".join("".join(found.texts).split()) == "".join(found.normalized.split())


def test_what_the_vocabulary_spells_otherwise_is_shown_as_pieces() -> None:
    assert written("Hello you.", [["▁HE", "LLO"], ["▁YOU", "."]]) == ["Hello", "you."]
    assert written("Straße 你好", [["▁STRASSE"], ["▁你", "▁", "好"]]) == ["Straße", "你好"]
    assert written("one two three", [["▁ONE"], ["▁ZWEI"], ["▁THREE"]]) == ["one", "ZWEI", "three"]
    assert written("a.'b", [["▁A", ".", "'"], ["'", "B"]]) == ["a.'", "'b"]
    assert written("", [["▁"]]) == [""]


def test_texts_of_parts_are_their_own(front: TextFrontEnd) -> None:
    assert front.analyse("Hello, you. [pause 1s] It costs $5.\n\n你好。").texts == (
        "Hello, you.",
        "It costs 五美元.",
        "你好.",
    )
