"""Write the tables of the docs from ``docs/results``:  python docs/make_tables.py [--check]

In a Markdown file, what stands between ``<!-- results:NAME -->`` and ``<!-- end -->`` is the table of docs/results/NAME.json,
made by the table function of the module that wrote the file. ``NAME:PART`` is one of several views of it. ``--check``
changes nothing and says which file is behind its results (exit code 1).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+)(?::(?P<part>\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may hold tables."""
    return [*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]


def _sweep(result: dict[str, Any], part: str | None) -> str:
    from pipeline.studies import curve

    if part in WORDS:
        return _side_by_side(result, WORDS[part], COLUMNS[part])
    views = {"recommended": curve.recommendation, "fidelity": curve.fidelity_table, None: curve.sweep_table}
    return views[part](result)


_ENGLISH = {
    "thinking": "thinking",
    "non_thinking": "non-thinking",
    "embedded_chat": "chat",
    "embedded_arithmetic": "addition (known before)",
    "embedded_skill": "multiplication (new skill)",
    "mode_fidelity": "mode fidelity",
}
_CHINESE = {
    "thinking": "思考",
    "non_thinking": "非思考",
    "embedded_chat": "聊天",
    "embedded_arithmetic": "加法（原已掌握）",
    "embedded_skill": "乘法（新技能）",
    "mode_fidelity": "模式保真度",
}
# Of the README's tables: headings, modes, benchmarks, mode fidelity; and which values stand beside the base.
WORDS = {
    "ends": {"heads": "| n | what | mode | base | tuned, a quarter of the rows chat | tuned, no chat |", **_ENGLISH},
    "ends_zh": {"heads": "| n | 项目 | 模式 | 基座 | 微调后，聊天占四分之一行数 | 微调后，无聊天数据 |", **_CHINESE},
    "keep": {
        "heads": "| n | what | mode | base | tuned, the plain mix | tuned, with the base's own answers |",
        **_ENGLISH,
    },
    "keep_zh": {"heads": "| n | 项目 | 模式 | 基座 | 微调后，普通混合 | 微调后，加入基座自己的回答 |", **_CHINESE},
}
COLUMNS: dict[str, tuple[Any, Any]] = {
    "ends": (0.25, 0.0),
    "ends_zh": (0.25, 0.0),
    "keep": ("lower_rate", "recipe_lower_rate"),
    "keep_zh": ("lower_rate", "recipe_lower_rate"),
}


def _side_by_side(result: dict[str, Any], words: dict[str, str], values: tuple[Any, Any]) -> str:
    """Of a sweep: the base and two of its values."""
    modes = {point["value"]: point["modes"] for point in result["points"]} | {"base": result["base"]}
    columns = [modes[value] for value in ("base", *values)]
    lines = [words["heads"], "|--:|---|---|--:|--:|--:|"]
    for mode in ("thinking", "non_thinking"):
        tasks = [name for name in words if name.startswith("embedded")]
        rows = {name: [c[mode]["benchmarks"][name] for c in columns] for name in tasks}
        n = rows[tasks[0]][1]["n"]
        rows["mode_fidelity"] = [c[mode]["mode_fidelity"] for c in columns]
        for name, cells in rows.items():
            shown = ["{:.3f} [{:.3f}, {:.3f}]".format(c["value"], *c["ci95"]) for c in cells]
            count = n * len(tasks) if name == "mode_fidelity" else n
            lines.append(f"| {count:,} | {words[name]} | {words[mode]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _report(result: dict[str, Any]) -> str:
    """Of a run: base against tuned in both modes, and what the training took."""
    from pipeline.evaluation.report.words import table

    made = result["training"]
    training = (
        f"Training ({made['method']}): {made['steps']} steps, {made['training_seconds']:.0f} s, "
        f"{made['tokens_per_second']:.0f} tokens/s, peak memory {made['peak_memory_bytes'] / 1e9:.1f} GB."
    )
    return f"{table(result)}\n\n{training}"


def _benchmark(path: str) -> Callable[[dict[str, Any], str | None], str]:
    """The ``table`` function of a script in benchmarks/."""

    def show(result: dict[str, Any], part: str | None) -> str:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "benchmarks" / path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return str(module.table(result))

    return show


def _renderers() -> dict[str, Callable[[dict[str, Any], str | None], str]]:
    """Name of a result → what makes its table; every other result is a sweep's."""
    from pipeline.handover.tables import audit_table, handover_table
    from pipeline.hybrid import accept
    from pipeline.second import grpo, preference
    from pipeline.studies.budget import budget_text
    from pipeline.studies.methods import methods_table
    from pipeline.studies.sampling import sampling_text
    from pipeline.studies.search_result import search_table
    from pipeline.studies.switches import switches_text

    scripts = (
        "cleaning_quality estimate length_grouping perf processes resume retrieval schedules server serving".split()
    )
    return {
        **{name: _benchmark(f"{name}.py") for name in [*scripts, "handover_training", "unsloth_cpu", "decoding"]},
        "serving_adapters": _benchmark("serving.py"),
        **{name: _benchmark("decoding.py") for name in ("decoding_ends", "decoding_float32", "decoding_ends_float32")},
        **{name: _benchmark("ray_sweep.py") for name in ("ray_sweep", "ray_killed")},
        "server_vllm": _benchmark("server.py"),
        **{
            name: lambda result, _: accept.hybrid_table(result)
            for name in ("hybrid", "hybrid_ninth", "hybrid_tenth", "hybrid_lora")
        },
        **{
            name: lambda result, _: _report(result)
            for name in ("real_run", "real_run_3408", "real_plain", "real_with_own", "real_with_maths")
        },
        **{name: _benchmark("sweep.py") for name in ("sweep_cells", "workers")},
        **{name: audit_table for name in ("audit", "audit_swift_4.3.0", "audit_swift_4.3.1")},
        **{name: handover_table for name in ("handover", "handover_public")},
        "methods": methods_table,
        "preference": lambda result, _: preference.preference_table(result),
        "grpo": lambda result, _: grpo.grpo_table(result),
        "search": lambda result, _: search_table(result),
        "sampling": lambda result, _: sampling_text(result),
        "switches": lambda result, _: switches_text(result),
        "budget": lambda result, _: budget_text(result),
    }


def render(name: str, part: str | None = None) -> str:
    """The table of one result; where it was not measured yet, that is said."""
    from pipeline.core.files import read_json
    from pipeline.studies.results import KINDS, load_result

    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"*Not measured yet; the command that makes {name}.json stands in docs/results/README.md.*"
    renderers = _renderers()
    kind = KINDS.get(name if name in renderers else "sweep")
    return renderers.get(name, _sweep)(load_result(path, kind) if kind else read_json(path), part).strip()


def filled(text: str) -> str:
    """A page with all of its tables anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{render(m['name'], m['part'])}\n\n{m[4]}", text)


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_text

    behind = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            behind.append(page.relative_to(ROOT).as_posix())
            if "--check" not in argv:
                write_text(page, new)
    for name in behind:
        print(f"{name}: {'behind its results' if '--check' in argv else 'written'}")
    return 1 if behind and "--check" in argv else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
