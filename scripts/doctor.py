"""What this machine is and can do for training, what is wrong, and the command that mends each.

    python scripts/doctor.py [--json]

Exit code 0 when runs can start, 2 when something must be mended first.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lorasmith.console import say
from lorasmith.runs.ending import quiet, run_script

MARKS = {"good": "ok  ", "note": "note", "bad": "BAD "}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="all findings as JSON, for scripts and bug reports")
    arguments = parser.parse_args()
    quiet()

    from lorasmith import checkup

    findings = []
    for finding in checkup.examine(Path.cwd()):
        findings.append(finding)
        if not arguments.json:
            say(f"{MARKS[finding.state]} {finding.what:<18} {finding.found}")
            if finding.mend:
                say(f"     {'mend it with':<18} {finding.mend}")
    bad = sum(finding.state == "bad" for finding in findings)
    if arguments.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    elif bad:
        say(f"{bad} to mend before a run")
    else:
        say("next: python scripts/sft.py recipes/quickstart.yaml")
    if bad:
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
