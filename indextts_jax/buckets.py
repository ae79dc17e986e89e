"""The ladders: every length that a compiled program depends on is rounded up to one of these.

A rung costs a compilation and a step up costs padding, so rungs stand about a third apart. Past its top, a ladder goes
on in steps of its last gap: long inputs still run, each in a program of its own. Where most speech lies (3 to 5 s, of
recordings 3 to 6 s) they stand closer.
"""

TEXT = (16, 32, 48, 64, 96, 128)  # text ids of a segment
QUESTION = (64, 128, 256, 512, 1024)  # tokens of a question to Qwen
# Semantic frames that are spoken, 50 per second: codes, or the frames that a code of several stands for.
CODES = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 640, 768, 1024, 1536)
BATCH = (1, 2, 4, 8, 16, 32, 64)  # rows of a batch
BLOCKS = (1, 2, 4, 7)  # of 256 slots of the key-value cache: paid for at every step
SECONDS = (2, 3, 4, 5, 6, 8, 10, 12, 15)  # of a recording
# Prompt and target together, of which the flow's cost is more than linear: finer than the others.
FRAMES = (*range(192, 768, 64), *range(768, 1536, 128), *range(1536, 3073, 256))
PROMPT = (192, 352, 528, 704, 960, 1312)  # mel frames of a recording, 86.13 per second


def bucket(length: int, ladder: tuple[int, ...]) -> int:
    """The smallest rung that holds `length`."""
    for rung in ladder:
        if length <= rung:
            return rung
    gap = ladder[-1] - ladder[-2]
    return ladder[-1] + -(-(length - ladder[-1]) // gap) * gap


def within(length: int, ladder: tuple[int, ...]) -> int:
    """The largest rung that `length` holds; `length` is at least the lowest."""
    gap = ladder[-1] - ladder[-2]
    past = max(0, length - ladder[-1]) // gap * gap
    return past + max(rung for rung in ladder if rung <= length)
