"""Lines that a person may paste into a shell: every word quoted, nothing that a terminal obeys."""

import shlex

from whybox.kernel.host import printable


def quoted(text: str) -> str:
    r"""One word. Control characters, which a cgroup's name may hold, are spelled out (bash).

    >>> quoted("web-1"), quoted("a b"), quoted("a\x1b'")
    ('web-1', "'a b'", "$'a\\x1b\\''")
    """
    if printable(text) == text:
        return shlex.quote(text)
    return "$'" + printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def line(*words: str) -> str:
    """One command."""
    return " ".join(quoted(word) for word in words)


def write(value: str | int, file: str) -> str:
    """A kernel file that is written to."""
    return f"echo {quoted(str(value))} > {quoted(file)}"
