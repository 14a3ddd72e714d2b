"""Tokenizers of GGUF files as definitions of Hugging Face's tokenizers library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from compiler.errors import ModelError
from compiler.frontends.architecture import Tokenizer

# How byte-level tokenizers cut text before merging, by `tokenizer.ggml.pre`; llama.cpp keeps the
# same list.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {
    "gpt-2": _GPT2,
    "default": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _GPT2,
    "tekken": _LLAMA3,
}
_DIGITS = {"smollm"}  # every digit is a token of its own
_CONTROL, _USER = 3, 4  # token types of GGUF
_ENDS = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"}
# Some files of Gemma have these as the user's own tokens, which they are not.
_TURNS = {"<start_of_turn>", "<end_of_turn>"}
# Characters of a SentencePiece token, and of all: every way to cut each in two is tried.
LONGEST_PIECE, MOST_CHARACTERS = 512, 8 << 20


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file. Raises ModelError for kinds that are not
    supported."""
    tokens, kind = list(fields["tokenizer.ggml.tokens"]), fields["tokenizer.ggml.model"]
    types = list(fields.get("tokenizer.ggml.token_type", [1] * len(tokens)))
    unknown = fields.get("tokenizer.ggml.unknown_token_id", 0)
    if len(types) != len(tokens) or not 0 <= unknown < len(tokens):
        raise ModelError(
            f"its tokenizer has {len(tokens)} tokens, {len(types)} types of tokens, and {unknown} as unknown: "
            "convert the model again"
        )
    if kind == "gpt2":
        library = _byte_level(fields, tokens)
    elif kind == "llama":
        library = _sentencepiece(fields, tokens)
    else:
        raise ModelError(f"tokenizer '{kind}' is not supported; 'gpt2' and 'llama' are")
    special = [
        AddedToken(t, special=k == _CONTROL or t in _TURNS, normalized=False)
        for t, k in zip(tokens, types, strict=True)
        if k in (_CONTROL, _USER)
    ]
    library.add_tokens(special)
    library.add_special_tokens([t for t in special if t.special])
    ends = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")} - {None}
    ends |= {i for i, t in enumerate(tokens) if t in _ENDS}
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(
        definition=library.to_str(),
        begin=fields.get("tokenizer.ggml.bos_token_id"),
        ends=tuple(sorted(int(e) for e in ends if e is not None)),
        add_begin=bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        chat_template=template if isinstance(template, str) else None,
    )


def _byte_level(fields: Mapping[str, Any], tokens: list[str]) -> Library:
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _PATTERNS:
        raise ModelError(
            f"its tokenizer cuts text as '{pre}', which is not supported: {', '.join(_PATTERNS)} are"
        )
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"]]
    if any(len(pair) != 2 for pair in merges):
        raise ModelError(
            "its tokenizer has a merge that is not two tokens: convert the model again"
        )
    library = Library(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            merges,
            ignore_merges=pre in ("llama-bpe", "llama3", "tekken"),
        )
    )
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre in _DIGITS else []
    cuts.append(pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    library.decoder = decoders.ByteLevel()
    return library


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str]) -> Library:
    """SentencePiece's BPE: pairs merge in the order of the scores of what they make."""
    scores = list(fields["tokenizer.ggml.scores"])
    if len(scores) != len(tokens):
        raise ModelError(
            f"its tokenizer has {len(tokens)} tokens and {len(scores)} scores: convert the model again"
        )
    lengths = [len(token) for token in tokens]
    if max(lengths, default=0) > LONGEST_PIECE or sum(lengths) > MOST_CHARACTERS:
        raise ModelError(
            f"its tokenizer has a token of {max(lengths)} characters, and {sum(lengths)} in all; "
            f"{LONGEST_PIECE} and {MOST_CHARACTERS} are the most"
        )
    index = {t: i for i, t in enumerate(tokens)}
    pairs = []
    for token, rank in index.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in index and right in index:
                pairs.append((-scores[rank], index[left], index[right], (left, right)))
    merges = [pair for *_, pair in sorted(pairs)]
    library = Library(
        models.BPE(
            index,
            merges,
            unk_token=tokens[int(fields.get("tokenizer.ggml.unknown_token_id", 0))],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return library
