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


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file. Raises ModelError for kinds that are not
    supported."""
    tokens, kind = list(fields["tokenizer.ggml.tokens"]), fields["tokenizer.ggml.model"]
    types = list(fields.get("tokenizer.ggml.token_type", [1] * len(tokens)))
    if kind == "gpt2":
        library = _byte_level(fields, tokens)
    elif kind == "llama":
        library = _sentencepiece(fields, tokens)
    else:
        raise ModelError(f"tokenizer '{kind}' is not supported; 'gpt2' and 'llama' are")
    special = [
        AddedToken(t, special=k == _CONTROL, normalized=False)
        for t, k in zip(tokens, types, strict=True)
        if k in (_CONTROL, _USER)
    ]
    library.add_tokens(special)
    library.add_special_tokens([t for t in special if t.special])
    ends = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")} - {None}
    ends |= {
        i
        for i, t in enumerate(tokens)
        if t in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>")
    }
    return Tokenizer(
        definition=library.to_str(),
        begin=fields.get("tokenizer.ggml.bos_token_id"),
        ends=tuple(sorted(int(e) for e in ends if e is not None)),
        add_begin=bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        chat_template=fields.get("tokenizer.chat_template"),
    )


def _byte_level(fields: Mapping[str, Any], tokens: list[str]) -> Library:
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _PATTERNS:
        raise ModelError(
            f"its tokenizer cuts text as '{pre}', which is not supported: {', '.join(_PATTERNS)} are"
        )
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"]]
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
