"""The command line that every training script has."""

import argparse
from pathlib import Path


def training_parser(description: str | None, recipe: str | None = None) -> argparse.ArgumentParser:
    """A recipe, overrides of its keys, and what to do with an earlier run.

    Args:
        description: The script's docstring.
        recipe: Help for the recipe, where it may be something else.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    parser.add_argument("recipe", type=Path, help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="set a key of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="check, print the resolved recipe, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in output_dir")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, or refuse")
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="FIELD", help="go on although it differs"
    )
    return parser


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"`{text}`; expected a whole number above 0")
    return number
