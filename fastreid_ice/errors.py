"""A user's mistakes: named with their choices, and told by the command line in one line."""

from __future__ import annotations

import difflib
import importlib.util
import re
import signal
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# What our checks raise, what reading and writing files raises, and FloatingPointError for a loss that became NaN.
USER_ERRORS = (ValueError, OSError, RuntimeError, FloatingPointError)


class UnreadableCheckpointError(ValueError):
    """A file that is no checkpoint, or half of one."""


# What torch and pickle raise of a file of weights that is cut off, or has other bytes in it.
DAMAGED = (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError, struct.error)
INTERRUPTED = 130  # exit code of a program that was interrupted by the keyboard


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks; its type where there is no message.

    Example:
        >>> one_line(ValueError("two\\n  lines"))
        'two lines'
    """
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # a loader's worker hands on the traceback as text
        text = _last_message(text) or text
    return " ".join(text.split()) or type(error).__name__


def listed(choices: Iterable[str]) -> str:
    """Choices as a message shows them, sorted.

    Example:
        >>> listed({"b", "a"})
        'a, b'
    """
    return ", ".join(sorted(choices))


def closest(name: str, choices: Iterable[str]) -> str:
    """' (did you mean X?)' for the most similar choice, or nothing.

    Example:
        >>> closest("Market1051", ["Market1501", "DukeMTMC"])
        ' (did you mean Market1501?)'
    """
    found = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def missing_packages(names: Iterable[str]) -> str:
    """Which of these cannot be imported and the command that installs them; "" where all can.

    Example:
        >>> missing_packages(["json"]), missing_packages(["json", "no_such_package"])
        ('', 'no_such_package: pip install no_such_package')
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)}: pip install {' '.join(missing)}" if missing else ""


def registered_names(registry: Any) -> list[str]:
    """The names in a registry of fastreid, which cannot be listed otherwise."""
    return list(registry._obj_map)


def look_up(registry: Any, name: str, key: str, advice: str = "") -> Any:
    """What is registered under a name.

    Args:
        registry: a registry of fastreid.
        name: the value of the config key.
        key: the config key, for the message.
        advice: appended to the message.

    Raises:
        ValueError: nothing is; with the choices.
    """
    names = registered_names(registry)
    if name not in names:
        raise ValueError(f"{key} is {name!r}{closest(name, names)}; choose one of {listed(names)}. {advice}".strip())
    return registry.get(name)


def of_child_process(error: BaseException) -> str | None:
    """The message of a user's error that ended a spawned process; None for any other error.

    torch.multiprocessing hands on the traceback as text, whose last lines are the type and the message.
    """
    if type(error).__name__ != "ProcessRaisedException":
        return None
    return _last_message(str(error))


def _last_message(text: str) -> str | None:
    """The message of the last user's error among tracebacks, in one line."""
    known = "|".join(sorted({name for kind in USER_ERRORS for name in _names_below(kind)}))
    found = re.findall(rf"^(?:[\w.]+\.)?(?:{known}): (.*(?:\n(?!Traceback).*)*)", text, flags=re.MULTILINE)
    return " ".join(found[-1].split()) if found else None


def _names_below(kind: type) -> set[str]:
    children: list[type] = kind.__subclasses__()
    return {kind.__name__}.union(*(_names_below(child) for child in children))


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let ``kill`` end the program as an error does, so that the trainings that it has started end with it."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # no other may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def told_in_one_line(debug: bool = False) -> Iterator[None]:
    """End the program with ``error: <message>`` and exit code 1 when the block raises a user's error.

    With ``debug``, and for errors that are nobody's mistake but ours, the traceback is shown.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = one_line(error) if isinstance(error, USER_ERRORS) else of_child_process(error)
        if debug or message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(1) from None
