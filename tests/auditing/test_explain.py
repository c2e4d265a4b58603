"""``theodolite explain``: every theorem in plain words, at most 80 columns."""

import pytest

from theodolite.auditing.explain import explanation
from theodolite.theorems import ALL


@pytest.mark.parametrize("theorem", ALL, ids=lambda theorem: theorem.code)
def test_every_theorem_reads_at_80_columns(theorem):
    text = explanation(theorem)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)
    assert lines[0] == f"{theorem.code}  {theorem.title}  ({theorem.chapter})"
    assert {"STATEMENT", "SOURCE"} <= set(lines)
    assert not set(text) & set("\\$"), "unread TeX"
    words = " ".join(text.split())
    for hypothesis in theorem.hypotheses:
        assert hypothesis.statement in words
    assert lines[2].strip(), "the class needs a docstring"


def test_what_only_the_user_can_vouch_for_is_said():
    by_code = {theorem.code: theorem for theorem in ALL}
    assert "(your word)" in explanation(by_code["GEN001"])
    assert "false means refuted" in " ".join(explanation(by_code["OPT001"]).split())
