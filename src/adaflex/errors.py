"""The errors a user can meet: each names the field, the value and the way out in one sentence.

In: nothing. Out: ``AdaflexError`` and its leaves, each with the exit code the shell returns for it.
"""

from __future__ import annotations


class AdaflexError(Exception):
    """Root of every error raised on purpose. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class OptionError(AdaflexError):
    """An option, argument or input file is malformed or contradicts another."""

    exit_code = 2


class TableError(OptionError):
    """A cost table, plan or memory problem does not follow its schema; the message names line or path."""


class CalibrationError(OptionError):
    """Calibration data is empty, misshapen, or makes the model's output constant."""


class CaptureError(AdaflexError):
    """The model could not be captured as one graph; the message names the operator and the way out."""


class BudgetError(AdaflexError):
    """Proven: no plan meets the budgets. The message gives the least achievable value."""

    exit_code = 3


class PromiseError(AdaflexError):
    """What was measured broke what the plan promised, and no correction could mend it."""

    exit_code = 4


class TimeLimitError(AdaflexError):
    """The time limit ended before there was any answer."""

    exit_code = 5


class SolverError(AdaflexError):
    """The solver failed in a way that no status describes."""


class BuildError(AdaflexError):
    """Generated code did not build: compiler missing, failing or out of time."""


class ArtifactError(OptionError):
    """A saved artifact is damaged, from a future version, or hostile; nothing of it was used."""


class StreamError(AdaflexError, RuntimeError):
    """Weights that a program streams from disk could not be read; the message names the file."""


class CacheError(OptionError):
    """A cache the user named cannot be used, or an entry does not belong to what asked for it."""
