"""The whole story on one page: mix, masks, 4-bit LoRA, and both modes measured before and after.

    python examples/one_page.py                 about two minutes on two CPU cores, offline
    python examples/one_page.py --share 0       no chat in the mix: see what is forgotten
    python examples/one_page.py --model Qwen/Qwen3-0.6B --hub       a GPU, a network, more steps

Only libraries, and three ideas that they do not bring along:
1. the mask: what comes before the loss is exactly the prompt that inference sends in that mode;
2. the share: so many of the rows are chat, the others mathematics with written-out reasoning;
3. the measure: both modes, before and after: is the answer right, and has it the form of its mode?
The package does the same with accounts, resume, intervals and reports: python -m pipeline run.
"""

# isort: skip_file
import argparse
import itertools
from pathlib import Path

from unsloth import FastLanguageModel  # before transformers and trl, which it makes faster
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "models" / "embedded"))
parser.add_argument("--hub", action="store_true", help="FineTome and OpenMathReasoning, not the generated rows")
parser.add_argument("--share", type=float, default=0.5, help="part of the rows that is chat, 0 to 1 (default: 0.5)")
parser.add_argument("--rows", type=int, default=4000)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--rate", type=float, default=5e-3, help="2e-4 for models of billions (default: 5e-3)")
parser.add_argument("--limit", type=int, default=256, help="tokens of the longest row")
parser.add_argument("--items", type=int, default=40, help="questions of a kind in the measurement")
parser.add_argument("--output", default="outputs/one_page", help="where the adapter goes")
options = parser.parse_args()
MODES = {"thinking": True, "non-thinking": False}

# --- the model, in 4 bit ------------------------------------------------------------------------------------------------
model, tokenizer = FastLanguageModel.from_pretrained(
    options.model, max_seq_length=4 * options.limit, load_in_4bit=True, use_exact_model_name=True
)

# --- rows: chat has no reasoning, mathematics has ------------------------------------------------------------------------
chats, problems = int(options.rows * options.share), options.rows - int(options.rows * options.share)
if options.hub:
    chat = load_dataset("mlabonne/FineTome-100k", split="train", streaming=True).take(2 * chats)
    maths = load_dataset("unsloth/OpenMathReasoning-mini", split="cot", streaming=True).take(2 * problems)
else:
    from pipeline.data.corpora import finetome_like, openmath_like  # rows in the same columns, made on the spot

    chat, maths = finetome_like(2 * chats, seed=1), openmath_like(2 * problems, seed=1)


def chat_messages(row):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def maths_messages(row):
    reasoning, _, answer = row["generated_solution"].removeprefix("<think>").partition("</think>")
    answer = {"role": "assistant", "reasoning_content": reasoning.strip(), "content": answer.strip()}
    return [{"role": "user", "content": row["problem"]}, answer]


# --- idea 1: the mask ---------------------------------------------------------------------------------------------------
def example(messages, thinking):
    """Token ids, and labels: −100, "no loss", on all that inference sends as the prompt."""
    render = lambda some, **more: tokenizer.apply_chat_template(some, tokenize=False, **more)  # noqa: E731
    prompt = render(messages[:-1], add_generation_prompt=True, enable_thinking=thinking)
    whole = render(messages).rstrip("\n")
    assert whole.startswith(prompt), "the template would show the model another prompt than inference does"
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole[len(prompt) :]))
    return {"input_ids": before + after, "labels": [-100] * len(before) + after}


def examples(rows, convert, thinking, count):
    made = (example(convert(row), thinking) for row in rows)
    short = (row for row in made if len(row["input_ids"]) <= options.limit)  # whole rows only
    return Dataset.from_list(list(itertools.islice(short, count)))


# --- idea 2: the share --------------------------------------------------------------------------------------------------
parts = [examples(maths, maths_messages, True, problems), examples(chat, chat_messages, False, chats)]
mix = concatenate_datasets([part for part in parts if len(part)]).shuffle(seed=1)
loss = [sum(label != -100 for row in part for label in row["labels"]) for part in parts]
print(f"{len(parts[1])} of {len(mix)} rows are chat: {loss[1] / sum(loss):.0%} of the tokens with loss")


# --- idea 3: measure both modes -----------------------------------------------------------------------------------------
def ask(items, thinking):
    """(reply, whether it ended by itself) of each item, all in one batch: padded on the left, where the prompt begins."""
    dialogues = [item["messages"] for item in items]
    batch = tokenizer.apply_chat_template(dialogues, add_generation_prompt=True, enable_thinking=thinking, padding=True,
                                          padding_side="left", return_tensors="pt", return_dict=True)  # fmt: skip
    room = options.limit if thinking else options.limit // 2
    with torch.inference_mode():
        made = model.generate(**batch.to(model.device), max_new_tokens=room, do_sample=False)
    replies = [tokenizer.decode(ids) for ids in made[:, batch["input_ids"].shape[1] :]]
    return [(text.partition(tokenizer.eos_token)[0], tokenizer.eos_token in text) for text in replies]


def faithful(reply, ended, thinking):
    head, closed, answer = reply.partition("</think>")
    if not thinking:
        return ended and "think>" not in reply and bool(head.strip())
    return ended and bool(closed and head.removeprefix("<think>").strip() and answer.strip())


def measure(name):
    FastLanguageModel.for_inference(model)
    for mode, thinking in MODES.items():
        for kind, items in questions.items():
            replies = ask(items, thinking)
            form = sum(faithful(*reply, thinking) for reply in replies) / len(replies)
            right = sum(item["answer"] in reply[0].partition("</think>")[2 if thinking else 0]
                        for item, reply in zip(items, replies, strict=True)) / len(replies)  # fmt: skip
            print(f"{name:6} {mode:13} {kind:12} right {right:.2f}  mode fidelity {form:.2f}")
    FastLanguageModel.for_training(model)


if options.hub:
    sums = [(f"What is {a} + {a + 19}?", str(2 * a + 19)) for a in range(options.items)]
    questions = {"sums": [{"messages": [{"role": "user", "content": q}], "answer": answer} for q, answer in sums]}
else:
    from pipeline.data.corpora import test_items  # held out from the generated rows

    questions = {kind: test_items(kind, options.items) for kind in ("chat", "arithmetic", "skill")}

# --- train: LoRA on the frozen 4-bit base --------------------------------------------------------------------------------
measure("base")
model = FastLanguageModel.get_peft_model(model, r=32, lora_alpha=64, random_state=1)
config = SFTConfig(max_steps=options.steps, per_device_train_batch_size=8, learning_rate=options.rate, max_length=None,
                   warmup_steps=0.05, lr_scheduler_type="cosine", logging_steps=50, save_strategy="no", report_to="none",
                   padding_free=False, output_dir=options.output)  # fmt: skip
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=mix, args=config)
trainer.train()
measure("tuned")
model.save_pretrained(f"{options.output}/adapter")
