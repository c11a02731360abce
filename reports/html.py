"""`python -m reports html RESULTS`: make conformance.html again, from results.json and the evidence beside it."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from reports.language import LANGUAGES
from reports.page import write
from reports.results import ReportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("results", type=Path, help="the folder that holds results.json and runs/")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the report (default: en)")
    parser.add_argument("--tests", type=Path, metavar="FILE", help="pytest-html's document, to fold at the end")


def main(arguments: argparse.Namespace) -> int:
    """Write the report and print where it is; 1 with one line on stderr if the results cannot be reported."""
    try:
        tests = arguments.tests.read_text(encoding="utf-8") if arguments.tests else None
        judged_at = datetime.fromtimestamp((arguments.results / "results.json").stat().st_mtime, timezone.utc)
        page = write(arguments.results, language=arguments.lang, tests_html=tests, judged_at=judged_at)
    except FileNotFoundError as error:
        print(f"error: {error.filename}: not found", file=sys.stderr)
        return 1
    except (ReportError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0
