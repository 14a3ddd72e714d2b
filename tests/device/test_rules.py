"""Every rule of the Edge TPU, held to the examples that it declares."""

from __future__ import annotations

import pytest

from compiler.ops import BUILTINS
from compiler.ops.rules import COMMON, Rule, judge
from compiler.targets import Target

TARGET = Target.load()


def _declared() -> dict[str, Rule]:
    """Every rule once, by the operator of its example and what it needs."""
    rules = {f"common: {rule.needs}": rule for rule in COMMON}
    for builtin in BUILTINS.values():
        rules |= {f"{rule.accepts.builtin}: {rule.needs}": rule for rule in builtin.rules}
    return rules


RULES = _declared()


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_examples_of_rules(rule: Rule) -> None:
    """What is accepted keeps all rules of its operator; what is refused breaks this one only."""
    assert rule.needs and rule.source and rule.standing in ("documented", "measured", "assumed")
    assert rule.accepts.builtin == rule.refuses.builtin
    own = BUILTINS[rule.accepts.builtin].rules
    assert rule in (*COMMON, *own)
    assert judge(rule.accepts, BUILTINS, TARGET) is None
    reason = judge(rule.refuses, BUILTINS, TARGET)
    assert reason is not None and f"{rule.refuses.builtin} needs that {rule.needs}; " in reason
    others = [other for other in (*COMMON, *own) if other is not rule]
    broken = [other.needs for other in others if other.broken(rule.refuses, TARGET) is not None]
    assert broken == []


def test_size_limits_say_both_ends() -> None:
    """A measured limit names what was mapped and what was not, or that no more was seen."""
    sizes = [rule for rule in RULES.values() if "at most" in rule.needs]
    measured = [rule for rule in sizes if rule.standing == "measured"]
    assert len(measured) >= 7
    for rule in measured:
        assert "mapped" in rule.needs and ("not" in rule.needs), rule.needs
