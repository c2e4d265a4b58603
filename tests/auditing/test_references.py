"""References out of refs.bib."""

import re

import pytest

from theodolite.auditing import references
from theodolite.theorems import ALL

BIB = r"""
@article{a1,
  author = {M{\"u}ller, J{\'e}r\^ome and {\O}stergaard, Bj{\o}rn and Erd{\H o}s, Paul},
  title = {On {ReLU} Networks},
  journal = {Journal of Things},
  volume = {7},
  number = {2},
  year = 2019,
  doi = {10.1/x_y},
}
@inproceedings{b2,
  author = "A. One and B. Two and C. Three and D. Four and E. Five",
  title = "Why?",
  booktitle = "Conference",
  year = "2020",
  note = {arXiv:2001.01234}
}

@book{c3, author = {Doe, Jane}, title = {A Book}, publisher = {Press}, year = {1970}, eprint = {1901.00001}
}
"""


@pytest.fixture
def bibliography(tmp_path):
    path = tmp_path / "refs.bib"
    path.write_text(BIB, encoding="utf-8")
    return references.bibliography(path)


def test_entries_read_as_people_write_them(bibliography):
    people = "J. Müller, B. Østergaard and P. Erdős"
    assert bibliography["a1"].text == f"{people}. On ReLU Networks. Journal of Things 7(2), 2019."
    assert bibliography["b2"].text == "A. One et al. Why? Conference, 2020. arXiv:2001.01234."
    assert bibliography["c3"].text == "J. Doe. A Book. Press, arXiv:1901.00001, 1970."


def test_links(bibliography):
    assert bibliography["a1"].url == "https://doi.org/10.1/x_y"
    assert bibliography["b2"].url == "https://arxiv.org/abs/2001.01234"
    assert bibliography["c3"].url == "https://arxiv.org/abs/1901.00001"


@pytest.mark.parametrize("theorem", ALL, ids=lambda theorem: theorem.code)
def test_every_theorem_names_a_source_that_reads_well(theorem):
    found = references.resolve(theorem.reference)
    assert found
    for reference in found:
        assert reference.text != reference.key, f"{reference.key} is not in refs.bib"
        assert not set(reference.text) & set("{}\\$"), reference.text
        assert re.search(r"\b(1[89]|20)\d\d\b", reference.text), reference.text
        assert re.search(r"[?!.,]\.(\s|$)", reference.text) is None, reference.text
        assert reference.text.endswith(".")
        assert reference.url == "" or reference.url.startswith("https://")


def test_unknown_keys_stand_for_themselves():
    assert references.resolve(" nobody1900 ,")[0] == references.Reference("nobody1900", "nobody1900")
    assert references.resolve("") == []
