"""The one exception that means 'the person can mend this'."""


class UserError(Exception):
    """A mistake in flags, files or data: one sentence that names the culprit and the remedy; exit code 2."""
