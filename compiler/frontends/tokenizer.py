"""Tokenizers of GGUF files as definitions of Hugging Face's tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from compiler.errors import ModelError
from compiler.frontends.architecture import Tokenizer

# How byte-level tokenizers cut text before merging, by `tokenizer.ggml.pre`; llama.cpp keeps the
# same list.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# OpenAI's o200k, as tiktoken has it.
_CASES = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASES[0]}*{_CASES[1]}+{_SHORT_FORMS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CASES[0]}+{_CASES[1]}*{_SHORT_FORMS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "gpt-4o": _GPT4O,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "refact": _GPT2,
    "starcoder": _GPT2,
    "command-r": _GPT2,
}
# Of these, every digit is a token of its own.
_SINGLE_DIGITS = {"smollm", "refact", "starcoder", "command-r"}
# These take a whole word as a token where there is one, without merging.
_WHOLE_WORDS = {"llama-bpe", "llama3", "tekken"}

# Types of tokens in GGUF.
_NORMAL = 1
_CONTROL = 3
_USER_DEFINED = 4
# Tokens that end a turn of a chat, whatever the metadata name as the end.
_ENDS = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"}
# Some files of Gemma have these as user-defined; as control tokens they stay out of answers.
_TURNS = {"<start_of_turn>", "<end_of_turn>"}

# SentencePiece marks the beginning of a word by this character.
_WORD_START = "▁"
# Every way to cut a token of SentencePiece in two is tried, so characters of a token, and of all
# tokens, are limited.
LONGEST_PIECE = 512
MOST_CHARACTERS = 8 << 20


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file. Raises ModelError for kinds that are not
    supported."""
    tokens = list(fields["tokenizer.ggml.tokens"])
    kind = fields["tokenizer.ggml.model"]
    types = list(fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens)))
    unknown = fields.get("tokenizer.ggml.unknown_token_id", 0)
    if len(types) != len(tokens) or not 0 <= unknown < len(tokens):
        raise ModelError(
            f"its tokenizer has {len(tokens)} tokens, {len(types)} types of tokens, "
            f"and {unknown} as unknown: convert the model again"
        )
    if kind == "gpt2":
        library = _byte_level(fields, tokens)
    elif kind == "llama":
        library = _sentencepiece(fields, tokens)
    else:
        raise ModelError(f"tokenizer '{kind}' is not supported; 'gpt2' and 'llama' are")
    _add_tokens(library, tokens, types)
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(
        definition=library.to_str(),
        begin=fields.get("tokenizer.ggml.bos_token_id"),
        ends=_ends(fields, tokens),
        # SentencePiece's models begin texts with a token of their own, unless the file says not.
        add_begin=bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        chat_template=template if isinstance(template, str) else None,
    )


def _add_tokens(library: Library, tokens: Iterable[str], types: Iterable[int]) -> None:
    """Tell the library which tokens are found in texts before anything is cut or merged."""
    added = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            is_special = kind == _CONTROL or token in _TURNS
            added.append(AddedToken(token, special=is_special, normalized=False))
    library.add_tokens(added)
    library.add_special_tokens([token for token in added if token.special])


def _ends(fields: Mapping[str, Any], tokens: Iterable[str]) -> tuple[int, ...]:
    """The tokens that end an answer."""
    named = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = {int(token) for token in named if token is not None}
    ends |= {index for index, token in enumerate(tokens) if token in _ENDS}
    return tuple(sorted(ends))


def _byte_level(fields: Mapping[str, Any], tokens: Iterable[str]) -> Library:
    """GPT-2's kind: text is cut by a pattern, and pairs of bytes merge in the order of a list."""
    pattern = fields.get("tokenizer.ggml.pre", "default")
    if pattern not in _PATTERNS:
        raise ModelError(
            f"its tokenizer cuts text as '{pattern}', which is not supported: "
            f"{', '.join(_PATTERNS)} are"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    if any(len(pair) != 2 for pair in merges):
        raise ModelError(
            "its tokenizer has a merge that is not two tokens: convert the model again"
        )
    numbers = {token: index for index, token in enumerate(tokens)}
    library = Library(models.BPE(numbers, merges, ignore_merges=pattern in _WHOLE_WORDS))
    cuts: list[Any] = []
    if pattern in _SINGLE_DIGITS:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    cuts.append(pre_tokenizers.Split(Regex(_PATTERNS[pattern]), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    library.decoder = decoders.ByteLevel()
    return library


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str]) -> Library:
    """SentencePiece's BPE: pairs merge in the order of the scores of what they make."""
    scores = list(fields["tokenizer.ggml.scores"])
    _check_pieces(tokens, scores)
    library = Library(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            _merges(tokens, scores),
            unk_token=tokens[int(fields.get("tokenizer.ggml.unknown_token_id", 0))],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    # Most models put a space in front of a text, so that its first word is like any other.
    has_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    to_pieces: list[Any] = [normalizers.Replace(" ", _WORD_START)]
    to_text: list[Any] = [
        decoders.Replace(_WORD_START, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if has_prefix:
        to_pieces.insert(0, normalizers.Prepend(_WORD_START))
        to_text.append(decoders.Strip(" ", 1, 0))
    library.normalizer = normalizers.Sequence(to_pieces)
    library.decoder = decoders.Sequence(to_text)
    return library


def _check_pieces(tokens: Sequence[str], scores: Sequence[float]) -> None:
    if len(scores) != len(tokens):
        raise ModelError(
            f"its tokenizer has {len(tokens)} tokens and {len(scores)} scores: "
            "convert the model again"
        )
    lengths = [len(token) for token in tokens]
    longest = max(lengths, default=0)
    total = sum(lengths)
    if longest > LONGEST_PIECE or total > MOST_CHARACTERS:
        raise ModelError(
            f"its tokenizer has a token of {longest} characters, and {total} in all; "
            f"{LONGEST_PIECE} and {MOST_CHARACTERS} are the most"
        )


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, best score of the result first."""
    numbers = {token: index for index, token in enumerate(tokens)}
    ranked = []
    for token, number in numbers.items():
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in numbers and right in numbers:
                # Of equal scores, the pair of lower numbers comes first.
                rank = (-scores[number], numbers[left], numbers[right])
                ranked.append((rank, (left, right)))
    ranked.sort()
    return [pair for _, pair in ranked]
