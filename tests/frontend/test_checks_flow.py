"""What `Plan.check` finds of messages, branches, variables, and of how paths end."""

from __future__ import annotations

import ramet as rt

from .checking import check, codes, one

# --- messages ---


def late_system(s: rt.State) -> str:
    s.user("a")
    s.system("b")
    return s.reply(max_tokens=1).get()


def assistant_first(s: rt.State) -> str:
    s.system("b")
    return s.reply(max_tokens=1).get()


def twice(s: rt.State) -> str:
    s.user("a")
    s.user("b")
    return s.reply(max_tokens=1).get()


def nested(s: rt.State) -> None:
    s += rt.user_begin()
    s += rt.assistant_begin()


def test_the_order_of_messages():
    one(late_system, "role-order", "warning", "system message after", line=2)
    one(assistant_first, "role-order", "warning", "begins with the assistant", line=2)
    one(twice, "role-order", "note", "two user messages", line=2)
    one(nested, "role-order", "error", "begins inside", line=2)


def test_turns_in_branches_are_turns_of_their_own():
    def branches(s: rt.State) -> list[str]:
        s.user("a")
        with s.fork(2) as both:
            for branch in both:
                branch.reply(name="x", max_tokens=1, temperature=1.0)
        s.assistant("b")
        s.user("c")
        s.reply(name="y", max_tokens=1)
        return [*s["x"], s["y"]]

    assert check(branches) == []


def left_open(s: rt.State) -> str:
    s += rt.user_begin() + "a"
    return s.gen(max_tokens=1).get()


def outside(s: rt.State) -> str:
    s.user("a")
    return s.gen(name="answer", max_tokens=1).get()


def without_messages(s: rt.State) -> str:
    s += "a"
    return s.gen(name="answer", max_tokens=1).get()


def test_what_stands_outside_messages():
    one(left_open, "role-open", "warning", "user message is never ended", line=1)
    one(outside, "outside-message", "warning", "'answer' stands outside", line=2)
    assert check(without_messages) == []


def spaced(s: rt.State) -> str:
    s += "Answer: "
    return s.gen(max_tokens=1).get()


def spaced_typed(s: rt.State) -> int:
    s += "Answer: "
    return s.gen(int, max_tokens=3).get()


def test_trailing_space():
    one(spaced, "trailing-space", "note", "ends in a space", line=2)
    assert check(spaced_typed) == []
    assert check(without_messages) == []


# --- branches ---


def unread(s: rt.State) -> str:
    s += "x"
    branches = s.fork(["a", "b", "c"])
    for branch in branches:
        branch += branch.item
        branch.gen(name="y", max_tokens=2)
    return branches[0]["y"]


def joined(s: rt.State) -> None:
    s += "x"
    branches = s.fork(["a", "b"])
    for branch in branches:
        branch += branch.item
        branch.gen(name="y", max_tokens=2)
    branches.join("concat")


def adopting(s: rt.State) -> str:
    s += "x"
    branches = s.fork(["a", "b"])
    for branch in branches:
        branch += branch.item
        branch.gen(name="y", max_tokens=2)
    s.adopt(branches[0])
    s += "z"
    return branches[1]["y"] + s.gen(max_tokens=2).get()


def ahead(s: rt.State) -> str:
    s += "x"
    branches = s.fork(["a", "b"])
    for branch in branches:
        branch += branch.item
        branch.gen(name="y", max_tokens=2)
    return branches[0]["y"] if s.select(["a", "b"]).get() == "a" else branches[1]["y"]


def test_branches_that_nobody_reads():
    assert check(ahead) == [], "computed for whichever choice"
    one(unread, "unread-branch", "warning", "2 of 3 branches", line=2)
    assert check(joined) == []
    assert check(adopting) == []


def alike(s: rt.State) -> list[str]:
    s += "x"
    branches = s.fork(3)
    for branch in branches:
        branch.gen(name="y", max_tokens=2)
    return branches.gather("y")


def seeded(s: rt.State) -> list[str]:
    s += "x"
    branches = s.fork(3)
    branches += rt.gen("y", max_tokens=2, temperature=1.0, seed=3)
    return branches.gather("y")


def several(s: rt.State) -> list[str]:
    s += "x"
    return s.gen(n=2, max_tokens=2).get()


def test_branches_that_give_the_same():
    one(alike, "branch-alike", "warning", "3 of the 3", line=2)
    one(seeded, "branch-alike", "warning", "one seed", line=2)
    one(several, "branch-alike", "warning", "2 of the 2", line=2)
    assert rt.function(temperature=0.7)(alike).compile().check() == []
    assert rt.function(temperature=0.7)(several).compile().check() == []
    assert codes(check(unread)) == ["unread-branch"], "their items differ"


# --- variables ---


def unknown(s: rt.State) -> str:
    s += "x"
    return s["answer"]


def again(s: rt.State) -> str:
    s.gen(name="a", max_tokens=1)
    s += ", "
    s.gen(regex="b|c", name="a", max_tokens=1)
    return s["a"]


def looping(s: rt.State) -> str:
    for _ in range(3):
        s += "x:"
        s.gen(name="a", max_tokens=1)
    return s["a"]


def dropped(s: rt.State) -> str:
    s += "x"
    first = s.gen(max_tokens=1).get()
    s += " and"
    s.gen(max_tokens=1)
    return first


def context(s: rt.State) -> str:
    s.gen(max_tokens=9)
    s += " so"
    return s.gen(max_tokens=1).get()


def test_variables():
    one(unknown, "unknown-variable", "error", "no variable 'answer'", line=2)
    one(again, "overwritten", "warning", r"'a' is defined again at test_checks_flow.py:\d+", line=1)
    one(dropped, "unread-value", "warning", "never read", line=4)
    for body in (looping, context, joined):
        assert check(body) == []


def elsewhere(s: rt.State) -> str:
    """What is for nobody on one path has the ids of what is read, joined and overwritten on the other."""
    if s.select(["short", "long"], name="kind").get() == "long":
        s += "a"
        s.gen(max_tokens=2)
        return "nothing"
    s += "b"
    return s.gen(max_tokens=2).get()


def forking(s: rt.State) -> str:
    if s.select(["short", "long"], name="kind").get() == "long":
        kept = s.fork(2)
        for branch in kept:
            branch.gen(name="y", max_tokens=2, temperature=1.0)
        kept.join("concat")
        return "nothing"
    left = s.fork(2)
    for branch in left:
        branch.gen(name="y", max_tokens=2, temperature=1.0)
    return "less"


def overwriting(s: rt.State) -> str:
    if s.select(["short", "long"], name="kind").get() == "long":
        first = s.gen(name="a", max_tokens=2)
        s += first
        return s.gen(name="a", max_tokens=2).get()
    s.gen(name="a", max_tokens=2)
    s += "then"
    s.gen(name="a", max_tokens=2)
    return s["a"]


def test_what_another_path_uses_is_no_excuse():
    """Ids of operations are counted along each path: the same stand for others on another."""
    one(elsewhere, "unread-value", "warning", "never read", line=4)
    one(forking, "unread-branch", "warning", "2 of 2 branches", line=7)
    one(overwriting, "overwritten", "warning", "'a' is defined again", line=5)


def unused(s: rt.State, question: str, style: str) -> str:
    s += question
    return s.gen(max_tokens=1).get()


def test_an_argument_that_nothing_depends_on():
    one(unused, "unused-parameter", "note", "'style'", line=0)
    assert codes(check(unused, style="short")) == []


# --- how paths end ---


def looks(s: rt.State) -> str:
    return s.gen(name="a", max_tokens=1).get().strip()


def endless(s: rt.State) -> None:
    while s.select(["go on", "stop"]).get() != "stop":
        s += "again"


def many(s: rt.State) -> str:
    return "".join("x" * (s.select(["a", "b"]).get() == "a") for _ in range(4))


def fails(s: rt.State) -> str:
    s += "x"
    return s.item["key"]


def sometimes_fails(s: rt.State) -> str:
    if s.select(["a", "b"]).get() == "b":
        raise ValueError("not b")
    return "a"


def test_how_paths_end():
    one(looks, "graph-break", "note", r"strip\(\) of the value of a", line=1)
    one(fails, "body-raises", "error", "TypeError", line=2)
    one(sometimes_fails, "body-raises", "note", "not b", line=2)
    one(many, "paths-truncated", "warning", "more paths", line=0, max_paths=4)
    assert check(many) == []
    assert "endless-path" in codes(check(endless, max_paths=4))


# --- advice ---


def behind(s: rt.State, question: str) -> str:
    s += question + "\nAnswer the question above in a single short sentence, please."
    return s.gen(max_tokens=1).get()


def respelled(s: rt.State) -> str:
    first = s.gen(max_tokens=1).get()
    s += f" and {first}"
    return s.gen(max_tokens=1).get()


def handled(s: rt.State, question: str) -> str:
    s += "Answer the question in a single short sentence, please: " + question
    first = s.gen(max_tokens=1)
    s += " and" + first
    return s.gen(max_tokens=1).get()


def test_advice():
    one(behind, "text-behind-argument", "note", "'question'", line=1)
    one(respelled, "value-respelled", "note", "a value is read", line=2)
    assert check(handled) == []
