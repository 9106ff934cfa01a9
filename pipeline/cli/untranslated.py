"""For authors: ``python -m pipeline.cli.untranslated`` prints what of ``--help`` has no Chinese yet, as a catalogue's entries."""

from __future__ import annotations

import sys

from pipeline.cli.help import ARGPARSE_SAYS, texts
from pipeline.cli.main import parser
from pipeline.course.messages import missing

if __name__ == "__main__":
    wanted = {text: "cli" for _, text in texts(parser())} | dict.fromkeys(ARGPARSE_SAYS, "cli/help.py")
    sys.stdout.writelines(missing(wanted))
