"""What the machine can do, what a training would cost, how many items a difference takes."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.cli.shared import command, load, positive, rate, show


def register(group: Any) -> None:
    """Add the commands of this module."""
    doctor = command(
        group, "doctor", "what this machine can do, and what to do about what it cannot", output=False, profile=False
    )
    doctor.add_argument("--no-network", action="store_true", help="do not try to reach the hubs")
    doctor.set_defaults(do=_doctor)

    power = command(group, "power", "how many items show a difference between two rates", output=False, profile=False)
    power.add_argument("--difference", type=float, default=0.03, metavar="D", help="default: 0.03")
    power.add_argument(
        "--rate", type=float, action="append", metavar="X", help="the first of the two rates (default: 0.5 to 0.95)"
    )
    power.add_argument(
        "--discordant",
        type=float,
        action="append",
        metavar="X",
        help="share of items that one setting gets right and the other wrong (default: 0.05, 0.1, 0.2)",
    )
    power.set_defaults(do=_power)

    costs = command(group, "estimate", "memory and time of training and evaluation before they start", output=False)
    costs.add_argument("--tokens", type=positive, metavar="N", help="of the whole training (default: a million)")
    costs.add_argument(
        "--tflops",
        type=rate,
        metavar="X",
        help="10^12 operations/s that your device reaches in training, for the time",
    )
    costs.set_defaults(do=_estimate)


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.core.doctor import examine, render

    findings = examine(check_network=not args.no_network)
    show(args, findings, render(findings))
    return 0 if findings["ok"] else 1


def _power(args: argparse.Namespace) -> int:
    from pipeline.core.statistics import DISCORDANT, RATES, power_table, power_text

    rows = power_table(args.difference, args.rate or RATES, args.discordant or DISCORDANT)
    show(args, rows, power_text(rows))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from pipeline.training.estimate import estimate, estimate_text, profile_sizes
    from pipeline.training.estimate_replies import estimate_replies, replies_text

    profile = load(args)
    result = estimate(profile, args.tokens, args.tflops)
    result["evaluation"] = estimate_replies(profile, profile_sizes(profile))
    show(args, result, "\n\n".join([estimate_text(result), replies_text(result["evaluation"])]))
    return 0
