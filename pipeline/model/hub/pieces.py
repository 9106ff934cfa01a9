"""The tokenizer inside a GGUF file, rebuilt from its pieces.

Two kinds are stored there. *Byte-level BPE* (``gpt2``) has its merges in the file, and the name of the way in which text is cut
before merges. *SentencePiece* (``llama``) has a score for every piece: of all pairs of neighbours, the one whose union scores
best is merged first. The same order comes from a list of merges, sorted by the score of what they make.

A rebuilt tokenizer can be wrong without any error, and still turn its tokens back into the text. So it is compared with
llama.cpp's own, or with encodings that are known, before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.model.hub.known import SpecialTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces in a GGUF file
BLANK = "▁"  # stands for a blank in SentencePiece's pieces
# How text is cut before merges: llama.cpp's name → the expression of Qwen's and Llama 3's own tokenizers.
SPLITS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
WHOLE_WORDS = {"llama-bpe"}  # a word that is a piece is taken as it is, whatever the merges say; a text begins with bos
DIGITS_ALONE = {"smollm", "starcoder", "command-r"}  # GPT-2's way, each digit by itself
GPT2 = "gpt-2"


def opened(path: Path) -> Any:
    """A ``gguf.GGUFReader``, its tensors mapped and not yet read.

    Raises:
        UserError: it is no GGUF file, or is cut short.
    """
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path} is no whole GGUF file: {' '.join(str(error).split())[:200]}.") from error


def value(reader: Any, key: str, default: Any = None) -> Any:
    """A metadata value of the file."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def tokenizer(reader: Any, tokens: SpecialTokens | None = None) -> PreTrainedTokenizerBase:
    """The file's tokenizer with its chat template.

    Args:
        tokens: what the file's own numbers say wrongly; None: take those.

    Raises:
        UserError: its kind is not known, or its pieces and merges do not match.
    """
    from transformers import PreTrainedTokenizerFast

    pieces: list[str] = value(reader, "tokenizer.ggml.tokens")

    def piece(name: str) -> str | None:
        number = value(reader, f"tokenizer.ggml.{name}_token_id")
        return None if number is None else pieces[number]

    own = {"bos": piece("bos"), "eos": piece("eos"), "pad": piece("padding"), "unk": piece("unknown")}
    special = tokens.model_dump() if tokens else own
    found = PreTrainedTokenizerFast(
        tokenizer_object=_rebuilt(reader),
        **{f"{name}_token": token for name, token in special.items() if token is not None},
        model_max_length=value(reader, f"{value(reader, 'general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,  # it would eat blanks
    )
    found.chat_template = value(reader, "tokenizer.chat_template")
    return found


def _rebuilt(reader: Any) -> Tokenizer:
    from tokenizers import AddedToken

    kind = value(reader, "tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"The GGUF file's tokenizer is of the kind {kind!r}; byte-level BPE ('gpt2') and SentencePiece ('llama') can be "
            "rebuilt here."
        )
    made = _byte_level(reader) if kind == "gpt2" else _sentencepiece(reader)
    pieces, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    made.add_tokens(
        [
            AddedToken(piece, special=kind == CONTROL, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    _ends(made, reader, pieces)
    return made


def _byte_level(reader: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    pieces = value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in value(reader, "tokenizer.ggml.merges")]
    known = set(pieces)
    if missing := next((merge for merge in merges if "".join(merge) not in known), None):
        raise UserError(f"The GGUF file's pieces do not match its merges: {''.join(missing)!r} is no piece.")
    cut = value(reader, "tokenizer.ggml.pre", "")
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut in WHOLE_WORDS))
    made.pre_tokenizer = _pre_tokenizer(cut)
    made.decoder = decoders.ByteLevel()
    return made


def _pre_tokenizer(cut: str) -> Any:
    """How text is cut before merges, by llama.cpp's name for it."""
    from tokenizers import Regex, pre_tokenizers

    if cut in SPLITS:
        steps = [
            pre_tokenizers.Split(Regex(SPLITS[cut]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif cut in DIGITS_ALONE or cut == GPT2:
        steps = [pre_tokenizers.Digits(individual_digits=True)] if cut in DIGITS_ALONE else []
        steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        known = ", ".join(sorted({GPT2, *DIGITS_ALONE, *SPLITS}))
        raise UserError(f"The GGUF file's tokenizer cuts text in the way {cut!r}; what can be rebuilt here: {known}.")
    return pre_tokenizers.Sequence(steps)


def _sentencepiece(reader: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    scores = value(reader, "tokenizer.ggml.scores")
    normal = {piece: score for piece, score, kind in zip(pieces, scores, kinds, strict=True) if kind == NORMAL}
    merges = sorted(
        (-score, vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece, cut)
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    unknown = value(reader, "tokenizer.ggml.unknown_token_id", kinds.index(UNKNOWN) if UNKNOWN in kinds else None)
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(piece[:cut], piece[cut:]) for *_, piece, cut in merges],
            unk_token=None if unknown is None else pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    blanks = normalizers.Replace(" ", BLANK)
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if value(reader, "tokenizer.ggml.add_space_prefix", True):
        made.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), blanks])
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        made.normalizer = blanks
    made.decoder = decoders.Sequence(steps)
    return made


def _ends(made: Tokenizer, reader: Any, pieces: list[str]) -> None:
    """What is put before and behind a text, unless the caller wants neither (``add_special_tokens``)."""
    from tokenizers import processors

    begins = value(reader, "tokenizer.ggml.model") == "llama" or value(reader, "tokenizer.ggml.pre") in WHOLE_WORDS
    around = {
        name: value(reader, f"tokenizer.ggml.{name}_token_id")
        for name, default in (("bos", begins), ("eos", False))
        if value(reader, f"tokenizer.ggml.add_{name}_token", default)
    }
    tokens = {name: (pieces[number], number) for name, number in around.items() if number is not None}
    if not tokens:
        return
    before, behind = ([tokens[name][0]] if name in tokens else [] for name in ("bos", "eos"))
    made.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B:1", *behind],
        special_tokens=list(tokens.values()),
    )
