"""indextts-jax check: whether all is there that speaking needs."""

import argparse
import json
from typing import Any

from indextts_jax.cli.options import add_common, add_device, add_model_place, command
from indextts_jax.errors import Error


def add(commands: Any) -> None:
    about = (
        "See whether all is there that speaking needs: packages, devices, memory, and every file of the model with its "
        "checksum. The exit status is 1 where something is missing, damaged or wrong."
    )
    examples = ("indextts-jax check", "indextts-jax check checkpoints", "indextts-jax check model --json")
    sub = command(commands, "check", run, about, "[MODEL] [options]", *examples)
    sub.bare = True
    group = sub.add_argument_group("everyday")
    add_model_place(sub, group, needed=False)
    add_device(group)
    group.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    import jax

    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")

    from indextts_jax import check, interrupts

    found = []
    for finding in check.check(options.model, options.dtype):
        interrupts.check()
        found.append(finding)
        if not options.json and (finding.state not in check.GOOD or not options.quiet):
            print(f"{finding.what:16} {finding.state:8} {finding.message}", flush=True)
    wrong = [finding for finding in found if finding.state not in check.GOOD]
    if options.json:
        report = {"ok": not wrong, "findings": [finding._asdict() for finding in found]}
        print(json.dumps(report, ensure_ascii=False, indent=1))
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise Error(
            f"not good: {', '.join(each.what for each in wrong[:5])}{more}; each has a line that says what to do"
        )
