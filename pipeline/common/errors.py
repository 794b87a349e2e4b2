"""The one error that a user is meant to read."""

from __future__ import annotations


class BenchError(Exception):
    """A user's mistake or a missing thing, said in one line: what, where, and the way out.

    The command line prints it without a traceback and exits with status 2.
    """
