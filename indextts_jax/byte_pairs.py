"""The vocabulary of IndexTTS-2.5: byte pairs as Whisper has them, in a file of tiktoken, and the marks beside them.

A line of the file is a token in base64 and its id. The marks follow, in an order that the ids of all of them depend on.
Follows the reference's `indextts/utils/tokenizer.py`.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from indextts_jax import files
from indextts_jax.errors import Error, NotFound, shown

if TYPE_CHECKING:
    import tiktoken

NAME = "multilingual_zh_ja_yue_char_del.tiktoken"  # in the folder of the model
MOST_BYTES = 16 << 20  # the official one has 907 kB

# Each has a mark of its own; the place of a language here is its row in the table of language embeddings.
_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su"
)
LANGUAGES = tuple(_LANGUAGES.split())
EVENTS = ["ASR", "AED", "SER", "Speech", "/Speech", "BGM", "/BGM", "Laughter", "/Laughter", "Applause", "/Applause"]
EMOTIONS = ["HAPPY", "SAD", "ANGRY", "NEUTRAL"]
TASKS = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
PRONUNCIATIONS = [f"SPECIAL_TOKEN_{i}" for i in range(1, 31)]
VOCAL = [f"TTS/{name}" for name in ("B", "O", "Q", "A", "CO", "CL", "H", *(f"SP{i:02}" for i in range(1, 14)))]
TIMES = [f"{i * 0.02:.2f}" for i in range(1501)]  # seconds
MARKS = tuple(
    f"<|{name}|>"
    for names in (("endoftext", "startoftranscript"), LANGUAGES, EVENTS, EMOTIONS, TASKS, PRONUNCIATIONS, VOCAL, TIMES)
    for name in names
)
_MARK = re.compile(r"<\|[^|]+\|>")
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # no token crosses them


def language_id(language: str) -> int:
    """The row of a language in the table of language embeddings. Raises ValueError for one that is not in it."""
    return LANGUAGES.index(language)


@dataclass(frozen=True)
class Vocabulary:
    """Text to ids and back."""

    encoding: "tiktoken.Encoding"

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a file of tiktoken. Raises NotFound for a missing file, Error for one that cannot be understood."""
        import tiktoken  # reads its regular expressions: only where 2.5 speaks

        path = Path(path)
        if not path.is_file():
            raise NotFound(f"{path}: no such file; the vocabulary belongs to the folder of the model")
        ranks = _ranks(path)
        marks = {mark: len(ranks) + i for i, mark in enumerate(MARKS)}
        return cls(tiktoken.Encoding(path.stem, pat_str=WORDS, mergeable_ranks=ranks, special_tokens=marks))

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """The ids of a text, marks such as <|SPECIAL_TOKEN_1|> as one id each."""
        if _MARK.search(text):
            return self.encoding.encode(text, allowed_special="all")
        return self.encoding.encode_ordinary(text)  # the same, a hundred times as fast: it is given no list of marks

    def mark(self, name: str) -> int:
        """The id of <|name|>. Raises KeyError where there is none."""
        return self.encoding.encode_single_token(f"<|{name}|>")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""Each id as text; bytes that are part of a character as \xe4."""
        return [self.encoding.decode_single_token_bytes(i).decode("utf-8", "backslashreplace") for i in ids]


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    unreadable = f"{path}: not a readable tiktoken vocabulary"
    for number, line in enumerate(files.read(path, MOST_BYTES).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise Error(f"{unreadable} (line {number}: {shown(error)}); fetch it again") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks.keys() >= {bytes([i]) for i in range(256)}:
        raise Error(f"{unreadable}: it lacks ids or bytes, or has some twice; fetch it again")
    return ranks
