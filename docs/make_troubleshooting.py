"""Write docs/troubleshooting.md: what the libraries' commonest errors mean and what mends them, from the table.

python docs/make_troubleshooting.py > docs/troubleshooting.md
"""

from lorasmith.failures import known_failures


def main() -> None:
    print(
        "# Troubleshooting\n\nMade by `make reference` from `src/lorasmith/failures.yaml`; a test keeps it current.\n"
    )
    print(
        "The scripts tell each of these in one line; the traceback is in `private/log.txt` of the run's folder. Words"
    )
    print("in capitals stand for your own. What is not here ends with its traceback and exit code 1: please report it.")
    for failure in known_failures():
        kind, _, message = failure.example.partition(": ")
        told = failure.told([kind.rpartition(".")[2]], message)
        assert told is not None, failure.id
        print(f"\n## {failure.id.replace('-', ' ')}\n\nWhat you see ({seen_in(failure.source)}):\n")
        print(f"```\n{failure.example}\n```\n\nWhy: {told.cause}.\n\nWhat to do: {told.mend}\n")
        print(f"Exit code {told.exit_code}.")


def seen_in(source: str) -> str:
    """A link to an issue; a file of a package as it is."""
    repository, _, number = source.partition("#")
    return f"[{source}](https://github.com/{repository}/issues/{number})" if number else f"`{source}`"


if __name__ == "__main__":
    main()
