"""The embedded corpora: text that this project generates, in the columns of the public datasets they stand for.

In: a seed and a number of rows. Out: rows like FineTome's (``finetome_like``), rows like OpenMathReasoning's
(``openmath_like``), preference pairs (``preference_like``), questions with a known answer (``math_questions``),
dialogues to train the embedded base model on (``base_dialogue``), and held-out test items (``test_items``).

Three kinds of content, and two more skills:

* **chat**: templated small talk, facts, translation, memory over turns, system prompts; English and Chinese.
  The base model has learnt it, so that forgetting can be measured.
* **arithmetic**: addition up to three digits and the times table. The base model has learnt it too.
* **skill**: a number of two or three digits times one digit, written out as at school. The base model has *not* learnt
  it; it is what the fine-tuning corpus teaches.
* **subtraction**, written out with borrows, and **reversal** of a list of words: two more things that the base model has
  not learnt, for fine-tuning on several tasks at once (``data_recipes/multitask.yaml``).

Held-out items never occur in training, by construction: a hash of the item's key decides on which side it lies.
For chat the key is the whole prompt, and each question that can be asked alone; for arithmetic and skill it is the pair
of numbers, whatever the wording and, in a sum, the order; for a reversal it is the list of words, in whichever language.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.data.corpora.arithmetic import addition_steps as addition_steps
from pipeline.data.corpora.arithmetic import multiplication_steps as multiplication_steps
from pipeline.data.corpora.arithmetic import subtraction_steps as subtraction_steps
from pipeline.data.corpora.drawn import is_held_out as is_held_out
from pipeline.data.corpora.items import STORY as STORY
from pipeline.data.corpora.items import TEST_SETS as TEST_SETS
from pipeline.data.corpora.items import test_items as test_items
from pipeline.data.corpora.pairs import DEFECTS as DEFECTS
from pipeline.data.corpora.pairs import preference_like
from pipeline.data.corpora.questions import gold_chat, gold_sums, known_questions, math_questions
from pipeline.data.corpora.rows import base_dialogue as base_dialogue
from pipeline.data.corpora.rows import finetome_like, openmath_like, reversal_like, subtraction_like
from pipeline.data.corpora.words import WORDS as WORDS

GENERATORS: dict[str, Callable[[int, int], Iterator[dict[str, Any]]]] = {
    "subtraction_like": subtraction_like,
    "reversal_like": reversal_like,
    "finetome_like": finetome_like,
    "openmath_like": openmath_like,
    "preference_like": preference_like,
    "preference_like_held_out": functools.partial(preference_like, held_out=True),
    "math_questions": math_questions,
    "known_questions": known_questions,
    "gold_chat": gold_chat,
    "gold_sums": gold_sums,
}
