"""`python -m reports <command>`: what is done with results after the tests.

A command is a module of this package with `add_arguments(parser)` and `main(arguments) -> int`; it is imported
only when it is named, so that one command's needs are not another's.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "html": "make the conformance report of a results folder again",
    "history": "keep the nights and compare them: import, export, pin, page, prune",
    "reference": "make a reference loss curve from evidence",
    "pack": "pack a results folder as a submission",
    "check": "check a submission without an accelerator: trust nothing but its evidence",
}

MODULES = {"pack": "package"}  # where the module's name is another


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Usage errors are argparse's: status 2, one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m reports", description="Reports from recorded results.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in given[:1]:
            module = importlib.import_module(f"reports.{MODULES.get(name, name)}")
            module.add_arguments(command)
            command.set_defaults(main=module.main)
    parsed = parser.parse_args(given)
    return parsed.main(parsed)


if __name__ == "__main__":
    sys.exit(main())
