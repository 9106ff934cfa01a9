"""The table of docs/profiles.md and its Chinese copy: memory and time of each real profile, by count.

    python docs/make_profiles.py            # writes it into both
    python docs/make_profiles.py --print

In: the profiles, and the published sizes of their models. Out: the lines between the marks of the pages.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "profiles.md", ROOT / "docs" / "profiles.zh.md")
MARK = re.compile(r"(<!-- profiles -->\n).*?(<!-- end -->)", re.S)
ROW_TOKENS = 1500  # of a row of the mix, on average: half chat of some hundreds, half reasoning cut off at 4,096
TFLOPS = 60.0  # 10^12 operations a second that an RTX 4090 reaches in training, of 165 in its data sheet
MIX_ROWS = 30_000  # that the mix of a whole pass has


def rows() -> list[str]:
    """A line of the table for each profile, in the order of the files' sizes of model."""
    from pipeline.core.console import duration
    from pipeline.core.errors import UserError
    from pipeline.settings import load_profile
    from pipeline.settings.section import PROFILES
    from pipeline.training.estimate import (
        CARDS,
        fits,
        flops_per_token,
        global_batch,
        memory,
        planned_steps,
        profile_job,
        profile_sizes,
    )
    from pipeline.training.estimate_replies import estimate_replies

    found = []
    for path in PROFILES.glob("qwen*.yaml"):
        profile = load_profile(path.stem)
        try:
            sizes = profile_sizes(profile)
        except UserError:
            unknown = f"| `{path.stem}` | `{profile.model.name}` | not counted | not counted | see the profile | not counted |"
            found.append((float("inf"), path.stem, unknown))
            continue
        job = profile_job(profile, "cuda")
        training, replies = memory(sizes, job)["total"], estimate_replies(profile, sizes)
        worst = max(training, replies["memory_bytes"])
        card = next((size for size in CARDS if fits(worst, size)), CARDS[-1])
        steps = planned_steps(profile, profile.mix.total or MIX_ROWS)
        tokens = steps * global_batch(profile) * ROW_TOKENS
        seconds = flops_per_token(sizes, job) * tokens / (TFLOPS * 1e12) + (replies["seconds"] or 0)
        seconds += replies["rehearsal"]["seconds"] or 0
        line = (
            f"| `{path.stem}` | `{profile.model.name}` | {training / 2**30:.1f} GiB | "
            f"{replies['memory_bytes'] / 2**30:.1f} GiB | {card} GB | {duration(seconds)} |"
        )
        found.append((sizes.parameters, path.stem, line))
    return [line for _, _, line in sorted(found)]


def table() -> str:
    heads = ["profile", "model", "memory of training", "memory of evaluation", "card", "a run, at most"]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---|---|--:|--:|--:|--:|", *rows()])


def filled(text: str, made: str) -> str:
    """A page's text with this table between the marks."""
    return MARK.sub(lambda match: f"{match[1]}\n{made}\n\n{match[2]}", text)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="on the terminal alone")
    made = table()
    if parser.parse_args().print:
        print(made)
        return
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
