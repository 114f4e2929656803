"""The command-line parser: one clear message for what it does not know, with what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

USAGE = 2
"""Exit code of a wrong command line."""
CLOSE = 0.6
"""Least likeness of a word to what was probably meant, from 0 to 1."""
_CHOICE = re.compile(r"invalid choice: '(?P<got>.*?)' \(choose from (?P<all>.*)\)")
_WORD = re.compile(r"[A-Za-z_]\w*=")
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<got>.*)")


class Parser(argparse.ArgumentParser):
    """Like argparse's; errors suggest the nearest command or option, and don't repeat the usage."""

    _words: Sequence[str] = ()
    """What is being parsed."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong and end with exit code 2."""
        self.exit(USAGE, f"hwprune: {self._explained(message)}\nMore: {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed command line. Options that nobody knows are the command's own fault, which knows its options."""
        found, unknown = self.parse_known_args(args, namespace)
        if hasattr(found, "words"):  # key=value words may stand after options, too
            found.words = [*found.words, *(word for word in unknown if _WORD.match(word))]
            unknown = [word for word in unknown if not _WORD.match(word)]
        if unknown:
            command = self._command(getattr(found, "command", None))
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Remembers the words, for errors that have another cause than they tell."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _command(self, name: str | None) -> argparse.ArgumentParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                found: argparse.ArgumentParser = action.choices[name]
                return found
        return self

    def _explained(self, message: str) -> str:
        if "argument COMMAND" in message and (match := _CHOICE.search(message)):
            known = [word for word in re.findall(r"[\w-]+", match["all"]) if word != "bench-worker"]
            return f"there is no command {match['got']!r}{_meant(match['got'], known)}"
        if match := _UNKNOWN.search(message):
            got = match["got"].split()
            options = [name for action in self._actions for name in action.option_strings]
            hints = "".join(_meant(word.partition("=")[0], options) for word in got if word.startswith("-"))
            return f"unknown: {match['got']}{hints}"
        if "the following arguments are required: COMMAND" in message:
            return "name a command, for instance: hwprune search"
        message = message.replace("required: WORKLOAD, key=value", "required: WORKLOAD")  # the words may be left out
        options = [name for action in self._actions for name in action.option_strings]
        strange = [
            word for word in self._words if word.startswith("--") and word.partition("=")[0] not in options and word != "--"
        ]
        if "the following arguments are required" in message and strange:
            return f"{message}; {self._explained(f'unrecognized arguments: {strange[0]}')}"
        return message


def _meant(got: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(got, list(known), 1, CLOSE)
    return f"; did you mean {near[0]}?" if near else ""
