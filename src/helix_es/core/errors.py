"""What can go wrong, as types: each carries a stable code, and its text says what to do."""

from __future__ import annotations


class HelixError(Exception):
    """Base of every error that Helix raises on purpose."""

    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class Rejected(HelixError):
    """The command is not possible in the state that the log shows; nothing was appended."""

    code = "rejected"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)


class Conflict(HelixError):
    """Somebody else appended first: read the tail, decide again."""

    code = "conflict"


class Unreadable(HelixError):
    """A stored message is not an event of ours: its bytes, tag or subject do not fit."""

    code = "unreadable"


class Unavailable(HelixError):
    """The log did not answer in time; whether the append was stored is unknown. Try again with the same id."""

    code = "log_unavailable"


class NotOurs(HelixError):
    """The turn is somebody else's by now, or over: drop it."""

    code = "not_ours"


class LogFull(HelixError):
    """The log refuses new facts because a limit of the stream is reached; make room, nothing was lost."""

    code = "log_full"


class Misconfigured(HelixError):
    """The configuration, the server or the environment is not fit; the text names the key and what is allowed."""

    code = "misconfigured"


class EngineError(HelixError):
    """A model could not be loaded or a turn could not be computed."""

    code = "engine_error"


class PromptTooLong(HelixError):
    """The prompt does not fit the model's context; shorten it or start a new session."""

    code = "prompt_too_long"
