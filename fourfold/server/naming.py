"""Errors of what several APIs share, with fields by the names of the one that was asked."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fourfold.errors import FourfoldError
from fourfold.server.errors import ApiError, api_error


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Raise errors with what matches a key (a regular expression) in message and param replaced by its value."""
    try:
        yield
    except (ApiError, FourfoldError) as error:
        found = api_error(error)
        message, param = found.message, found.param
        for theirs, ours in names.items():
            message, param = re.sub(theirs, ours, message), param and re.sub(theirs, ours, param)
        raise ApiError(found.status, message, found.type, param, found.code, found.headers) from error
