"""Expected failures: what a user can get wrong, in words that a user can act on.

Every such failure is an `Error`, and its message is one line that names the file or the value and says what to do. The
command line prints that line and nothing else; whatever else escapes is a bug of ours, and comes with its traceback.
"""


class Error(ValueError):
    """What a user can get wrong: the message names the file or the value and says what to do."""


class NotFound(Error, FileNotFoundError):
    """A file or folder that is not there; the message names it and says what belongs there or how to make it."""
