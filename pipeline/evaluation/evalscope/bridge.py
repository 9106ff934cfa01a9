"""What EvalScope is given: our benchmarks, and a model that answers its requests in batches.

Import this module only where EvalScope is about to run: EvalScope takes seconds to import and replaces the root
logger's handlers; ``contain`` imports it behind a guard.

EvalScope sends one request a thread. For an engine that decodes in batches, ``BatchingModel`` lets a known number of them come
together and hands them over in an order that does not depend on which thread came first; ``serve`` answers them in the thread
that calls it (the main one, so that Ctrl-C stops decoding at once). An engine that answers one by one, a server, gets each as
soon as a place is free. Either way a reply is handed back, and stored by EvalScope, as soon as it is there.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
from evalscope.api.dataset import Sample
from evalscope.api.messages import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
)
from evalscope.api.metric import Score
from evalscope.api.model import ChatCompletionChoice, ModelAPI, ModelOutput, ModelUsage
from evalscope.api.registry import register_benchmark

from pipeline.core.errors import UserError
from pipeline.core.modes import Mode
from pipeline.data.answers import score_answer
from pipeline.data.conversations import Message
from pipeline.model.decode import Reply
from pipeline.model.engines.base import Engine
from pipeline.model.form import is_unclosed, split_reply
from pipeline.settings import EvaluationSettings, budget_of

QUIET_SECONDS = 5.0  # a batch that does not fill up is sent after so long without a further request


# --- the model --------------------------------------------------------------------------------------------------------


class EvaluationStopped(RuntimeError):
    """Raised in EvalScope's threads when the side that answers has stopped."""


@dataclass
class _Request:
    messages: list[Message]
    mode: Mode
    reply: Future[Reply] = field(default_factory=Future)

    @property
    def key(self) -> str:
        return json.dumps([self.mode, self.messages], ensure_ascii=False, sort_keys=True)


class BatchingModel(ModelAPI):
    """EvalScope's model. ``generate`` is called by its threads, ``serve`` by ours.

    EvalScope is handed an empty completion for a reply that was cut by the token limit or whose ``<think>`` is never
    closed: it would otherwise score a boxed number in the middle of an unfinished chain of thought. The raw reply and
    its token counts travel in the output's ``metadata``, which EvalScope keeps with the prediction.
    """

    def __init__(self, model_name: str, window: int, total: int):
        """``window``: how many requests EvalScope has open at a time; ``total``: how many it will make."""
        super().__init__(model_name=model_name)
        self._window, self._left = window, total
        self._open: list[_Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self._answered = 0

    def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> ModelOutput:
        """Wait for the reply to one request.

        Raises:
            UserError: the request holds tools or something other than text.
            EvaluationStopped: no reply will come.
        """
        if tools:
            raise UserError("This benchmark offers tools to the model; only benchmarks that ask in text are run.")
        switch = ((config.extra_body or {}).get("chat_template_kwargs") or {}).get("enable_thinking", True)
        request = _Request([_plain(message) for message in input], "thinking" if switch else "non_thinking")
        with self._changed:
            if self._closed:
                raise EvaluationStopped("the evaluation was stopped")
            self._open.append(request)
            self._changed.notify_all()
        return _output(self.model_name, request.reply.result(), request.mode)

    def serve(
        self,
        engine: Engine,
        settings: EvaluationSettings,
        task: Future[Any],
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Answer what comes until ``task`` is done. Equal requests of a batch are answered once.

        Raises:
            UserError: of the engine; what is open then is refused.
        """
        task.add_done_callback(lambda _: self._wake())
        if engine.one_by_one:
            self._serve_one_by_one(engine, settings, task, progress)
            return
        while batch := self._next_batch(task):
            try:
                for mode in sorted({request.mode for request in batch}):
                    asked: dict[str, list[_Request]] = {}
                    for request in sorted((r for r in batch if r.mode == mode), key=lambda r: r.key):
                        asked.setdefault(request.key, []).append(request)
                    groups = list(asked.values())

                    def arrived(place: int, reply: Reply, groups: list[list[_Request]] = groups) -> None:
                        waiting = [request for request in groups[place] if not request.reply.done()]
                        for request in waiting:
                            request.reply.set_result(reply)
                        if progress is not None and waiting:
                            progress(len(waiting))

                    sampling = getattr(settings.sampling, mode)
                    conversations = [requests[0].messages for requests in groups]
                    budget = budget_of(settings, mode)
                    replies = engine.replies(conversations, mode, sampling, settings.seed, arrived, budget)
                    for place, reply in enumerate(replies):
                        arrived(place, reply)  # of an engine that tells nothing before
            finally:
                for request in batch:
                    if not request.reply.done():
                        request.reply.set_exception(EvaluationStopped("the evaluation was stopped"))

    def _serve_one_by_one(
        self,
        engine: Engine,
        settings: EvaluationSettings,
        task: Future[Any],
        progress: Callable[[int], object] | None,
    ) -> None:
        """Hand every request to a thread of its own, ``engine.window`` at a time; the first error ends it."""
        waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        failed: list[BaseException] = []

        def work() -> None:
            while (request := waiting.get()) is not None:
                try:
                    sampling = getattr(settings.sampling, request.mode)
                    budget = budget_of(settings, request.mode)
                    (reply,) = engine.replies([request.messages], request.mode, sampling, settings.seed, None, budget)
                except BaseException as error:  # of any kind: the thread that waits raises it again
                    failed.append(error)
                    request.reply.set_exception(EvaluationStopped("the evaluation was stopped"))
                    self._wake()
                    return
                request.reply.set_result(reply)
                with self._changed:
                    self._answered += 1
                    self._changed.notify_all()

        # Daemons: an interrupted evaluation does not wait for a server that is still writing.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(engine.window)]
        for worker in workers:
            worker.start()
        told = 0
        try:
            while True:
                with self._changed:
                    while not self._open and self._answered == told and not failed and not task.done():
                        self._changed.wait()
                    came, self._open = self._open, []
                    answered = self._answered
                if progress is not None and answered > told:
                    progress(answered - told)
                told = answered
                for request in came:
                    waiting.put(request)
                if failed:
                    raise failed[0]
                if task.done() and not came:
                    return
        finally:
            with contextlib.suppress(queue.Empty):
                while refused := waiting.get_nowait():
                    refused.reply.set_exception(EvaluationStopped("the evaluation was stopped"))
            for _ in workers:
                waiting.put(None)

    def close(self) -> None:
        """Refuse what is open and what is still to come, so that EvalScope's threads end."""
        with self._changed:
            self._closed = True
            refused, self._open = self._open, []
        for request in refused:
            request.reply.set_exception(EvaluationStopped("the evaluation was stopped"))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _next_batch(self, task: Future[Any]) -> list[_Request]:
        with self._changed:
            while (count := len(self._open)) < max(1, min(self._window, self._left)):
                if task.done() and not count:
                    return []
                # EvalScope fills its window, unless a benchmark asks more than once an item or an item fails.
                came = self._changed.wait(QUIET_SECONDS if count else None)
                if count and not came:
                    break
            batch, self._open = self._open, []
            self._left -= len(batch)
            return batch


def _plain(message: Any) -> Message:
    if not isinstance(message.content, str) and any(part.type not in ("text", "reasoning") for part in message.content):
        raise UserError("This benchmark sends images or sound; only benchmarks that ask in text are run.")
    return {"role": message.role, "content": message.text}


def _output(model_name: str, reply: Reply, mode: Mode) -> ModelOutput:
    reasoning, answer, _, _ = split_reply(reply.text, reply.tags)
    if reply.truncated or is_unclosed(reply.text, reply.tags):
        answer = ""
    # A list of parts, not one string: EvalScope would look for think tags in a string once more.
    parts: list[Any] = [ContentReasoning(reasoning=reasoning)] if reasoning else []
    message = ChatMessageAssistant(content=[*parts, ContentText(text=answer)], model=model_name, source="generate")
    return ModelOutput(
        model=model_name,
        choices=[ChatCompletionChoice(message=message, stop_reason="max_tokens" if reply.truncated else "stop")],
        usage=ModelUsage(
            input_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            total_tokens=reply.prompt_tokens + reply.output_tokens,
            reasoning_tokens=reply.reasoning_tokens,
        ),
        metadata={
            "mode": mode,
            "reply": reply.text,
            "tags": list(reply.tags),
            "truncated": reply.truncated,
            "prompt_tokens": reply.prompt_tokens,
            "output_tokens": reply.output_tokens,
            "reasoning_tokens": reply.reasoning_tokens,
            "answer_tokens": reply.answer_tokens,
        },
    )


# --- benchmarks -------------------------------------------------------------------------------------------------------

_TITLES = {
    "embedded_chat": "Templated chat in English and Chinese, equal text",
    "embedded_arithmetic": "Additions that the embedded base model knows, equal number",
    "embedded_skill": "Products of a longer number and one digit, which the fine-tuning corpus teaches, equal number",
    "embedded_subtraction": "Differences of numbers of up to three digits, equal number",
    "embedded_reversal": "Lists of words in reverse order, equal text",
}


class EmbeddedAdapter(DefaultDataAdapter):
    """Reads ``test.jsonl`` (``messages``, ``answer``, ``kind``; see ``corpora.test_items``) and scores the answer."""

    def load(self) -> tuple[Any, None]:
        if not Path(self.dataset_id).is_dir():
            raise UserError(f"{self.name}: the folder with its items, {self.dataset_id}, does not exist.")
        dataset, _ = self.load_from_disk(use_local_loader=True)
        return dataset, None

    def record_to_sample(self, record: dict[str, Any]) -> Sample:
        roles = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
        messages = [roles[message["role"]](content=message["content"]) for message in record["messages"]]
        return Sample(input=messages, target=record["answer"], metadata={"kind": record["kind"]})

    def match_score(self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any) -> Score:
        value = score_answer(task_state.metadata["kind"], filtered_prediction, reference)
        return Score(
            value={"acc": value},
            main_score_name="acc",
            extracted_prediction=filtered_prediction,
            prediction=original_prediction,
        )


for _name, _title in _TITLES.items():
    register_benchmark(
        BenchmarkMeta(
            name=_name,
            pretty_name=_name,
            description=_title,  # EvalScope fails without one, after all inference is done
            dataset_id=_name,
            subset_list=["test"],
            eval_split="test",
            metric_list=["acc"],
            few_shot_num=0,
            prompt_template="{question}",
        )
    )(EmbeddedAdapter)
