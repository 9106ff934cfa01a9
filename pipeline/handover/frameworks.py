"""The frameworks that are audited: package, pinned version, and the settings with which each is run.

A setting's ``values`` stand under the framework's own names, as its runner passes them on; they are for models with Qwen3's chat
template. The first setting of each is what its users have without thinking about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.errors import UserError, nearest

Form = Literal["conversations", "answers", "tokens"]


@dataclass(frozen=True)
class Setting:
    """One way to run a framework. ``how`` is a sentence for people; ``form`` what a row is."""

    name: str
    how: str
    form: Form = "conversations"
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Framework:
    """A package that trains.

    ``version`` is None where it is the one of requirements.txt, in this environment; else it has an environment of its own, which
    ``locks/NAME.txt`` lists whole. ``unloadable`` are libraries in it that need CUDA to load and that the audit does without.
    """

    name: str
    package: str
    settings: tuple[Setting, ...]
    version: str | None = None
    unloadable: tuple[str, ...] = ()

    @property
    def runner(self) -> str:
        return f"run_{self.name.replace('-', '_')}.py"

    def setting(self, name: str) -> Setting:
        """The setting of that name.

        Raises:
            UserError: there is none.
        """
        known = {setting.name: setting for setting in self.settings}
        if name not in known:
            raise UserError(
                f"{self.name} has no setting {name!r}.{nearest(name, known)} There are: {', '.join(known)}."
            )
        return known[name]


_QWEN_PARTS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
_SWIFT = {"model_type": "qwen3", "template": "qwen3"}

FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework
    for framework in (
        Framework(
            "unsloth",
            "unsloth",
            (
                Setting("notebook", "the text of the chat template, as in its public Qwen3 notebook; no mask"),
                Setting(
                    "responses_only",
                    "the same, then train_on_responses_only with Qwen3's headers",
                    values={"train_on_responses_only": _QWEN_PARTS},
                ),
                Setting(
                    "tokens",
                    "rows of input_ids and labels that are made before, one answer each; no template and no text",
                    "tokens",
                    {"form": "tokens"},
                ),
            ),
        ),
        Framework(
            "trl",
            "trl",
            (
                Setting("messages", "rows of messages, SFTConfig() as it is; no mask"),
                Setting(
                    "assistant_only",
                    "rows of messages, assistant_only_loss=True: TRL puts its own training template in place",
                    values={"assistant_only_loss": True},
                ),
                Setting(
                    "prompt_completion",
                    "rows of prompt and completion, one answer each, with chat_template_kwargs of the mode",
                    "answers",
                    {"form": "answers"},
                ),
            ),
        ),
        Framework(
            "llama-factory",
            "llamafactory",
            (
                Setting("template", "template: qwen3", values={"template": "qwen3"}),
                Setting(
                    "no_empty_loss",
                    "template: qwen3, enable_thinking: null, mask_history: true; one answer a row",
                    "answers",
                    {"template": "qwen3", "enable_thinking": None, "mask_history": True},
                ),
            ),
            "0.9.5",
            ("torchaudio/lib/*.so",),
        ),
        Framework(
            "ms-swift",
            "ms-swift",
            (
                Setting("template", "--template qwen3", values=_SWIFT),
                Setting(
                    "last_round",
                    "--template qwen3 --loss_scale last_round; one answer a row",
                    "answers",
                    _SWIFT | {"loss_scale": "last_round"},
                ),
            ),
            "4.6.0",
        ),
        Framework(
            "axolotl",
            "axolotl",
            (
                Setting("template", "chat_template: qwen3, type: chat_template", values={"chat_template": "qwen3"}),
                Setting(
                    "last_turn",
                    "chat_template: qwen3, message_field_training: train, which is true for the last answer alone; "
                    "one answer a row",
                    "answers",
                    {"chat_template": "qwen3", "dataset": {"message_field_training": "train"}},
                ),
            ),
            "0.19.0",
        ),
    )
}


def framework(name: str) -> Framework:
    """The framework of that name.

    Raises:
        UserError: it is not among those that can be audited; says the nearest.
    """
    if name not in FRAMEWORKS:
        raise UserError(
            f"There is no framework {name!r}.{nearest(name, FRAMEWORKS)} There are: {', '.join(FRAMEWORKS)}."
        )
    return FRAMEWORKS[name]
