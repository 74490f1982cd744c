"""The exception for mistakes that the user can correct."""


class UserError(Exception):
    """A mistake in flags, files or data: one sentence that names the culprit and the remedy; exit code 2."""
