"""Errors that a user can act on: each is one line that names the field or file and the remedy."""


class FourfoldError(Exception):
    """Base of every error shown to a user; `str(error)` is the one line the command prints before exiting with 2."""


class ConfigError(FourfoldError):
    """A configuration that cannot be built; names the field."""


class CheckpointError(FourfoldError):
    """A checkpoint folder that is missing, truncated or does not match its configuration; names the file or tensor."""


class DataError(FourfoldError):
    """A corpus or document that cannot be read; names the file."""


class MediaError(FourfoldError):
    """A picture, clip or sound that cannot be read or written; names the file."""


class MediaWarning(UserWarning):
    """A clip or sound of which only a part could be read; names the file and says how much."""
