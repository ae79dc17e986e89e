"""How alike 2.5 reads texts: python -m debug.compare_multilingual --reference CHECKOUT --python INTERPRETER.

Made-up texts of each language, the same for a seed, go through `MultilingualFrontEnd` and through the lines of the
reference's `infer_v2_5.py` between a text and its ids. INTERPRETER is a Python with WeTextProcessing, tiktoken,
openai-whisper, fugashi, unidic-lite and nemo_text_processing; PyTorch is not needed. The vocabulary is a small one,
made here. --output FILE keeps what the reference makes of the texts, as `tests/fixtures/multilingual.json.gz` has it.

Exit status 0: all texts are equal; 1: some differ.
"""

import argparse
import base64
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debug.compare_text import CHINESE, CHINESE_WORDS, ENGLISH_WORDS, MONTHS, NAMES, Draw, words
from indextts_jax import byte_pairs, languages, settings
from indextts_jax.multilingual import MultilingualFrontEnd

# What the reference's interpreter runs: one JSON [language, text] a line in, one JSON object a line out.
REFERENCE = """
import contextlib, functools, importlib.abc, importlib.machinery, importlib.util, inspect, io, json, logging, sys
import textwrap, types
from unittest.mock import MagicMock
checkout, folder, grammars = sys.argv[1:]
logging.disable(logging.INFO)
sys.path.insert(0, checkout)
ABSENT = ("torch", "torchaudio", "librosa", "omegaconf", "transformers", "modelscope", "indextts.codec", "indextts.gpt",
          "indextts.s2mel", "indextts.utils.checkpoint")

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if any(name == one or name.startswith(one + ".") for one in ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return MagicMock(name=spec.name, __path__=[], __spec__=spec)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Absent())
whisper = types.ModuleType("whisper")  # its tokenizer alone; the rest needs PyTorch
whisper.__path__ = importlib.util.find_spec("whisper").submodule_search_locations
sys.modules["whisper"] = whisper
with contextlib.redirect_stdout(io.StringIO()):
    from indextts import infer_v2_5 as module
    from indextts.utils import nemo_tn
    import nemo_text_processing.text_normalization.normalize as nemo
    nemo.Normalizer.__init__ = functools.partialmethod(nemo.Normalizer.__init__, cache_dir=grammars or None)
    self = object.__new__(module.IndexTTS2)
    self.tokenizer = module.get_tokenizer(multilingual=True, model_dir=folder)
    self.ja_text_process = module.JapaneseG2PProcessor(g2p_ratio=0)
    self.text_process = module.TextNormalizer(enable_glossary=True)
    self.device = "cpu"
    self.gpt = MagicMock()
    self.gpt.text_pos_embedding.emb.num_embeddings = 602

class Ids(list):
    def unsqueeze(self, _): return self
    def to(self, _): return self

source = inspect.getsource(module.IndexTTS2.infer_generator)
lines = source[source.index("        lang_prefix = "):source.index("        lang = torch.LongTensor")]
code = compile(textwrap.dedent(lines), "infer_v2_5.py", "exec")
for line in sys.stdin:
    lang, text = json.loads(line)
    spanish = []
    def nemo_text_normalize(text, lang):
        spanish.append(nemo_tn.normalize_text(text, lang))
        return spanish[-1]
    names = {**vars(module), "self": self, "lang": lang, "text": text, "text_normalization": True,
             "max_text_tokens_per_segment": 120, "nemo_text_normalize": nemo_text_normalize,
             "torch": types.SimpleNamespace(IntTensor=Ids),
             "F": types.SimpleNamespace(pad=lambda ids, pad, value: [*ids, value])}
    with contextlib.redirect_stdout(io.StringIO()):
        if lang in ("zh", "en"):
            self.text_process.load()
        exec(code, names)
    print(json.dumps({"normalized": names["text"], "segments": names["segments"], "ids": names["segment_tokens"],
                      "spanish": spanish[0] if lang == "es" else None,
                      "id": module.lang_to_token(lang)}), flush=True)
"""

SPANISH = words(
    "el la los una de que y en con para por más niño mañana años corazón ciudad agua casa lluvia jardín ventana señor "
    "Señora Madrid México María José cuando porque también hablar escribir camino estrella pingüino reloj siempre nunca"
)
SPANISH_UNITS = words("kg km m % € $ años veces días horas personas km/h °C º ª millones")
JAPANESE = words(
    "私 は が を に で と も の 東京 大阪 今日 天気 いい とても 料理 上手 学校 先生 図書館 新しい 読む 食べる 走った "
    "コンピューター テレビ ありがとう ございます 彼女 世界 電話 番号 山 川 長い 道 雨が降る 見える ように です ます "
    "でした ください ラーメン 時間"
)
ARABIC = words(
    "في من إلى على هذا هذه كان مدينة بيت ماء كتاب مدرسة صباح جميل كبير صغير يوم ليلة الشمس القمر نهر طريق قال ذهب كتب "
    "سَلَامٌ اتَّخذتَها بنفسِك كشخصٍ بالغٍ مسؤوليّتَه كاملةً العربية والسلام لأنه"
)
ANNOTATED = {
    "zh": words("<行|XING2> <行|hang2> <银行|YIN2-HANG2> <重|CHONG2>"),
    "en": ["<minute|M AY0 . N UW1 T>", "<going|G OW1 . IH0 NG>", "<read|r eh1 d>", "<Live|L IH1 V>"],
    "es": ["<going|G OW1 . IH0 NG>", "<año|A NY O>"],
    "ja": ["<上手|じょうず>", "<上手|うわて>", "<今日|キョウ>", "<行|XING2>", "<go|G OW1>", "<二十|にジュウ>"],
    "ar": ["<going|G OW1>", "<كتاب|K IH0>"],
}
MARKS = (
    "<|HAPPY|>", "<|special_token_3|>x y<|special_token_3|>", "<|SPECIAL_TOKEN_1|>", "<|TTS/B|>", "<|0.02|>", "<|zh|>",
    "<|endoftext|>", "<a|b|c>", "<|", "<<a|b>", "<|>", "a|b>",
)  # fmt: skip
STOPS = {
    "es": (". ", ". ", ", ", "! ", "? ", "; ", ": ", "… ", "... ", " - ", ".\n", " "),
    "ja": ("。", "。", "、", "、", "！", "？", "…", "「", "」", "・", "\n", " ", "　"),
    "ar": ("، ", "، ", ". ", "؟ ", "! ", "؛ ", ": ", "\n", " "),
}


class Multilingual(Draw):
    """Random texts of the languages of IndexTTS-2.5."""

    def text(self, language: str) -> str:
        """A text of one language: some with annotations and marks, some without a stop for long."""
        if language in STOPS:
            made = self._foreign(language)
        else:
            made = self.chinese(3, 0.2) if language == "zh" else self.english(3, 0.2)
            if self.chance(0.08):  # longer than a segment, with and without stops
                plain = "".join(self.of(CHINESE) for _ in range(60 + self.upto(200)))
                made += (
                    plain if language == "zh" else " ".join(self.of(ENGLISH_WORDS) for _ in range(20 + self.upto(80)))
                )
            if self.chance(0.08):
                made += " " + (self.english(2) if language == "zh" else self.chinese(2))
        parts = made.split(" ")
        for _ in range(self.upto(3) if self.chance(0.4) else 0):
            added = self.of(MARKS if self.chance(0.15) else ANNOTATED[language])
            parts.insert(self.upto(len(parts) + 1), added)
        return ("" if language in ("zh", "ja") and self.chance(0.5) else " ").join(parts)

    def _foreign(self, language: str) -> str:
        vocabulary = {"es": SPANISH, "ja": JAPANESE, "ar": ARABIC}[language]
        space = "" if language == "ja" else " "
        made = ""
        for _ in range(1 + self.upto(5)):
            clause = []
            for _ in range(1 + self.upto(60 if self.chance(0.1) else 9)):
                clause.append(self._special(language) if self.chance(0.15) else self.of(vocabulary))
                if self.chance(0.05):
                    clause.append(self.of(NAMES if self.chance(0.5) else ENGLISH_WORDS))
            made += self.of(("¿", "¡", "", "", "") if language == "es" else ("", "(", "«", "", ""))
            made += space.join(clause) + self.of(STOPS[language])
        return made if self.chance(0.2) else made.strip()

    def _special(self, language: str) -> str:
        n = self.number()
        if language == "ja":
            return self.of(
                (n, f"{n}円", f"{n}年", self.time(), self.date(), f"第{n}", "ＡＢＣ", "iPhone15", f"{n}%", "人々")
            )
        if language == "ar":
            return self.of((n, f"{n}٪", "١٢٣", self.date(), "www.example.com", f"${n}"))
        day, month, year = 1 + self.upto(28), 1 + self.upto(12), 1900 + self.upto(150)
        return self.of(
            (
                n,
                f"{n} {self.of(SPANISH_UNITS)}",
                f"{self.upto(1000)},{self.upto(100)}",
                f"{self.upto(1000)}.{self.upto(1000):03}",
                f"{self.of('$€')}{n.lstrip('-')}",
                f"{day}/{month}/{year}",
                f"{day} de {self.of(('enero', 'abril', 'diciembre'))} de {year}",
                f"{self.upto(24)}:{self.upto(60):02}",
                f"{self.upto(30)}º",
                self.of(("Sr.", "Dra.", "EE.UU.", "p. ej.", "a@b.es", "www.ejemplo.es", "n.º 3", "XXI", "½", "1/3")),
            )
        )


def small_vocabulary() -> bytes:
    """A file of tiktoken: bytes in the order of Whisper's, then the beginnings of the words above, byte by byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = dict.fromkeys(bytes([i]) for i in (*visible, *sorted(set(range(256)) - set(visible))))
    known = [*ENGLISH_WORDS, *NAMES, *MONTHS, *SPANISH, *ARABIC, *(word.upper() for word in SPANISH)]
    known = [*known, *(word.lower() for word in (*NAMES, *MONTHS)), *CHINESE, *CHINESE_WORDS, *JAPANESE, "..", "!!"]
    for word in known:
        for spelt in (word.encode(), f" {word}".encode()):
            tokens |= dict.fromkeys(spelt[:end] for end in range(2, len(spelt) + 1))
    return b"".join(b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))


def texts(language: str, count: int, seed: int = 0) -> list[str]:
    """Texts of one language."""
    draw = Multilingual(seed)
    return [made for made in (draw.text(language) for _ in range(count)) if any(map(str.isalnum, made))]


def reference(made: Sequence[tuple[str, str]], folder: Path, checkout: Path, python: Path) -> list[dict[str, Any]]:
    """What the reference makes of each (language, text), with the vocabulary in a folder."""
    lines = "".join(json.dumps(one) + "\n" for one in made)
    grammars = next(iter(sorted(settings.cache().parent.glob("spanish-*"))), "")  # else they take minutes
    command = [str(python), "-c", REFERENCE, str(checkout), str(folder), str(grammars)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8", check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(made):
        raise SystemExit(f"the reference stopped after {len(answers)} of {len(made)} texts:\n{done.stderr[-2000:]}")
    return answers


def difference(front: MultilingualFrontEnd, language: str, text: str, theirs: dict[str, Any]) -> str:
    """What differs first between ours and what the reference makes of a text; nothing where all is equal."""
    normalized = front.normalize(text, language)
    if normalized != theirs["normalized"]:
        return f"{normalized!r} is {theirs['normalized']!r} there"
    if not any(map(str.isalnum, normalized)):
        return ""
    analysis = front.analyse(text, language=language, paragraph_ms=0)
    ids = [[*ids, 1] for ids in analysis.segment_ids]
    if ids != theirs["ids"] or analysis.texts != tuple(part.strip() for part in theirs["segments"]):
        return f"{analysis.texts} {ids} is {theirs['segments']} {theirs['ids']} there"
    return "" if byte_pairs.language_id(language) == theirs["id"] else "language_id"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", required=True, help="of the reference")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), metavar="INTERPRETER")
    parser.add_argument("--languages", nargs="+", choices=languages.SPOKEN, default=languages.SPOKEN)
    parser.add_argument("--count", type=int, default=2000, help="of texts in each language (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep what the reference makes of the texts here")
    options = parser.parse_args(arguments)
    made = [(language, text) for language in options.languages for text in texts(language, options.count, options.seed)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, byte_pairs.NAME)
        vocabulary.write_bytes(small_vocabulary())
        theirs = reference(made, vocabulary.parent, options.reference, options.python)
        front = MultilingualFrontEnd.load(vocabulary)
    if options.output:
        kept = [{"language": language, "text": text, **one} for (language, text), one in zip(made, theirs, strict=True)]
        content = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        options.output.write_bytes(gzip.compress(content, mtime=0))
    differ = 0
    for (language, text), one in zip(made, theirs, strict=True):
        if found := difference(front, language, text, one):
            differ += 1
            print(f"{language} {text!r}: {found}")
    print(f"{differ} of {len(made)} texts differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
