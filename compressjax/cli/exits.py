"""How a command ends: exit codes, and one line for whatever went wrong."""

USER_MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_MISTAKES = (
    ValueError,
    TypeError,
    NotImplementedError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


def exit_code(error: BaseException) -> int:
    """2 for what the user can put right in the command, 1 for what went wrong underneath, 130 for Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return USER_MISTAKE if isinstance(error, _MISTAKES) else FAILURE


def message(error: BaseException) -> str:
    """What to tell the user, in one paragraph."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = str(error).strip()
    if exit_code(error) == USER_MISTAKE and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
