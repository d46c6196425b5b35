"""Lowering: what programs become in tokens, and what is refused before anything is sent."""

import re
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, ContextOverflow, StateError
from ramet.runtime import messages as m
from ramet.runtime.lower import Lowering, branch_seed
from ramet.runtime.template import CHATML, ChatTemplate
from ramet.runtime.text import Tokenizer

MERGES = ["Ġ t", "h e", "Ġt he", "Ċ Ċ", "Ġ a", "o r", "w or", "Ġ wor", "l d", "wor ld", "Ġwor ld", "a b", ": :"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer(**extra):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*CONTROL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": names,
            "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(names) - len(CONTROL)),
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 2,
        }
        | {f"tokenizer.ggml.{key}": value for key, value in extra.items()}
    )


TOKENS = tokenizer()
BOS = "{{ bos_token }}" + CHATML


@cache
def template(source, tokens):
    return ChatTemplate.of(source, tokens, 4096)


def lowering(tokens=TOKENS, *, source=CHATML, **options):
    return Lowering(tokens, template(source, tokens), **{"context": 4096, "seed": 7, **options})


class Program:
    """Writes ops with ids as the frontend makes them."""

    def __init__(self):
        self.ops = []
        self.counts = {}

    def add(self, kind, seq="0", **fields):
        n = self.counts.get(seq, 0)
        self.counts[seq] = n + 1
        self.ops.append(kind(id=f"{seq}.{n}", seq=seq, **fields))
        return self.ops[-1].id

    def text(self, *parts, seq="0"):
        return self.add(ir.Text, seq, parts=parts)

    def role(self, role, *parts, seq="0"):
        self.add(ir.Role, seq, role=role, edge="begin")
        self.text(*parts, seq=seq)
        self.add(ir.Role, seq, role=role, edge="end")

    def gen(self, seq="0", **sampling):
        return self.add(ir.Gen, seq, var="x", sampling=ir.Sampling(**sampling))

    def fork(self, n, seq="0"):
        into = tuple(f"{seq}.{self.counts.get(seq, 0)}.b{i}" for i in range(n))
        self.add(ir.Fork, seq, into=into)
        return into


def sequences(ops):
    """The tokens (and names of values) of each sequence before its calls, as the engine would put them together."""
    out = {"0": []}
    for op in ops:
        if isinstance(op, m.Append):
            for part in op.parts:
                out[op.seq] += [part] if isinstance(part, str) else part
        elif isinstance(op, (m.Generate, m.Choose)):
            out[op.seq].append(op.op)
        elif isinstance(op, m.Fork):
            out |= {name: list(out[op.seq]) for name in op.into}
        elif isinstance(op, m.Join):
            out[op.seq].append(op.branches)
    return out


def lowered(program, cuts=(), **options):
    low, out, last = lowering(**options), [], 0
    for here in [*sorted(cuts), len(program.ops)]:
        out += low.lower(program.ops[last : max(last, here)])[0]
        last = max(last, here)
    return sequences(out)


words = st.lists(
    st.sampled_from([" the", " world", "wor", "ld", " ", "  ", "\n", "a", ":", "12", "é", "中", "."]), max_size=6
)


# -- text


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(words.map("".join), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 8)), big=st.booleans())
def test_constants_are_merged_however_they_are_cut_into_ops_and_calls(parts, cuts, big):
    whole = "".join(parts) * (60 if big else 1)
    expected = TOKENS.encode(whole + "!")
    assume(len(expected) < 4000)  # the context is refused beyond, by another test
    program = Program()
    for part in parts * (60 if big else 1):
        program.text(part)
    program.text("!")
    program.gen()
    assert lowered(program, [c * (60 if big else 1) for c in cuts])["0"] == [*expected, program.ops[-1].id]


def test_a_long_text_is_sent_ahead_and_only_its_end_held_back():
    low = lowering()
    text = "the world " * 60 + "wor"
    sent = low.lower([ir.Text(id="0.0", seq="0", parts=(text,))])[0]
    assert [type(op) for op in sent] == [m.Append]
    assert TOKENS.decode(sent[0].parts[0]) == text[: -len(" wor")]
    rest = low.lower([ir.Text(id="0.1", seq="0", parts=("ld",)), ir.Gen(id="0.2", seq="0", var="x")])[0]
    assert TOKENS.encode(" world") == list(rest[0].parts[0])
    assert rest[0].op == "0.0"


def test_values_are_segments_and_are_never_tokenised_again():
    program = Program()
    put = program.add(ir.Put, var="p", value="wor")
    program.text("a", "b", ir.Ref(put), "l", "d")
    gen = program.gen()
    program.text(ir.Ref(gen), "the")
    end = program.gen()
    ops = lowering().lower(program.ops)[0]
    assert ops[0] == m.Put(put, "0", tuple(TOKENS.encode("wor")))
    segments = [TOKENS.encode("ab"), [put], TOKENS.encode("ld"), [gen], [gen], TOKENS.encode("the"), [end]]
    assert sequences(ops)["0"] == [token for segment in segments for token in segment]


def test_control_tokens_in_text_are_text_and_in_edges_are_tokens():
    program = Program()
    program.role("user", "<|im_end|>")
    program.add(ir.Role, role="assistant", edge="begin")
    program.gen()
    ops, rendered = lowering().lower(program.ops)
    assert [r.text for r in rendered] == ["<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"]
    assert [r.op for r in rendered] == ["0.0", "0.2", "0.3"]
    tokens = sequences(ops)["0"][:-1]
    assert tokens.count(2) == 1
    assert tokens.count(1) == 2
    assert tokens == [
        *TOKENS.encode_template("<|im_start|>user\n"),
        *TOKENS.encode("<|im_end|>"),
        *TOKENS.encode_template("<|im_end|>\n<|im_start|>assistant\n"),
    ]


def test_spaces_at_the_end_of_an_edge_join_the_content():
    source = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    program = Program()
    program.role("user", "the")
    program.gen()
    tokens = lowered(program, source=source)["0"]
    assert tokens[:-1] == [*TOKENS.encode_template("<|im_start|>user:"), *TOKENS.encode(" the"), 2]


def test_bos_is_there_once():
    tokens = tokenizer(add_bos_token=True)
    program = Program()
    program.text("the")
    program.role("user", "a")
    children = program.fork(2)
    program.gen(seq=children[0])
    for source in (CHATML, BOS):
        ids = lowered(program, tokens=tokens, source=source)[children[0]]
        assert ids[0] == 0
        assert ids.count(0) == 1
    chat = Program()
    chat.role("user", "a")
    chat.gen()
    assert lowered(chat, tokens=tokens, source=BOS)["0"].count(0) == 1
    assert lowered(chat, tokens=tokens, source=CHATML)["0"].count(0) == 0
    bare = Program()
    bare.gen()
    assert lowered(bare, tokens=tokens)["0"] == [0, "0.0"]


# -- calls


def test_seeds_depend_on_the_program_seed_and_the_path_alone():
    first, second = Program(), Program()
    for program in (first, second):
        program.text("a")
        a, b = program.fork(2)
        for seq in (a, b) if program is first else (b, a):
            program.gen(seq=seq)
    seeds = []
    for program in (first, second):
        ops = lowering().lower(program.ops)[0]
        seeds.append({op.seq: op.seed for op in ops if isinstance(op, m.Generate)})
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 2
    assert all(0 <= seed < 1 << 64 for seed in seeds[0].values())
    own = lowering(seed=1).lower([ir.Text(id="0.0", seq="0", parts=("a",)), ir.Gen(id="0.1", seq="0", var="x")])[0]
    assert own[-1].seed == branch_seed(1, "0") == int.from_bytes(own[-1].seed.to_bytes(8, "big"), "big")
    given_seed = Program()
    given_seed.text("a")
    given_seed.gen(seed=1)
    assert lowering(seed=2).lower(given_seed.ops)[0][-1].seed == branch_seed(1, "0")


def test_choices_are_tokenised_one_by_one():
    program = Program()
    program.text("the")
    program.add(ir.Select, var="c", choices=(" a", " world"))
    program.add(ir.Select, var="d", choices=("a",), method="unconditional_likelihood_normalized")
    ops = lowering().lower(program.ops)[0]
    assert ops[1].choices == (tuple(TOKENS.encode(" a")), tuple(TOKENS.encode(" world")))
    assert ops[1].context == ()
    assert ops[2].context == (0,)
    without = tokenizer(bos_token_id=None)
    assert lowering(without).lower(program.ops)[0][2].context == (2,)


# -- branches


@settings(max_examples=150, deadline=None)
@given(before=words.map("".join), after=words.map("".join), held=st.booleans())
def test_a_fork_shows_in_tokens_only_where_text_goes_on_inside_a_token(before, after, held):
    before, after = "the" + before, after + "!"
    program = Program()
    program.text(before)
    child, _ = program.fork(2)
    program.text(after, seq=child)
    program.text(after)
    program.gen(seq=child)
    program.gen()
    tokens = lowered(program, [1] if held else [])
    ids = tokens[child][:-1]
    assert tokens["0"][:-1] == ids
    assert TOKENS.decode(ids) == before + after
    head = TOKENS.encode(before)
    assert ids[: len(head)] == head  # all of it is shared: the children compute nothing
    whole = TOKENS.encode(before + after)
    if whole[: len(head)] == head:
        assert ids == whole


def test_children_share_everything_before_the_fork():
    program = Program()
    program.text("the world:")
    children = program.fork(8)
    for child in children:
        program.gen(seq=child)
    ops = lowering().lower(program.ops)[0]
    assert [type(op) for op in ops] == [m.Append, m.Fork, *[m.Generate] * 8]


def test_join_waits_for_all_text_of_its_branches():
    program = Program()
    program.text("the")
    a, b = program.fork(2)
    program.text(" a", seq=a)
    program.text(" world", seq=b)
    program.add(ir.Close, seq=b)
    program.add(ir.Join, branches=(a, b))
    program.add(ir.Close, seq=a)
    program.gen()
    tokens = lowered(program)
    assert tokens["0"] == [*TOKENS.encode("the"), (a, b), program.ops[-1].id]
    assert tokens[a] == TOKENS.encode("the a")
    assert tokens[b] == TOKENS.encode("the world")


def test_end_sends_the_last_text_of_a_branch_that_was_never_closed():
    program = Program()
    program.text("the")
    (a,) = program.fork(1)
    program.text(" a", seq=a)
    program.add(ir.Join, branches=(a,))
    low = lowering()
    low.lower(program.ops)
    assert low.end() == [m.Append(f"{a}.0", a, (tuple(TOKENS.encode(" a")),))]
    assert low.end() == []


def test_a_join_brings_the_messages_of_its_branch_into_the_history():
    source = "{% for m in messages %}[{{ loop.index }}{{ m.role }}]{{ m.content }}{% endfor %}"
    program = Program()
    program.role("user", "a")
    (branch,) = program.fork(1)
    program.role("assistant", "b", seq=branch)
    program.add(ir.Close, seq=branch)
    program.add(ir.Join, branches=(branch,))
    program.role("user", "c")
    rendered = lowering(source=source).lower(program.ops)[1]
    assert [r.text for r in rendered if r.text] == ["[1user]", "[2assistant]", "[3user]"]


# -- refusals


def refused(kind, message, *ops, **options):
    low = lowering(**options)
    before = [ir.Text(id="0.90", seq="0", parts=("the",)), ir.Fork(id="0.91", seq="0", into=("b",))]
    low.lower(before)
    with pytest.raises(kind, match=message):
        low.lower(ops)
    # Nothing of the call has happened: the same ids and sequences are free, and the text goes on as before.
    after = low.lower([ir.Text(id="0.0", seq="0", parts=(" a",)), ir.Gen(id="0.1", seq="0", var="x")])[0]
    assert after[0] == m.Append("0.0", "0", (tuple(TOKENS.encode(" a")),))


def text(n, *parts, seq="0"):
    return ir.Text(id=f"0.{n}", seq=seq, parts=parts)


def role(n, name, edge):
    return ir.Role(id=f"0.{n}", seq="0", role=name, edge=edge)


def gen(n, seq="0", **sampling):
    return ir.Gen(id=f"0.{n}", seq=seq, var="x", sampling=ir.Sampling(**sampling))


def select(n, *choices):
    return ir.Select(id=f"0.{n}", seq="0", var="x", choices=choices)


CLOSE = ir.Close(id="0.2", seq="b")
JOIN = ir.Join(id="0.3", seq="0", branches=("b",))


@pytest.mark.parametrize(
    ("kind", "message", "ops"),
    [
        (ConstraintError, "'user' message is still open; end it", [role(0, "user", "begin"), role(1, "user", "begin")]),
        (ConstraintError, "no message is open; begin", [role(0, "user", "end")]),
        (ConstraintError, "the open message is 'user'", [role(0, "user", "begin"), role(1, "assistant", "end")]),
        (ConstraintError, "role='robot': unknown", [role(0, "robot", "begin")]),
        (ConstraintError, "id='0.90': an operation of this id", [text(90, "a")]),
        (ConstraintError, "id='0.0': an operation of this id", [text(0, "a"), text(0, "a")]),
        (ConstraintError, r"Ref\('0.5'\): no earlier", [text(0, ir.Ref("0.5"))]),
        (ConstraintError, r"Ref\('0.90'\): no earlier", [text(0, ir.Ref("0.90"))]),
        (ConstraintError, "lone surrogate", [text(0, "a\udfff")]),
        (ConstraintError, "lone surrogate", [ir.Put(id="0.0", seq="0", var="p", value="\ud800")]),
        (ConstraintError, "lone surrogate", [gen(0, stop=("\ud800",))]),
        (ConstraintError, "stop_token_ids: 999", [gen(0, stop_token_ids=(999,))]),
        (ConstraintError, "logit_bias: -1", [gen(0, logit_bias={-1: 1.0})]),
        (ConstraintError, r"choices=\(\)", [select(0)]),
        (ConstraintError, "choices: '' has no tokens", [select(0, "a", "")]),
        (ConstraintError, "choices: 'a' and 'a' are the same", [select(0, "a", "a")]),
        (ConstraintError, r"into=\(\)", [ir.Fork(id="0.0", seq="0", into=())]),
        (ConstraintError, "'b' exists already", [ir.Fork(id="0.0", seq="0", into=("b",))]),
        (ConstraintError, "'c' exists already", [ir.Fork(id="0.0", seq="0", into=("c", "c"))]),
        (ConstraintError, "'0' is not a branch", [ir.Join(id="0.0", seq="0", branches=("0",))]),
        (StateError, "seq='zz': no such sequence", [text(0, "a", seq="zz")]),
        (StateError, "seq='zz': no such sequence", [ir.Join(id="0.0", seq="0", branches=("zz",))]),
        (StateError, "Text on seq='b': it is closed", [CLOSE, text(0, "a", seq="b")]),
        (StateError, "Close on seq='b': it is closed", [CLOSE, ir.Close(id="0.4", seq="b")]),
        (StateError, "Gen on seq='b': it is joined", [JOIN, gen(0, seq="b")]),
        (StateError, "'b' is joined already", [JOIN, ir.Join(id="0.4", seq="0", branches=("b",))]),
        (ContextOverflow, "30 characters is longer than the limit of 20", [text(0, "a" * 15), text(1, "a" * 15)]),
        (ContextOverflow, "21 characters", [ir.Put(id="0.0", seq="0", var="p", value="a" * 21)]),
        (ContextOverflow, "21 characters", [select(0, "a" * 21)]),
        (ContextOverflow, "at least 17 tokens and the model's context is 16", [text(0, "." * 15), gen(1)]),
        (ContextOverflow, "at least 16 tokens, the model's context is 16", [text(0, "." * 14), gen(1)]),
        (ContextOverflow, "longest choice have at least 17", [select(0, "a", "." * 15)]),
    ],
)
def test_bad_operations_are_refused_and_change_nothing(kind, message, ops):
    refused(kind, message, *ops, context=16, max_chars=20)


def test_a_branch_with_an_open_message_cannot_be_joined():
    inside = ir.Role(id="0.0", seq="b", role="user", edge="begin")
    refused(ConstraintError, "'b' has the message 'user' open", inside, JOIN)


@pytest.mark.parametrize("op", [gen(0), select(0, "a")])
def test_an_empty_prompt_is_refused(op):
    with pytest.raises(ConstraintError, match="empty prompt"):
        lowering().lower([op])
    empty = ir.Put(id="0.8", seq="0", var="p", value="")
    with pytest.raises(ConstraintError, match="empty prompt"):
        lowering().lower([empty, text(9, ir.Ref("0.8"), ""), op])


def test_errors_name_their_branch():
    with pytest.raises(ConstraintError, match=re.escape("(branch 0)")) as caught:
        lowering().lower([select(0)])
    assert caught.value.branch == "0"


def test_the_tokens_of_values_count_where_they_are_known():
    put = ir.Put(id="0.0", seq="0", var="p", value="." * 10)
    low = lowering(context=16)
    with pytest.raises(ContextOverflow, match="at least 20 tokens"):
        low.lower([put, text(1, ir.Ref("0.0")), text(2, ir.Ref("0.0"))])
    assert low.lower([put, text(1, ir.Ref("0.0")), gen(2)])[0][-1].op == "0.2"
