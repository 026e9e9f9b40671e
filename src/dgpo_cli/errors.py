"""Errors that a user can act on. The command line prints them as one line and a hint; anything else is a bug.

DgpoError
  ConfigError       a setting is unknown, out of range, or contradicts another one
    BusyError       another process works in the place
  InputError        a file, corpus, question set or record cannot be used as it is
  ModelError        a model or tokenizer cannot be loaded, or two of them do not fit together
  RetrievalError    an index cannot be opened, or a search failed
  TrainingError     training cannot go on (a loss is not finite, too many failed searches)
"""


def first_line(error: BaseException) -> str:
    """The first line of what a library says of an error, or the kind of error where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason(error: BaseException) -> str:
    """What the system says of an error, without number and path; of any other error all that it says."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class DgpoError(Exception):
    """`message` says what was given and what is allowed; `hint` is the command or setting that fixes it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(DgpoError):
    pass


class BusyError(ConfigError):
    pass


class InputError(DgpoError):
    pass


class ModelError(DgpoError):
    pass


class RetrievalError(DgpoError):
    pass


class TrainingError(DgpoError):
    pass
