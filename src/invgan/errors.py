"""The errors that are a user's to mend, as opposed to the library's own."""


class InputError(ValueError):
    """A mistake in what the user gave: one line that says what is wrong, where, and what to do.

    The command line prints the message and exits with code 2; it is a ``ValueError``, so code written
    against scikit-learn's conventions catches it too.

    Examples
    --------
    >>> raise InputError("table.csv, row 3, column 'age': found 'old', expected a number.")
    Traceback (most recent call last):
    ...
    invgan.errors.InputError: table.csv, row 3, column 'age': found 'old', expected a number.
    """


class TrainingDivergedError(ArithmeticError):
    """A loss stopped being finite: the message names the loss, the step, and what to try."""


class UnreliableEstimateWarning(UserWarning):
    """Some values of a Monte-Carlo estimate are not to be trusted; the diagnostics tell which."""
