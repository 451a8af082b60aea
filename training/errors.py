"""What can go wrong while training that the user can mend; its text is shown without a traceback."""


class TrainingError(Exception):
    """Base of all that `python -m training` raises on purpose."""


class DataError(TrainingError):
    """The training data cannot be used; the text names the files."""


class RunError(TrainingError):
    """A run cannot start or go on: another one holds its folder, or its saved state is of another recipe."""


class RefusedError(TrainingError):
    """A candidate is not published, for it is worse than the weights in service."""
