"""Every error that a user can act on.

    UserError                  one line that says the problem, one `hint:` that can be pasted; exit code 2
    ├── UsageError             an option or a limit makes no sense
    ├── BadFile                a file is damaged, of the wrong kind, or may not be read
    ├── UnknownName            a model or a machine that no catalogue, folder or file knows
    ├── DoesNotFit             the model and its cache exceed the memory limit
    ├── Unavailable            something outside is missing: a package, the network, disk space, a port
    └── EngineError            the engine refused, with its own words
        ├── EngineUnusable     it cannot run on this machine at all (CPU, library, version)
        ├── EngineDied         the child process ended before its time
        └── EngineTimeout      the child process did not answer within its limit and was killed

Anything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """An expected error: `str(error)` is one line with both numbers, `hint` is what to try.

    An error that has no hint of its own gives the `usual_hint` of its class.
    """

    usual_hint = "penjing --help"

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(" ".join(problem.split()))
        self.hint = " ".join((hint or self.usual_hint).split())


class UsageError(UserError):
    """An option or a limit makes no sense."""


class BadFile(UserError):
    """A file is damaged, of the wrong kind, or may not be read."""

    usual_hint = "look at it with `ls -l`: is it there, may you read it, is it complete?"


class UnknownName(UserError):
    """A model or a machine that no catalogue, folder or file knows."""


class DoesNotFit(UserError):
    """The model and its cache exceed the memory limit."""


class Unavailable(UserError):
    """Something outside is missing: a package, the network, disk space, a port."""


class EngineError(UserError):
    """The engine refused, with its own words."""

    usual_hint = "run it again; if the error stays, check the file with another program"


class EngineUnusable(EngineError):
    """The engine cannot run on this machine at all (CPU, library, version)."""


class EngineDied(EngineError):
    """The child process ended before its time."""


class EngineTimeout(EngineError):
    """The child process did not answer within its limit and was killed."""
