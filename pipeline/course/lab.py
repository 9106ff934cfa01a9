"""A small bench for exercises: teach the embedded model for a few seconds, and ask it.

In: rows (``input_ids`` and ``labels``), steps, a learning rate, questions. Out: the losses, and a reply to each question.
Nothing is kept: each call begins with the shipped model, in 4 bit, with a new LoRA adapter. It needs no GPU and no network.

The loop is plain PyTorch on plain transformers and PEFT, so that an exercise takes seconds and gives the same each time. Where
Unsloth has put its own code into transformers' classes, the work is done in a process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.core.place import ROOT
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat, EmptyThink
from pipeline.data.conversations import converter
from pipeline.model.decode import generate
from pipeline.model.form import judge
from pipeline.model.load import load_data_tokenizer, model_location
from pipeline.settings import Sampling, load_profile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_STEPS = 400
BATCH = 4  # rows a step
# Name → the part of the peak rate after a part of all steps, both from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "exponential": lambda done: 0.01**done,
}


class Row(TypedDict):
    """A training row: token ids, and labels that are equal to them, or −100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


class LabQuestion(TypedDict):
    """Something to ask: ``messages`` and a mode, or a ``prompt`` written out; ``answer`` is what a right reply holds."""

    messages: list[dict[str, Any]]
    mode: Mode
    answer: str


class Answered(TypedDict):
    """A reply. ``right``: the answer stands behind the reasoning; ``faithful``: it has the form of its mode."""

    question: str
    mode: str
    text: str
    right: bool
    faithful: bool


class Taught(TypedDict):
    """What came of it: a loss a step, and the replies afterwards."""

    loss: list[float]
    replies: list[Answered]


# --- what to teach and what to ask ------------------------------------------------------------------------------------


def lesson(share: float, rows: int = 400, seed: int = 1, empty_think: EmptyThink = "masked") -> list[Row]:
    """Generated rows, of which the part ``share`` is chat and the rest is multiplication with reasoning.

    Args:
        empty_think: ``trained`` puts loss on the empty think block of the chat answers: the mistake of notebook 01.

    Raises:
        UserError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"A share lies between 0 and 1, not at {share}.")
    form = ChatFormat(load_data_tokenizer(load_profile("embedded").model), empty_think=empty_think)
    chat = round(rows * share)
    made: list[Row] = []
    for source, count in ((corpora.finetome_like, chat), (corpora.openmath_like, rows - chat)):
        convert = converter("auto")
        for row in source(count, seed):
            example = form.example(convert(row))[-1]
            made.append({"input_ids": example.input_ids, "labels": example.labels})
    return made


def questions(kind: str, count: int = 20, mode: Mode = "thinking") -> list[LabQuestion]:
    """Held-out questions of a kind: ``chat``, ``arithmetic`` or ``skill`` (multiplication)."""
    return [
        {"messages": item["messages"], "mode": mode, "answer": str(item["answer"])}
        for item in corpora.test_items(kind, count)
    ]


def question(text: str, mode: Mode = "thinking", answer: str = "") -> LabQuestion:
    """One question of your own."""
    return {"messages": [{"role": "user", "content": text}], "mode": mode, "answer": answer}


def rate_of(replies: Sequence[Answered], what: str = "right") -> float:
    """The part of the replies that are ``right``, or ``faithful``."""
    return sum(bool(reply[what]) for reply in replies) / len(replies)  # type: ignore[literal-required]


# --- teach and ask ----------------------------------------------------------------------------------------------------


def teach(
    rows: Sequence[Mapping[str, Any]],
    ask: Sequence[Mapping[str, Any]] = (),
    steps: int = 60,
    rate: float = 5e-3,
    rank: int = 16,
    seed: int = 1,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    dropout: float = 0.0,
) -> Taught:
    """Train a new adapter on ``rows`` for ``steps`` steps of four rows, then ask. 0 steps: ask the base.

    Args:
        rank: of the LoRA matrices.
        schedule: of the learning rate, one of ``SCHEDULES``.
        weight_decay: AdamW's, a part of the weight that each step takes away, times the rate.
        dropout: part of the adapters' inputs that is set to zero at random, 0 or more and below 1.

    Returns:
        The mean loss of each step in nats a token, and the replies in the order of ``ask``.

    Raises:
        UserError: no rows, a row whose labels do not fit, more steps than an exercise should take.
    """
    job: dict[str, Any] = {"rows": [dict(row) for row in rows], "ask": [dict(one) for one in ask], "steps": steps}
    job |= {"rate": float(rate), "rank": rank, "seed": seed}
    job |= {"schedule": schedule, "weight_decay": float(weight_decay), "dropout": float(dropout)}
    _require(job)
    if "unsloth" not in sys.modules:
        return work(job)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.course.lab"], input=json.dumps(job), capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise UserError("The bench failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1])
    result: Taught = json.loads(done.stdout.splitlines()[-1])
    return result


def _require(job: Mapping[str, Any]) -> None:
    if not isinstance(job["steps"], int) or not 0 <= job["steps"] <= MOST_STEPS:
        raise UserError(f"steps has to be a whole number from 0 to {MOST_STEPS}, not {job['steps']!r}.")
    if not (math.isfinite(job["rate"]) and job["rate"] > 0):
        raise UserError(f"The learning rate has to be a number above 0, not {job['rate']!r}.")
    if not isinstance(job["rank"], int) or not 1 <= job["rank"] <= 128:
        raise UserError(f"The rank has to be a whole number from 1 to 128, not {job['rank']!r}.")
    if job["schedule"] not in SCHEDULES:
        raise UserError(f"A schedule is one of {', '.join(SCHEDULES)}, not {job['schedule']!r}.")
    if not (math.isfinite(job["weight_decay"]) and job["weight_decay"] >= 0):
        raise UserError(f"Weight decay has to be a number from 0 on, not {job['weight_decay']!r}.")
    if not 0 <= job["dropout"] < 1:
        raise UserError(f"Dropout has to be a number from 0 to below 1, not {job['dropout']!r}.")
    if job["steps"] and not job["rows"]:
        raise UserError("There are no rows to train on.")
    for number, row in enumerate(job["rows"]):
        ids, labels = row.get("input_ids"), row.get("labels")
        if not isinstance(ids, list) or not isinstance(labels, list) or len(ids) != len(labels):
            raise UserError(f"Row {number}: input_ids and labels have to be lists of the same length.")
        if any(label not in (-100, token) for token, label in zip(ids, labels, strict=True)):
            raise UserError(f"Row {number}: a label is −100 or the token itself.")
    if job["steps"] and not any(label != -100 for row in job["rows"] for label in row["labels"][1:]):
        raise UserError("No token of any row carries loss, so there is nothing to learn.")
    wrong = [one.get("mode") for one in job["ask"] if one.get("mode") not in MODES]
    if wrong:
        raise UserError(f"A question's mode is one of {', '.join(MODES)}, not {wrong[0]!r}.")


def work(job: Mapping[str, Any]) -> Taught:
    """``teach`` in this process."""
    import torch

    with without_warnings():
        from peft import LoraConfig, get_peft_model

        model, tokenizer = base()
    torch.manual_seed(job["seed"])
    loss: list[float] = []
    if job["steps"]:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=job["rank"],
            lora_alpha=2 * job["rank"],
            lora_dropout=job["dropout"],
            target_modules="all-linear",
        )
        adapted: Any = get_peft_model(copy.deepcopy(model), config)
        loss = _train(adapted, job)
        model = adapted.eval()
    return {"loss": loss, "replies": _ask(model, tokenizer, job["ask"])}


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """While PEFT is imported, torchao warns of libraries for GPUs that it does not find, with their paths."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@functools.cache
def base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shipped model with the weights that NF4 leaves of it, written out in float32: the same numbers, and faster on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import logging as messages

    folder = model_location(load_profile("embedded").model)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # it tells that it writes the weights out
    messages.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=nf4, device_map={"": "cpu"}
        )
        model = model.dequantize().float().eval()
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()
    return model, AutoTokenizer.from_pretrained(folder)


def _train(model: Any, job: Mapping[str, Any]) -> list[float]:
    """Mean loss of each step. The rate follows the schedule; gradients are clipped to norm 1."""
    import numpy as np
    import torch

    rows, steps = job["rows"], job["steps"]
    draw = np.random.default_rng(job["seed"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=job["rate"], weight_decay=job["weight_decay"])
    shape = SCHEDULES[job["schedule"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: shape(step / steps))
    losses = []
    model.train()
    for _ in range(steps):
        batch = [rows[int(i)] for i in draw.integers(0, len(rows), BATCH)]
        longest = max(len(row["input_ids"]) for row in batch)
        ids, mask, labels = (torch.full((len(batch), longest), fill) for fill in (0, 0, -100))
        for i, row in enumerate(batch):
            n = len(row["input_ids"])
            ids[i, :n], labels[i, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            mask[i, :n] = 1
        if not (labels[:, 1:] != -100).any():
            continue
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _ask(model: Any, tokenizer: Any, asked: Sequence[Mapping[str, Any]]) -> list[Answered]:
    form = ChatFormat(tokenizer)
    sampling = load_profile("embedded").evaluation.sampling
    found: list[Answered | None] = [None] * len(asked)
    for mode in MODES:
        places = [i for i, one in enumerate(asked) if one["mode"] == mode]
        if not places:
            continue
        own: Sampling = getattr(sampling, mode)
        prompts = []
        for i in places:
            written = asked[i].get("prompt")
            ids = tokenizer(written, add_special_tokens=False)["input_ids"] if written is not None else None
            prompts.append(ids if ids is not None else form.prompt_ids(list(asked[i]["messages"]), mode))
        for i, reply in zip(places, generate(model, tokenizer, prompts, own, batch_size=100, seed=1), strict=True):
            judged = judge(reply.text, reply.truncated, mode)
            answer = "" if reply.truncated else reply.text.rpartition("</think>")[2]
            messages = asked[i].get("messages") or [{"content": asked[i].get("prompt", "")}]
            found[i] = {
                "question": str(messages[-1]["content"]),
                "mode": mode,
                "text": reply.text,
                "right": bool(asked[i].get("answer")) and str(asked[i]["answer"]) in answer,
                "faithful": bool(judged["faithful"]),
            }
    return [one for one in found if one is not None]


if __name__ == "__main__":
    print(json.dumps(work(json.load(sys.stdin))))
