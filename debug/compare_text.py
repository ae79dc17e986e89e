"""How alike texts are normalised: python -m debug.compare_text --reference CHECKOUT --python INTERPRETER [--count N].

Made-up texts, the same for a seed, go through `TextFrontEnd.normalize` and through the reference's own front end.
INTERPRETER is a Python with what the reference normalises with on Linux, WeTextProcessing, and with sentencepiece;
PyTorch is not needed. Differences are counted by kind, each with an example.

Without --reference, the rules as `rules.read` applies them, part by part, are compared with the rules applied to each
text as a whole. What differs then are readings of numbers that the rules weigh as equal, or nearly so.

Exit status 0: all texts are equal; 1: some differ.
"""

import argparse
import difflib
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from indextts_jax import rules
from indextts_jax.text import TextFrontEnd, is_chinese

# What the reference's interpreter runs: one JSON text a line in, one JSON normalised text a line out.
REFERENCE = """
import contextlib, io, json, logging, sys, types
logging.disable(logging.INFO)
sys.path.insert(0, sys.argv[1])
for name in ("torch", "torchaudio"):
    sys.modules[name] = types.SimpleNamespace(Tensor=object)
from indextts.utils.front import TextNormalizer
normalizer = TextNormalizer()
normalizer.load()
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()):
        normalized = normalizer.normalize(json.loads(line))
    print(json.dumps(normalized), flush=True)
"""


def words(text: str) -> list[str]:
    return text.split()


ENGLISH_WORDS = words(
    "the a of and to in it was he she they said that this with from for at by on not but all were when there which "
    "their one two into some could time only other new people about after first never little again house water light "
    "children river morning window letter garden paper upper super minutes hours miles million percent call number "
    "march may sun mark second street road way court drive world war north state well-known mother-in-law don't it's "
    "I'm they'll John's café naïve Zoë question answer thousand dollars pounds point per minute hundred"
)
NAMES = words(
    "Smith John London Paris Sherlock Holmes Alice Baker Monday May June Will Mark Paul York Texas Sun Sat War World "
    "Ind Amt Atlas Iris Ibis Io Ian Ida Eva Eve Tess Oliver NASA OK USA TV BBC McDonald iPhone GitHub Beijing O'Brien"
)
MONTHS = words("January February March April May June July August September October November December")
PROMPTS = ("hit me up at", "my number is", "IP address is", "reached at")
TITLES = ("Mr.", "Mrs.", "Dr.", "Prof.", "St.", "Mt.", "Gov.", "Col.", "Ms", "Mr", "Capt.")
CHINESE = "今天气很好我们去公园吧你世界这是个测试学生老师时候可以什么没有知道开始东西因为所以问题事情孩子看见说话"
CHINESE_WORDS = words("北京 公司 同学 手机 价格 上午 下午 第 约 编号 电话 儿子 哪儿 两 到 一百 二十 三点 万")
UNITS = words("kg km m cm mm g mg ml l mph km/h GB MB kW Hz °C ℃ % ft lbs h min s m² °")
CHINESE_UNITS = words(
    "个 只 元 块 公里 千米 米 斤 岁 年 月 日 号 点 分 秒 小时 天 次 倍 度 ℃ % kg km/h GB 平方米 人 层"
)
TRADITIONAL = words("繁體中文 個 說 電腦 學習 兩個 點 億 號")
TEAMS = words("阿根廷 圣文森特和格林纳丁斯 曼联")
FULL_WIDTH = words("ＡＢＣ １２３ ５０％ ３．５ （１） 。。。 ，，， ＄５ ！！ ～ － ；")


class Draw:
    """Random parts of texts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def of(self, choices: Sequence[str]) -> str:
        return self.random.choice(choices)

    def upto(self, limit: int) -> int:
        return self.random.randrange(limit)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def number(self) -> str:
        kind = self.upto(9)
        if kind < 3:
            return str(self.upto(10 ** (kind + 1)))
        if kind == 3:
            return f"{self.upto(10**7):,}"
        if kind == 4:
            return f"{self.upto(1000)}.{self.upto(1000)}"
        if kind == 5:
            return str(1800 + self.upto(250))
        if kind == 6:
            return f"-{self.upto(100)}"
        if kind == 7:
            return f"0{self.upto(100)}"
        return str(self.upto(10 ** (4 + self.upto(9))))

    def date(self) -> str:
        year, month, day = 1900 + self.upto(150), 1 + self.upto(12), 1 + self.upto(28)
        name = self.of(MONTHS)
        return self.of(
            (
                f"{year}-{month:02}-{day:02}",
                f"{month}/{day}/{year}",
                f"{year}/{month}/{day}",
                f"{name} {day}, {year}",
                f"{name[:3]}. {day}{self.of(('th', ''))}",
                f"{day} {name} {year}",
                f"{name} {year}",
                f"the {year // 10 * 10}s",
                f"'{year % 100 // 10 * 10}s",
                f"{day}.{month}.{year}",
            )
        )

    def time(self) -> str:
        hour, minute = self.upto(24), self.upto(60)
        return self.of(
            (
                f"{hour}:{minute:02}",
                f"{hour % 12 + 1}:{minute:02} {self.of(('AM', 'PM', 'a.m.', 'p.m.', 'am'))}",
                f"{hour % 12 + 1} {self.of(('AM', 'p.m.', 'pm EST'))}",
                f"{hour}:{minute:02}:{self.upto(60):02}",
                f"{hour}:{minute:02}-{(hour + 1) % 24}:{minute:02}",
            )
        )

    def english_special(self) -> str:
        n = self.number()
        return self.of(
            (
                n,
                n,
                f"{self.of('$£€¥')}{n.lstrip('-')}",
                f"{self.of('$£€')}{n.lstrip('-')} {self.of(('million', 'billion', 'per month', 'each'))}",
                f"{self.upto(100)} {self.of(('dollars', 'million', 'years', 'people', 'times', 'of'))}",
                self.date(),
                self.time(),
                f"{n}{self.of(('', ' '))}{self.of(UNITS)}",
                f"{self.upto(200)}%",
                f"{1 + self.upto(9)}/{2 + self.upto(9)}",
                f"{self.upto(50)}-{50 + self.upto(50)}",
                f"{self.upto(50)}{self.of(('st', 'nd', 'rd', 'th'))}",
                f"+1 {200 + self.upto(700)}-{200 + self.upto(700)}-{self.upto(10000):04}",
                f"({200 + self.upto(700)}) {200 + self.upto(700)}-{self.upto(10000):04}",
                f"{n} {self.of(('sq ft', 'cu mi', 'pm est', 'am', 'per min', 'million a second', 'B.C.', 'a. d.'))}",
                f"{self.of(PROMPTS)} {n}-{200 + self.upto(700)}-5678",
                f"{self.upto(300)} {self.of(('E', 'N.', 'S'))} Main Street, San Jose, CA 95125",
                f"call me at {200 + self.upto(700)}-{200 + self.upto(700)}-{self.upto(10000):04}",
                "https://www.example.com/page?id=5",
                "www.github.com",
                "someone@example.com",
                f"{self.of(TITLES)} {self.of(NAMES)}",
                f"{self.of('ABCJKWXI')}. {self.of('ABCJKWI')}. {self.of(NAMES)}",
                f"{self.of(NAMES)}, {self.of(('CA', 'NY', 'TX', 'MANY', 'INdeed', 'OK'))}",
                f"No. {self.upto(100)}",
                f"{self.of(('GPT', 'F', 'Model', 'covid'))}-{self.upto(30)}",
                f"{self.of(('A', 'Q', 'H', 'MP', 'Win'))}{self.upto(12)}",
                f"{self.upto(300)} {self.of(('Baker', 'Main', 'Old Town'))} {self.of(('Street', 'St', 'Road', 'Ave'))}",
                f"192.168.{self.upto(255)}.{self.upto(255)}",
                f"v{self.upto(9)}.{self.upto(9)}.{self.upto(9)}",
                self.of(("R&D", "AT&T", "e.g.", "i.e.", "etc.", "U.S.", "Ph.D.", "vs.", "C++", "C#", "#1", "@home")),
                self.of(("and/or", "rock & roll", "a_b", "x = y", "x + 5 = 7", "3x", "5 x 6", "~10", "*", "…", "...")),
                self.of(("World War II", "World War I", "Chapter IV", "per km", "per minute", "miles per hour")),
            )
        )

    def chinese_special(self) -> str:
        n, u = self.number(), self.of(CHINESE_UNITS)
        year, month, day = 1900 + self.upto(150), 1 + self.upto(12), 1 + self.upto(28)
        return self.of(
            (
                n,
                f"{n}{u}",
                f"{n}{u}",
                f"{self.upto(50)}-{50 + self.upto(50)}{u}",
                f"{self.upto(50)}~{50 + self.upto(50)}{u}",
                f"{year}年{month}月{day}日",
                f"{year}年",
                f"{year}-{month:02}-{day:02}",
                f"{year}/{month}/{day}",
                self.time(),
                f"{self.of('¥$€£')}{n.lstrip('-')}",
                f"{n.lstrip('-')}{self.of(('美元', '块钱', '人民币', '万元', '亿'))}",
                f"{self.upto(100)}%",
                f"{1 + self.upto(9)}/{2 + self.upto(9)}",
                f"{self.upto(5)}:{self.upto(5)}",
                f"1{30 + self.upto(60)}{self.upto(10**8):08}",
                f"0{10 + self.upto(20)}-{self.upto(10**8):08}",
                f"第{self.upto(100)}{self.of('章节页次')}",
                f"{self.of(('A', 'Q', 'MP', 'iPhone', 'GPT-', 'B2'))}{self.upto(12)}",
                f"{self.of('abc')}+{self.of('xyz')}={self.upto(9)}",
                f"-{self.upto(30)}℃",
                f"{self.upto(9)}×{self.upto(9)}={self.upto(81)}",
                f"≥{self.upto(60)}",
                "约翰·史密斯",
                "玛丽·安娜-李",
                "www.example.com",
                "someone@example.com",
                self.of(("chong2", "ZUO4", "xue2", "lü4")),
                self.of(("hello", "OK", "AI", "Python3.11", "iPhone", "NBA", "CEO")),
                f"{self.upto(100)}后",
                f"No.{self.upto(10)}",
                f"ISBN{self.upto(10**10):010}",
                f"192.168.{self.upto(255)}.{self.upto(255)}",
                self.of(TRADITIONAL),
                self.of(FULL_WIDTH),
                f"{self.of(TEAMS)}{self.of(('', ' '))}{self.upto(5)}:{self.upto(5)}",
            )
        )

    def english_clause(self, density: float) -> str:
        words = []
        for _ in range(2 + self.upto(9)):
            if self.chance(density):
                words.append(self.english_special())
            elif self.chance(0.12):
                words.append(self.of(NAMES))
            else:
                words.append(self.of(ENGLISH_WORDS))
        clause = " ".join(words)
        around = self.upto(24)
        opening = ("(", "[", '"', "“", "'", "‘", "*", "{")
        closing = (")", "]", '"', "”", "'", "’", "*", "}")
        if around < len(opening) and len(words) > 2:
            first = self.upto(len(words) - 1)
            last = first + 1 + self.upto(len(words) - first)
            words[first] = opening[around] + words[first]
            words[last - 1] += closing[around]
            clause = " ".join(words)
        return clause

    def english(self, sentences: int = 2, density: float = 0.15) -> str:
        text = ""
        for _ in range(1 + self.upto(sentences)):
            clause = self.english_clause(density)
            text += clause[0].upper() + clause[1:]
            while self.chance(0.4):
                text += self.of((", ", ", ", "; ", ": ", " - ", " — ", "—", "... ", " (", ") "))
                text += self.english_clause(density)
            text += self.of((". ", ". ", ". ", "! ", "? ", '." ', "... ", "?! ", ".\n", "\n", ".\n\n", ".”\n“", " "))
        return text.strip()

    def chinese_clause(self, density: float) -> str:
        clause = ""
        for _ in range(1 + self.upto(5)):
            if self.chance(density):
                clause += self.chinese_special()
            elif self.chance(0.2):
                clause += self.of(CHINESE_WORDS)
            else:
                clause += "".join(self.of(CHINESE) for _ in range(1 + self.upto(7)))
        around = self.upto(24)
        if around < 6:
            clause = '“（《「("'[around] + clause + '”）》」)"'[around]
        return clause

    def chinese(self, sentences: int = 2, density: float = 0.25) -> str:
        text = ""
        for _ in range(1 + self.upto(sentences)):
            text += self.chinese_clause(density)
            while self.chance(0.5):
                text += self.of(("，", "，", "、", "：", "；", ",", " ", "——", "……", "")) + self.chinese_clause(density)
            text += self.of(("。", "。", "！", "？", "。\n", "\n", "……", ". ", " ", "。”"))
        return text.strip()


def texts(count: int, seed: int = 0, sentences: int = 2, density: float = 0.2) -> list[str]:
    """Texts of up to `sentences` sentences in English and Chinese by turns, and every tenth in both."""
    draw = Draw(seed)
    made = []
    for i in range(count):
        if i % 10 == 9:
            made.append(f"{draw.chinese(1, density)} {draw.english(1, density)}")
        else:
            made.append(draw.chinese(sentences, density) if i % 2 else draw.english(sentences, density))
    return made


def reference(made: Sequence[str], checkout: Path, python: Path) -> list[str]:
    """What the reference's own front end makes of each text."""
    lines = "".join(json.dumps(text) + "\n" for text in made)
    command = [str(python), "-c", REFERENCE, str(checkout)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8", check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(made):
        raise SystemExit(f"the reference stopped after {len(answers)} of {len(made)} texts:\n{done.stderr[-2000:]}")
    return answers


def kinds(texts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(ours, theirs), each with the texts in which they stand for one another."""
    found = defaultdict(list)
    for text, left, right in zip(texts, ours, theirs, strict=True):
        parts = [re.findall(r"[A-Za-z]+|\s+|.", side, re.DOTALL) for side in (left, right)]
        for kind, i, j, k, m in difflib.SequenceMatcher(None, *parts, autojunk=False).get_opcodes():
            if kind != "equal":
                found["".join(parts[0][i:j])[:30], "".join(parts[1][k:m])[:30]].append(text)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", help="of the reference")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), metavar="INTERPRETER")
    parser.add_argument("--count", type=int, default=5000, help="of texts (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=2, help="at most, of a text (default: 2)")
    parser.add_argument("--density", type=float, default=0.2, help="share of numbers, units, ... (default: 0.2)")
    options = parser.parse_args(arguments)
    made = texts(options.count, options.seed, options.sentences, options.density)
    if options.reference:
        front = TextFrontEnd(SentencePieceProcessor())
        ours, theirs = [front.normalize(text) for text in made], reference(made, options.reference, options.python)
    else:
        ours, theirs = [], []
        for text in made:
            language = "zh" if is_chinese(text) else "en"
            theirs.append(rules.read(text, language, whole=len(text)))
            ours.append(rules.read(text, language, whole=0))
    for (left, right), where in sorted(kinds(made, ours, theirs).items(), key=lambda item: -len(item[1])):
        print(f"{len(where):5} {left!r} is {right!r} there: {where[0][:90]!r}")
    for name in ("en", "zh"):
        of = [i for i, text in enumerate(made) if is_chinese(text) == (name == "zh")]
        print(f"{name}: {len(of)} texts, {sum(ours[i] != theirs[i] for i in of)} differ")
    return int(ours != theirs)


if __name__ == "__main__":
    sys.exit(main())
