"""What can go wrong, by exit code (DESIGN.md lists the codes)."""


class LorasmithError(Exception):
    """Something the user can mend. The text is one line: where, what was found, what to do."""

    exit_code = 2


class RecipeError(LorasmithError):
    """The recipe or an override is wrong."""


class DataError(LorasmithError):
    """A row, or what was to be made of the rows, is wrong."""


class ModelError(LorasmithError):
    """The base model, tokenizer or adapter cannot be used as asked."""


class UnreachableError(LorasmithError):
    """Something on the hub is needed and the hub is out of reach; a dry run goes on without."""


class RunError(LorasmithError):
    """The output folder cannot take this run."""


class FitError(LorasmithError):
    """It does not fit in memory, or the disk is too small."""

    exit_code = 3


class DivergedError(LorasmithError):
    """Training left the finite numbers, or an export failed its proof."""

    exit_code = 4


class RankError(LorasmithError):
    """A process of the run died."""

    exit_code = 5


class StoppedError(LorasmithError):
    """Stopped on request or for want of disk; what was done can be resumed."""

    exit_code = 75


class StoppedNow(KeyboardInterrupt):
    """A signal while nothing has to be saved: leaves at once, past every `except Exception` on the way."""
