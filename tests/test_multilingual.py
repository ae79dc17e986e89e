"""The text front end of IndexTTS-2.5 against the reference's own lines, and what must hold for any text."""

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

from debug.compare_multilingual import MARKS, difference, small_vocabulary, texts
from debug.golden import FIXTURES
from indextts_jax import byte_pairs, languages
from indextts_jax.byte_pairs import Vocabulary, language_id
from indextts_jax.errors import Error, NotFound
from indextts_jax.multilingual import MultilingualFrontEnd, split
from indextts_jax.text import plain_marks

# Made by debug/compare_multilingual.py.
CASES = json.loads(gzip.decompress((FIXTURES / "multilingual.json.gz").read_bytes()))
MADE = small_vocabulary()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / byte_pairs.NAME
    path.write_bytes(MADE)
    return path


@pytest.fixture(scope="module")
def front(file: Path) -> MultilingualFrontEnd:
    return MultilingualFrontEnd.load(file)


@pytest.mark.parametrize("language", languages.SPOKEN)
def test_equals_the_reference(front: MultilingualFrontEnd, monkeypatch: pytest.MonkeyPatch, language: str):
    cases = [case for case in CASES if case["language"] == language]
    if not cases:
        pytest.skip("the fixture has no texts of this language: debug/compare_multilingual.py makes them")
    assert len(cases) > 30
    if language == "es":  # NeMo is large: what it made of these texts is in the fixture
        known = {plain_marks(case["text"]): case["spanish"] for case in cases}
        monkeypatch.setattr(languages, "spanish", known.__getitem__)
    differences = [
        (case["text"], found) for case in cases if (found := difference(front, language, case["text"], case))
    ]
    assert differences == []


def test_spanish_by_its_rules():
    """The rules themselves, where they are installed and compiled: some minutes else."""
    pytest.importorskip("nemo_text_processing")
    if not list(languages.settings.cache().parent.glob("spanish-*")):
        pytest.skip("the rules of Spanish are not compiled on this machine")
    for case in CASES:
        if case["language"] == "es":
            assert languages.spanish(plain_marks(case["text"])) == case["spanish"]


# Languages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello 3", "en"),
        ("12", "en"),
        ("你好 hello", "zh"),
        ("漢字とかな", "ja"),
        ("テレビ", "ja"),
        ("ﾃﾚﾋﾞ", "ja"),
        ("约翰・史密斯", "zh"),  # the dot is no kana
        ("مرحبا hello", "ar"),
        ("hello، 3", "en"),  # nor is a comma a letter
        ("¿Que?", "es"),
        ("manana mañana", "es"),
        ("Él está aquí", "en"),  # accents are of many languages
    ],
)
def test_a_text_tells_its_language(front: MultilingualFrontEnd, text: str, expected: str):
    assert languages.guess(text) == expected


def test_the_language_stands_before_each_segment(front: MultilingualFrontEnd):
    text = "Ab, " * 100
    for language, index in (("ar", 13), ("zh", 1), ("en", 0)):
        found = front.analyse(text, 20, language=language.upper())
        assert found.language == language
        assert language_id(language) == index
        marks = [front.vocabulary.mark(language)]
        assert len(found.segment_ids) > 10
        assert [ids[:1] for ids in (found.ids, *found.segment_ids)] == [marks] * (1 + len(found.segment_ids))
    assert front.analyse("مرحبا").language == "ar"


@pytest.mark.parametrize("language", ["de", "", "english" * 100])
def test_other_languages_are_refused(front: MultilingualFrontEnd, language: str):
    for call in (front.normalize, front.analyse):
        with pytest.raises(Error, match="language must be one of zh, en, es, ja, ar, or None") as caught:
            call("a 3", language=language)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "module", "message"),
    [
        ("¡Hola!", "nemo_text_processing", "Spanish needs nemo_text_processing: pip install 'indextts-jax[spanish]'"),
        ("はい", "fugashi", "Japanese needs fugashi and unidic-lite: pip install 'indextts-jax[japanese]'"),
    ],
)
def test_what_is_not_installed_is_named(
    front: MultilingualFrontEnd, monkeypatch: pytest.MonkeyPatch, text: str, module: str, message: str
):
    monkeypatch.setitem(sys.modules, module, None)
    languages._spanish_rules.cache_clear()
    languages._japanese_words.cache_clear()
    with pytest.raises(Error) as caught:
        front.analyse(text)
    assert str(caught.value) == message


def test_spanish_without_a_reading_stays(front: MultilingualFrontEnd, monkeypatch: pytest.MonkeyPatch, caplog):
    def rules(text: str) -> str:
        if "3" in text:
            raise IndexError("no path")
        return text.replace("2", "dos")

    monkeypatch.setattr(languages, "_spanish_rules", lambda: (rules, (IndexError,)))
    assert front.normalize("¡2 años!") == "¡DOS AÑOS!"
    assert caplog.messages == []
    assert front.normalize("¡3 años, 2!") == "¡3 AÑOS, 2!"
    assert caplog.messages == ["read as it is written, since the Spanish rules fail (no path): '¡3 años, 2!'"]


# Reading


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("He has 3. OK？", "en", "he has three. ok?"),
        ("他有3个APPLE", "zh", "他有三个apple"),
        ("He has 1e1", "en", "he has 一e1"),  # a syllable of pinyin has the Chinese rules read it
        ("3:30", "en", "三,三十"),  # as the reference reads it: see `multilingual`
        ("ABC（3）", "ar", "ABC'3'"),
        ("<行|xing2>走!", "zh", "<|SPECIAL_TOKEN_2|>XING2<|SPECIAL_TOKEN_2|>走!"),
        ("a <minute|m ay0>", "en", "a <|SPECIAL_TOKEN_1|>M AY0<|SPECIAL_TOKEN_1|>"),
        ("a <|special_token_3|>Bc<|happy|> d", "en", "a <|SPECIAL_TOKEN_3|>bc<|HAPPY|> d"),
        ("<上手|じょうず>だ", "ja", " じょうず だ"),
        ("今日はいい天気。", "ja", "今日 は いい 天気 ."),
    ],
)
def test_normalize(front: MultilingualFrontEnd, text: str, language: str, expected: str):
    assert front.normalize(text, language) == expected


def test_terms_of_a_glossary(file: Path, tmp_path: Path):
    glossary = tmp_path / "glossary.yaml"
    glossary.write_text("GIF: Jif\nPCIe:\n  zh: P C I E\n  en: PCI express\n", encoding="utf-8")
    front = MultilingualFrontEnd.load(file, glossary)
    assert front.normalize("A gif, PCIe", "en") == "a jif, pci express"
    assert front.normalize("用PCIe", "zh") == "用p c i e"
    assert front.normalize("PCIe", "ar") == "PCIe"


# Segments


def test_any_text_is_cut_without_loss(front: MultilingualFrontEnd):
    """And no pronunciation is cut; a segment longer than the budget is one pronunciation."""
    draw = random.Random(1)
    length = front._length
    mark = "<|SPECIAL_TOKEN_1|>"
    for _ in range(40):
        words = [
            draw.choice(["ab", "你好。", "x, ", "ñ", "مرحبا ", f"{mark}{'Q ' * draw.randrange(1, 9)}{mark}"])
            for _ in range(40)
        ]
        whole = "".join(words)
        for most, first in ((10, 0), (10, 30), (30, 0), (1000, 0)):
            parts = split(whole, length, most, first)
            assert "".join(parts) == whole
            assert all(length(part) <= most or (part.count(mark) == 2 and part.startswith(mark)) for part in parts)
            assert all(part.count(mark) % 2 == 0 for part in parts)
            assert len(parts) == 1 or most < 1000


def test_first_segments_are_short(front: MultilingualFrontEnd):
    text = "one, two. " * 60
    whole, soon = (front.analyse(text, 100, first, "en") for first in (0, 100))
    assert max(map(len, whole.segment_ids)) > 80
    assert [len(ids) <= 52 for ids in soon.segment_ids[:2]] == [True, True]
    assert max(map(len, soon.segment_ids)) > 80
    assert whole.ids == soon.ids
    assert len(front.analyse("one, two. " * 4, 100, 100, "en").segments) == 1


@pytest.mark.parametrize(("budget", "first"), [(0, 0), (-1, 0), (10, -1)])
def test_bad_budgets_are_refused(front: MultilingualFrontEnd, budget: int, first: int):
    with pytest.raises(Error, match="budget must be at least 1"):
        front.analyse("a", budget, first)


def test_pauses_are_those_of_the_first_front_end(front: MultilingualFrontEnd):
    found = front.analyse("[pause 1s]He has 3. [pause 500ms] ... [pause 20ms]你好，5\n\nEnd [pause 7ms]", language="en")
    assert found.texts == ("he has 三.", "你好,五", "end")  # the whole text decides the rules
    assert (found.lead, found.pauses) == (1000, (520, 500, 7))
    assert found.normalized == "he has 三. 你好,五 end"
    start = front.vocabulary.mark("en")
    assert found.segment_ids == [[start, *front.vocabulary.encode(f" {text}")] for text in found.texts]
    assert front.analyse("a\n\nb", language="en", paragraph_ms=0).texts == ("a b",)


def test_pieces_are_the_ids_as_text(front: MultilingualFrontEnd):
    found = front.analyse('ñandú!" 你', language="ar")
    assert found.pieces == front.vocabulary.pieces(found.ids)
    assert found.segments == [found.pieces]
    assert found.pieces[0] == "<|ar|>"
    assert found.unknown == []
    assert "".join(found.pieces) == "<|ar|> \\xc3\\xb1and\\xc3\\xba!' 你"
    # Ids 0 and 1, where a text starts and stops, are a mark and a quote as well: whoever draws codes leaves them out.
    assert front.vocabulary.pieces([0, 1]) == ["!", '"']
    assert 0 in found.ids


@pytest.mark.parametrize("text", ["", " \n\n", "...", "[pause 1s]", "？！"])
def test_nothing_to_pronounce(front: MultilingualFrontEnd, text: str):
    with pytest.raises(Error, match="nothing to pronounce"):
        front.analyse(text)


def test_halves_of_characters_are_refused(front: MultilingualFrontEnd):
    with pytest.raises(Error, match="not valid Unicode"):
        front.analyse("a\ud800")


@pytest.mark.parametrize("text", ["a" * 20_000, " " * 100_000 + "a", "<" * 5_000 + "a", "<|" * 5_000 + "a"])
def test_odd_long_texts_are_read(front: MultilingualFrontEnd, text: str):
    found = front.analyse(text, language="ar")
    assert "".join(found.texts).replace(" ", "") == text.replace(" ", "")


# The vocabulary


def test_ids_of_the_official_vocabulary(front: MultilingualFrontEnd):
    """The marks follow the byte pairs, in the order that the official weights were trained with."""
    tokens = MADE.count(b"\n")
    marks = ("endoftext", "startoftranscript", "en", "zh", "su", "ASR", "HAPPY", "translate")
    marks += ("SPECIAL_TOKEN_1", "TTS/B", "0.00", "30.00")
    ids = [front.vocabulary.mark(name) - tokens for name in marks]
    assert ids == [0, 1, 2, 3, 100, 101, 112, 116, 122, 152, 172, 1672]
    assert front.vocabulary.size == tokens + 1673
    assert language_id("ar") == 13


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "lacks ids or bytes"),
        (MADE[:2000], "line [0-9]+"),
        (MADE.replace(b"IQ== 0\n", b""), "lacks ids or bytes"),
        (MADE + b"IQ== 5\n", "has some twice"),
        (MADE + b"AAAA x\n", "invalid literal"),
        (MADE + b"A\n", "line [0-9]+"),
        (MADE + b"?? 1\n", "line [0-9]+"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path: Path, content: bytes, why: str):
    path = tmp_path / byte_pairs.NAME
    path.write_bytes(content)
    with pytest.raises(Error, match=why) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(f"{path}: not a readable tiktoken vocabulary")
    assert str(caught.value).endswith("fetch it again")


def test_a_missing_vocabulary_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match="belongs to the folder of the model"):
        MultilingualFrontEnd.load(tmp_path / byte_pairs.NAME)


def test_marks_as_text_are_one_id_each(front: MultilingualFrontEnd):
    for mark in MARKS[:1] + MARKS[2:5]:
        assert len(front.vocabulary.encode(mark)) == (1 if mark in byte_pairs.MARKS else 4), mark


def test_made_up_texts_hold_what_is_compared():
    for language in languages.SPOKEN:
        made = texts(language, 200)
        assert any("<|" in text for text in made)
        assert any(len(text) > 300 for text in made)
