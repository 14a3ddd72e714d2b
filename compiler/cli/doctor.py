"""The command `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from compiler.cli.common import out, print_json


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine for what commonly goes wrong with Edge TPUs, and say what to do.

    The exit code is 1 where something fails.
    """
    from compiler.runtime.doctor import examine
    from compiler.view.device import show_findings

    findings = examine()
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        show_findings(out, findings)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)
