"""Each target through the engine that its users have: transformers for folders, llama.cpp's server for GGUF.

In: conversations and a mode. Out: the prompt that the engine builds from them, by the template and tokenizer that were exported,
and greedy replies with the log-probability of every token.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pipeline.core.errors import UserError
from pipeline.core.modes import CLOSE, OPEN, Mode
from pipeline.data.conversations import Message
from pipeline.model.decode import Reply, end_tokens, inference_mode_of
from pipeline.model.decoders import decoders
from pipeline.settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REQUEST_SECONDS = 600.0


@dataclass(frozen=True)
class Answer:
    """A greedy reply, and the log-probability (natural) of each of its tokens before any sampling."""

    reply: Reply
    log_probs: Sequence[float | None]  # one a token of reply.token_ids; None where the engine does not say


class ExportEngine(Protocol):
    """What runs a target."""

    def prompt(self, messages: Sequence[Message], mode: Mode) -> tuple[str, list[int]]:
        """The prompt that it builds, as text and as tokens."""
        ...

    def answers(self, conversations: Sequence[Sequence[Message]], mode: Mode, sampling: Sampling) -> list[Answer]:
        """Greedy replies, in order."""
        ...

    def ends(self) -> list[int]:
        """Tokens that end a reply here."""
        ...


# --- transformers -------------------------------------------------------------------------------------------------------


class Transformers:
    """A loaded model with the tokenizer of its folder."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, workers: int):
        self.model, self.tokenizer, self.batch_size, self.workers = model, tokenizer, batch_size, workers

    def prompt(self, messages: Sequence[Message], mode: Mode) -> tuple[str, list[int]]:
        text = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, enable_thinking=mode == "thinking"
        )
        return str(text), list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(self, conversations: Sequence[Sequence[Message]], mode: Mode, sampling: Sampling) -> list[Answer]:
        prompts = [self.prompt(messages, mode)[1] for messages in conversations]
        with decoders(self.model, self.tokenizer, self.workers) as decoding:
            replies = decoding.generate(prompts, sampling, self.batch_size, 0)
        ids = [reply.token_ids for reply in replies]
        log_probs = token_log_probs(self.model, prompts, ids, self.batch_size)
        return [Answer(*pair) for pair in zip(replies, log_probs, strict=True)]

    def ends(self) -> list[int]:
        return end_tokens(self.model, self.tokenizer)


def token_log_probs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], batch_size: int
) -> list[list[float]]:
    """Log-probability of every token of each reply, given its prompt and what stands before it in the reply."""
    import torch

    found: list[list[float]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(replies[i]))
    with inference_mode_of(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [[*prompts[i], *replies[i]] for i in batch]
            ids = torch.zeros(
                len(rows), max(map(len, rows)), dtype=torch.long
            )  # what stands behind a row is not seen by it
            for place, row in enumerate(rows):
                ids[place, : len(row)] = torch.tensor(row)
            mask = (torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]).long()
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for place, i in enumerate(batch):
                first, last = len(prompts[i]), len(rows[place])
                wanted = ids[place, first:last].to(logits.device)
                table = torch.log_softmax(logits[place, first - 1 : last - 1].float(), dim=-1)
                found[i] = table.gather(1, wanted[:, None])[:, 0].tolist()
    return found


# --- llama.cpp ----------------------------------------------------------------------------------------------------------


class LlamaCpp:
    """A server of llama.cpp with one GGUF file; the prompts are those of the template inside the file.

    Args:
        address: ``http://HOST:PORT``. tokenizer: of the run, only to know think tags by their token.
    """

    def __init__(self, address: str, tokenizer: PreTrainedTokenizerBase, parallel: int):
        parts = urlsplit(address)
        assert parts.hostname and parts.port
        self.host, self.port = parts.hostname, parts.port
        self.tokenizer, self.parallel = tokenizer, parallel
        self._ends: list[int] | None = None

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST ``body``, or GET; the answer as plain data.

        Raises:
            UserError: no answer, or an error, with the server's words.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=REQUEST_SECONDS)
        try:
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"llama.cpp's server gives no answer to {path} ({type(error).__name__}).") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise UserError(f"llama.cpp's server refuses {path} ({answer.status}): {' '.join(said.split())[:300]}")
        return json.loads(said)

    def prompt(self, messages: Sequence[Message], mode: Mode) -> tuple[str, list[int]]:
        text = self.call("/apply-template", _request(messages, mode))["prompt"]
        return text, self.call("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def answers(self, conversations: Sequence[Sequence[Message]], mode: Mode, sampling: Sampling) -> list[Answer]:
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda messages: self._answer(messages, mode, sampling), conversations))

    def _answer(self, messages: Sequence[Message], mode: Mode, sampling: Sampling) -> Answer:
        """A reply to the prompt that the server's own template makes.

        By ``/completion``, as a chat answer does not say all of its tokens: the list with probabilities, which is all that it
        has, leaves out every token that ends within a character.
        """
        prompt = self.call("/apply-template", _request(messages, mode))["prompt"]
        body = {
            "prompt": prompt,
            "n_predict": sampling.max_new_tokens,
            "temperature": 0,
            "n_probs": 1,
            "return_tokens": True,
        }
        # Not from the cache of the slot: its numbers depend on what was asked before.
        answer = self.call("/completion", body | {"cache_prompt": False})
        ids = list(answer["tokens"])
        if len(ids) != answer["tokens_predicted"]:
            raise UserError(
                f"llama.cpp's server wrote {answer['tokens_predicted']} tokens and sends {len(ids)}; is xllamacpp the wanted "
                "version?"
            )
        truncated = answer["stop_type"] == "limit"
        content = ids if truncated or ids[-1] not in self.ends() else ids[:-1]
        text = str(self.tokenizer.decode(content, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        close = self.tokenizer.convert_tokens_to_ids(CLOSE)
        unclosed = len(content) if text.lstrip().startswith(OPEN) else 0
        reasoning = content.index(close) + 1 if close in content else unclosed
        reply = Reply(
            text=text,
            token_ids=ids,
            prompt_tokens=answer["tokens_evaluated"],
            output_tokens=len(ids),
            reasoning_tokens=reasoning,
            answer_tokens=len(content) - reasoning,
            truncated=truncated,
        )
        return Answer(reply, aligned(ids, answer["completion_probabilities"]))

    def ends(self) -> list[int]:
        """What the file names as its end token."""
        if self._ends is None:
            self._ends = list(self.tokenizer.convert_tokens_to_ids([self.call("/props")["eos_token"]]))
        return self._ends


def aligned(ids: Sequence[int], known: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The log-probability of each token, None where the server leaves it out: its list is in order, with gaps."""
    left = list(known)
    return [left.pop(0)["logprob"] if left and left[0]["id"] == token else None for token in ids]


def _request(messages: Sequence[Message], mode: Mode) -> dict[str, Any]:
    return {"messages": list(messages), "chat_template_kwargs": {"enable_thinking": mode == "thinking"}}
