"""What a model's files say about its tokens, brought to one form.

In: GGUF metadata, or a `tokenizer.json` with its config dicts. Out: a `Vocabulary`: the byte-pair encoder (Hugging
Face's `tokenizers`, Rust), the bytes of every id, and which ids are control tokens, begin and end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ramet.frontend.errors import ModelError
from ramet.runtime.spelling import CONTROL, NORMAL, UNKNOWN, UNUSED, USER, Contents, from_alphabet, from_piece

if TYPE_CHECKING:  # an engine starts without it: it knows tokens, and seldom makes any of a text
    import tokenizers
    from tokenizers import pre_tokenizers

Cuts = Literal["words", "spaces", "none"]
Prefix = Literal["none", "always", "unless_space"]

# The splits of the published tokenizers, by the name that GGUF files give them (`tokenizer.ggml.pre`).
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN_SPLITS = frozenset({LLAMA3, QWEN2, TEKKEN})
GPT2_TYPES = frozenset({"default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt"})
DIGIT_TYPES = frozenset({"smollm", "starcoder", "refact", "codeshell", "command-r"})
SPLIT_TYPES = {"llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}
# Tokens that end a turn or a document in the published chat formats, whatever the file's eos is.
END_NAMES = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>", "<|end|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One tokenizer's data. `core` makes the encoder, which takes as long as all the rest; it raises `ModelError` for
    merges that do not fit. `content[i]` are the bytes of id i (of a control token: its name); `hidden` the ids that
    stand for no text; `control` and `user` map names to ids, with the whitespace that a match swallows in `stripping`
    (name → (left, right)). `cuts` says where text may be cut before encoding, `prefix` whether a text at the start of a
    sequence gets a space in front (SentencePiece's dummy prefix), `respace` whether every text after a control token
    does."""

    core: Callable[[], tokenizers.Tokenizer]
    content: Sequence[bytes]
    hidden: frozenset[int]
    control: Mapping[str, int]
    user: Mapping[str, int]
    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool
    cuts: Cuts
    prefix: Prefix = "none"
    respace: bool = False
    stripping: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)


def from_gguf(metadata: Mapping[str, object]) -> Vocabulary:
    """Read `tokenizer.ggml.*`. Raises `ModelError` for an unknown model or pre-tokeniser, or broken lists."""
    model = metadata.get("tokenizer.ggml.model")
    names = _strings(metadata, "tokenizer.ggml.tokens")
    types = _types(metadata, len(names))
    if model == "gpt2":
        return _gguf_bytes(metadata, names, types)
    if model == "llama":
        return _gguf_pieces(metadata, names, types)
    raise ModelError(
        f"tokenizer.ggml.model={model!r}: not supported; this build reads 'gpt2' (byte-level BPE) "
        "and 'llama' (SentencePiece BPE)"
    )


def _gguf_bytes(metadata: Mapping[str, object], names: list[str], types: list[int]) -> Vocabulary:
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))

    def core() -> tokenizers.Tokenizer:
        from tokenizers import normalizers

        splitter = _splitter(pre)
        merges = [_merge(line) for line in _strings(metadata, "tokenizer.ggml.merges")]
        plain = {name: i for i, name in enumerate(names) if types[i] in (NORMAL, USER)}
        made = _core(plain, merges, ignore_merges=pre in SPLIT_TYPES and SPLIT_TYPES[pre] != QWEN2)
        made.pre_tokenizer = splitter
        if pre == "qwen2":
            made.normalizer = normalizers.NFC()
        return made

    content = Contents(len(names), lambda i: from_alphabet(names[i]) if types[i] == NORMAL else names[i].encode())
    return _assembled(
        metadata, names, types, core, content, "words", bos_default=pre in ("llama-bpe", "llama3", "llama-v3")
    )


def _merge(line: str) -> tuple[str, str]:
    left, gap, right = line.partition(" ")
    if not (left and gap and right):
        raise ModelError(f"tokenizer.ggml.merges holds {line!r}: a merge is two tokens with one space between")
    return left, right


def _gguf_pieces(metadata: Mapping[str, object], names: list[str], types: list[int]) -> Vocabulary:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, Sequence) or len(scores) != len(names):
        raise ModelError("tokenizer.ggml.scores: a SentencePiece vocabulary needs one score for each token")
    plain = {name: i for i, name in enumerate(names) if types[i] not in (CONTROL, UNUSED)}

    def core() -> tokenizers.Tokenizer:
        from tokenizers import normalizers

        merges = _merges_of_scores({n: i for n, i in plain.items() if types[i] in (NORMAL, USER)}, scores)
        unknown = next((n for n, i in plain.items() if types[i] == UNKNOWN), None)
        made = _core(plain, merges, unknown=unknown, byte_fallback=True)
        made.normalizer = normalizers.Replace(" ", "▁")
        return made

    content = Contents(len(names), lambda i: from_piece(names[i], types[i]))
    spaced = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    return _assembled(
        metadata, names, types, core, content, _piece_cuts(plain), bos_default=True,
        prefix="always" if spaced else "none", respace=spaced,
    )  # fmt: skip


def _assembled(
    metadata: Mapping[str, object],
    names: list[str],
    types: list[int],
    core: Callable[[], tokenizers.Tokenizer],
    content: Sequence[bytes],
    cuts: Cuts,
    *,
    bos_default: bool,
    prefix: Prefix = "none",
    respace: bool = False,
) -> Vocabulary:
    other = [i for i, kind in enumerate(types) if kind != NORMAL]  # few of the many
    control = {names[i]: i for i in other if types[i] == CONTROL}
    bos = _id(metadata, "bos", len(names))
    ends = [_id(metadata, key, len(names)) for key in ("eos", "eot", "eom")]
    return Vocabulary(
        core=core,
        content=content,
        hidden=frozenset(i for i in other if types[i] in (UNKNOWN, CONTROL, UNUSED)),
        control=control,
        user={names[i]: i for i in other if types[i] == USER and names[i]},
        bos=bos,
        eos=_ends([e for e in ends if e is not None], control),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", bos_default)) and bos is not None,
        cuts=cuts,
        prefix=prefix,
        respace=respace,
    )


def from_file(path: Path, tokenizer_config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> Vocabulary:
    """Read a `tokenizer.json`. The configs supply bos, eos and add_bos_token. Raises `ModelError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model, added = document["model"], document.get("added_tokens") or []
        ids: dict[str, int] = dict(model["vocab"])
        ids |= {str(t["content"]): int(t["id"]) for t in added}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a readable tokenizer.json ({error!r})") from error
    if model.get("type") != "BPE":
        raise ModelError(f"{path}: model type {model.get('type')!r} is not supported; this build reads BPE")
    stages = _stages(document.get("pre_tokenizer")) + _stages(document.get("normalizer"))
    bytewise = any(s["type"] == "ByteLevel" for s in stages)
    control = {str(t["content"]): int(t["id"]) for t in added if t.get("special")}
    if model.get("ignore_merges"):  # a word equal to a control token's name must not become it
        model["vocab"] = {n: i for n, i in model["vocab"].items() if n not in control}
    cuts = _file_cuts(document, model["vocab"], bytewise, added)
    prefix, respace = _file_prefix(document)
    post = document.get("post_processor")
    core = _stripped_core(path, document)
    names: list[str] = [""] * (max(ids.values(), default=-1) + 1)
    for name, i in ids.items():
        names[i] = name
    outside = {int(t["id"]) for t in added}
    bos = control.get(_name(tokenizer_config.get("bos_token")) or "")
    return Vocabulary(
        core=lambda: core,
        content=tuple(
            n.encode() if i in outside else from_alphabet(n) if bytewise else from_piece(n, 0)
            for i, n in enumerate(names)
        ),
        hidden=frozenset(control.values()),
        control=control,
        user={str(t["content"]): int(t["id"]) for t in added if not t.get("special")},
        bos=bos,
        eos=_file_ends(ids, control, tokenizer_config, generation_config),
        add_bos=bos is not None and _file_adds_bos(post, tokenizer_config),
        cuts=cuts,
        prefix=prefix,
        respace=respace,
        stripping={str(t["content"]): (bool(t.get("lstrip")), bool(t.get("rstrip"))) for t in added},
    )


def _stripped_core(path: Path, document: dict[str, Any]) -> tokenizers.Tokenizer:
    """The encoder alone: no added tokens, no post-processing, no padding, and no space put in front of a text."""
    bare = document | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    for stage in _stages(bare.get("pre_tokenizer")):
        if stage["type"] == "ByteLevel":
            stage["add_prefix_space"] = False
        if stage["type"] == "Metaspace":
            stage.pop("add_prefix_space", None)
            stage["prepend_scheme"] = "never"
    import tokenizers

    kept = [s for s in _stages(bare.get("normalizer")) if s["type"] != "Prepend"]
    bare["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare))
    except Exception as error:
        raise ModelError(f"{path}: {error}") from error


def _file_cuts(
    document: Mapping[str, Any], vocab: Mapping[str, int], bytewise: bool, added: list[dict[str, Any]]
) -> Cuts:
    stages, normal = _stages(document.get("pre_tokenizer")), _stages(document.get("normalizer"))
    kinds = [s["type"] for s in stages]
    if any(not t.get("special") and (t.get("lstrip") or t.get("rstrip") or t.get("single_word")) for t in added):
        return "none"
    if not bytewise:
        spaces = all(s["type"] in ("Prepend", "Replace") for s in normal) and set(kinds) <= {"Metaspace"}
        return _piece_cuts(vocab) if spaces else "none"
    splits = [s.get("pattern", {}).get("Regex") for s in stages if s["type"] == "Split"]
    regular = bool(kinds) and kinds[-1] == "ByteLevel" and set(kinds[:-1]) <= {"Digits", "Split"}
    known = set(splits) <= KNOWN_SPLITS and len(splits) + bool(regular and stages[-1].get("use_regex", True)) >= 1
    return "words" if regular and known and all(s["type"] == "NFC" for s in normal) else "none"


def _file_prefix(document: Mapping[str, Any]) -> tuple[Prefix, bool]:
    if any(s["type"] == "Prepend" for s in _stages(document.get("normalizer"))):
        return "always", True
    for stage in _stages(document.get("pre_tokenizer")):
        if stage["type"] == "Metaspace":
            scheme = stage.get("prepend_scheme") or ("always" if stage.get("add_prefix_space", True) else "never")
            return ("none" if scheme == "never" else "unless_space"), scheme == "always"
        if stage["type"] == "ByteLevel" and stage.get("add_prefix_space"):
            return "unless_space", True
    return "none", False


def _file_adds_bos(post: object, config: Mapping[str, Any]) -> bool:
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    for stage in _stages(post, "processors"):
        first = (stage.get("single") or [{}])[0] if stage["type"] == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            return True
    return False


def _file_ends(
    ids: Mapping[str, int], control: Mapping[str, int], tokens: Mapping[str, Any], generation: Mapping[str, Any]
) -> tuple[int, ...]:
    listed = generation.get("eos_token_id")
    ends = [int(i) for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int)]
    named = ids.get(_name(tokens.get("eos_token")) or "")
    return _ends(([] if named is None else [named]) + ends, control)


def _ends(ids: list[int], control: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids + [control[n] for n in END_NAMES if n in control]))


def _name(token: object) -> str | None:
    value = token.get("content") if isinstance(token, Mapping) else token
    return value if isinstance(value, str) else None


def _stages(node: Any, key: str = "") -> list[dict[str, Any]]:
    """The stages of a pipeline of tokenizer.json, nested Sequences laid flat."""
    if not isinstance(node, dict):
        return []
    inner = next((node[k] for k in (key, "pretokenizers", "normalizers", "processors") if k in node), None)
    return [s for part in inner for s in _stages(part)] if inner is not None else [node]


def _core(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    unknown: str | None = None,
    byte_fallback: bool = False,
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import models

    options = {"unk_token": unknown, "fuse_unk": True} if unknown is not None else {}
    try:
        model = models.BPE(vocab, merges, ignore_merges=ignore_merges, byte_fallback=byte_fallback, **options)
    except Exception as error:
        raise ModelError(f"the file's vocabulary and merges do not fit together: {error}") from error
    return tokenizers.Tokenizer(model)


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if pre in GPT2_TYPES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in DIGIT_TYPES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre in SPLIT_TYPES:
        split = pre_tokenizers.Split(Regex(SPLIT_TYPES[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join(sorted(GPT2_TYPES | DIGIT_TYPES | set(SPLIT_TYPES)))
    raise ModelError(f"tokenizer.ggml.pre={pre!r}: this pre-tokeniser is not supported; known: {known}")


def _merges_of_scores(plain: dict[str, int], scores: Sequence[Any]) -> list[tuple[str, str]]:
    """SentencePiece's order as BPE ranks: a pair ranks by the score of what it makes (Kudo & Richardson 2018)."""
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for piece, i in plain.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in plain and right in plain:
                ranked.append((-float(scores[i]), i, plain[left], plain[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _piece_cuts(vocab: Mapping[str, int]) -> Cuts:
    """Text may be cut before a space when no piece holds a space after something else: then no merge crosses it."""
    crossing = re.compile("[^▁]▁")
    return "spaces" if "▁" in vocab and not any(crossing.search(n) for n in vocab) else "none"


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not set(map(type, value)) <= {str}:
        raise ModelError(f"{key}: missing, or not a list of strings; the file has no usable tokenizer")
    return list(value)


def _types(metadata: Mapping[str, object], count: int) -> list[int]:
    value = metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return [NORMAL] * count
    if not isinstance(value, Sequence) or len(value) != count:
        raise ModelError(f"tokenizer.ggml.token_type: must be a list of {count} numbers, one for each token")
    return list(map(int, value))


def _id(metadata: Mapping[str, object], which: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{which}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < count:
        raise ModelError(f"tokenizer.ggml.{which}_token_id={value!r}: must be an id below {count}")
    return value
