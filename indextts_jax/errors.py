"""Expected failures: what a user can get wrong, in words that a user can act on.

Every such failure is an `Error`, and its message is one line that names the file or the value and says what to do. The
command line prints that line and nothing else; whatever else escapes is a bug of ours, and comes with its traceback.
"""


class Error(ValueError):
    """What a user can get wrong: the message names the file or the value and says what to do."""

    status = 1  # what a command ends with


def short(value: object, most: int = 60) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(error: BaseException, most: int = 120) -> str:
    """What another library says of a failure, as a message shows it: one line, cut where it is long."""
    text = " ".join(str(error).partition("\n\n")[0].split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


class NotFound(Error, FileNotFoundError):
    """A file or folder that is not there; the message names it and says what belongs there or how to make it."""
