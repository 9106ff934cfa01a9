"""The nightly examples: read as cron and GitHub read them, and their commands are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.main import parser
from pipeline.course.execute import course_notebooks
from pipeline.settings import load_profile

NIGHTLY = Path(__file__).resolve().parents[2] / "launch" / "nightly"
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday


def jobs(text: str) -> tuple[dict[str, str], list[tuple[list[str], str]]]:
    """Variables and jobs (five fields, command) of a crontab. A bare % ends a command; what follows is its input."""
    variables, found = {}, []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.match(r"(\w+)=(.*)$", line):
            variables[match[1]] = match[2]
        else:
            *fields, command = line.split(None, 5)
            found.append((fields, re.split(r"(?<!\\)%", command)[0].replace(r"\%", "%")))
    return variables, found


def assert_times(fields: list[str]) -> None:
    assert len(fields) == 5
    for field, (low, high) in zip(fields, LIMITS, strict=True):
        assert field == "*" or low <= int(field) <= high, field


def course_arguments(command: str) -> Namespace:
    """The arguments of ``python -m pipeline course`` in a line of the shell, as the command line reads them."""
    (part,) = [part for part in command.split("&&") if "pipeline course" in part]
    words = shlex.split(part)
    assert words[:3] == [".venv/bin/python", "-m", "pipeline"]
    return parser().parse_args(words[3:])


def assert_runs(arguments: Namespace) -> None:
    load_profile(arguments.profile, arguments.set)  # the settings are known, and their values are right
    assert arguments.command == "course" and course_notebooks(arguments.only)


def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((NIGHTLY / "github-workflow.yml").read_text(encoding="utf-8"))
    return found


def test_the_crontab() -> None:
    variables, ((fields, command),) = jobs((NIGHTLY / "crontab").read_text(encoding="utf-8"))
    assert_times(fields)
    assert set(variables) == {"SHELL", "COURSE"}
    assert [part.strip() for part in command.split("&&")][:2] == ['cd "$HOME/$COURSE"', "make setup"]
    arguments = course_arguments(command)
    assert_runs(arguments)
    assert str(arguments.output_dir) == "outputs/nightly/$(date +%F)"  # each night has a folder of its own


@pytest.mark.parametrize("line", ["60 2 * * * x", "0 24 * * * x", "0 2 0 * * x", "0 2 * 13 * x", "0 2 * * 8 x"])
def test_a_time_that_there_is_not_is_noticed(line: str) -> None:
    with pytest.raises(AssertionError):
        assert_times(jobs(line)[1][0][0])


def test_a_bare_percent_sign_ends_the_command() -> None:
    assert jobs("0 2 * * * date +%F")[1][0][1] == "date +" and jobs(r"0 2 * * * date +\%F")[1][0][1] == "date +%F"


def test_the_workflow() -> None:
    found = workflow()
    on = found[True]  # YAML reads the bare word `on` as true; GitHub knows that
    assert_times(on["schedule"][0]["cron"].split())
    assert "workflow_dispatch" in on
    assert found["permissions"] == {"contents": "read"}
    (job,) = found["jobs"].values()
    setup, run = [step["run"] for step in job["steps"] if "run" in step]
    assert setup == "make setup"
    arguments = course_arguments(run)
    assert_runs(arguments)
    last = job["steps"][-1]
    assert last["uses"].startswith("actions/upload-artifact@") and last["if"] == "always()"
    kept = [Path(line) for line in last["with"]["path"].split()]
    assert {path.relative_to(arguments.output_dir).parts[0] for path in kept} >= {
        "index.html",
        "course.json",
        "notebooks",
    }
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
