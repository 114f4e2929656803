"""hwprune completion."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh")
EPILOG = """examples:
  eval "$(hwprune completion bash)"                        in this shell
  hwprune completion bash > ~/.local/share/bash-completion/completions/hwprune
  hwprune completion zsh > "${fpath[1]}/_hwprune"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose script is printed")


def run(options: argparse.Namespace) -> int:
    import shtab

    from hwprune.cli.main import build_parser

    print(shtab.complete(build_parser(), shell=options.shell))
    return 0
