"""LaTeX of statements as MathML and as plain text."""

import re
import xml.etree.ElementTree as ET

import pytest

from theodolite.auditing import tex
from theodolite.theorems import ALL

PLAIN = [
    (r"$\|w\|^2 \le \sum_i w_i$", "‖w‖^2 ≤ ∑_i w_i"),
    (r"$\frac12(1 + 1/\mu)$", "1/2 (1 + 1/μ)"),
    (r"$\tfrac 1{2n}\|w\|$", "1/(2n) ‖w‖"),
    (r"$\frac{a + b}{c}$", "(a + b)/c"),
    (r"$x^10$", "x^1 0"),  # as TeX reads it
    (r"$x^{10}$", "x^10"),
    (r"$\lambda_{\max}(H)$", "λ_max(H)"),
    (r"$\max_{i\ne j}|d_i^\top d_j|$", "max_{i≠j} |d_i⊤ d_j|"),
    (r"$f'(x) = -1$", "f′(x) = −1"),
    (r"$w_{ij}$", "w_{ij}"),
    (r"$\sqrt{n}$ and $\sqrt{n m}$", "√n and √(nm)"),
    (r"$\hat R_S(f)$", "R̂_S(f)"),
    (r"$\mathbb E[X], \mathbb{R}^d, \mathcal{L}$", "𝔼[X], ℝ^d, ℒ"),
    (r"$\mathrm{Lip}(f)$", "Lip(f)"),
    (r"$a \text{ if } b$", "a if b"),
    (r"$\log q(Y|X)$", "log q(Y|X)"),
    (r"$\alpha > 0$, \emph{so} 95\,\% -- or ``more''", "α > 0, so 95\\,% – or “more”"),
    (r"price \$5", "price $5"),
    ("no formula", "no formula"),
    (r"$2\sum_{k<d}\binom{n-1}{k}$", "2 ∑_{k<d}(n − 1 choose k)"),
    (r"$T = \begin{pmatrix}a & b_1\\ \cdot & -c\end{pmatrix}$", "T = (a, b_1; ·, −c)"),
    (r"$\{x : x \in A\}$", "{x: x ∈ A}"),
    (r"$[x]_+ = \max(x, 0)$", "[x]_+ = max(x, 0)"),
]


@pytest.mark.parametrize(("source", "plain"), PLAIN)
def test_plain_text(source, plain):
    assert tex.to_text(source) == plain


@pytest.mark.parametrize("theorem", ALL, ids=lambda theorem: theorem.code)
def test_every_statement_is_covered(theorem):
    formulas = re.split(r"(?<!\\)\$", theorem.statement)
    assert len(formulas) % 2 == 1, "a dollar sign is not closed"
    for formula in formulas[1::2]:
        tex.parse(formula)
    shown = tex.to_text(theorem.statement)
    assert not set(shown) & set("\\$"), shown
    page = tex.to_html(theorem.statement)
    assert "<code" not in page
    assert "<math>" in page
    for piece in re.findall(r"<math>.*?</math>", page):
        ET.fromstring(piece)


@pytest.mark.parametrize(
    "source",
    [
        r"\unknown{x}",
        r"\begin{array}a\end{array}",
        r"\begin{matrix}a",
        r"\frac{1",
        "x^",
        "a } b",
        "x_^2",
        "a & b",
    ],
)
def test_what_is_not_covered_is_shown_as_it_stands(source):
    with pytest.raises(tex.UnknownTeXError):
        tex.parse(source)
    assert tex.to_text(f"See ${source}$.") == f"See {' '.join(source.split())}."
    assert tex.to_html(f"See ${source}$.").startswith('See <code class="tex">')


def test_html_is_escaped():
    page = tex.to_html(r"if <b> & $a < b$ and $\unknown{<script>}$")
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt; &amp;" in page
    assert "<mo>&lt;</mo>" in page


def test_mathml_structure():
    assert tex.to_html(r"$\frac12$") == "<math><mrow><mfrac><mn>1</mn><mn>2</mn></mfrac></mrow></math>"
    assert (
        tex.to_html("$x_i^2$")
        == "<math><mrow><msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup></mrow></math>"
    )
    assert '<mo form="prefix">−</mo>' in tex.to_html("$-x$")
    assert "<mo>−</mo>" in tex.to_html("$y-x$")


def test_limits_go_below_and_above_where_there_is_room():
    page = tex.to_mathml(r"\sum_{i=1}^r x_i", display=True)
    assert page.startswith('<math display="block">')
    assert "<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>r</mi></munderover>" in page
    assert re.search(
        r"<munder><mo [^>]*movablelimits[^>]*>max</mo><mi>i</mi></munder>", tex.to_mathml(r"\max_i x")
    )
    assert "<mtr><mtd><mrow><mi>a</mi></mrow></mtd></mtr>" in tex.to_mathml(r"\begin{matrix}a\end{matrix}")
    assert 'linethickness="0"' in tex.to_mathml(r"\binom{n}{k}")
    with pytest.raises(tex.UnknownTeXError):
        tex.to_mathml(r"\nonsense")
    with pytest.raises(tex.UnknownTeXError):
        tex.to_mathml(r"\begin{tabular}a\end{tabular}")


def test_long_formulas_may_break_before_a_relation():
    long = "$" + " + ".join(f"x_{i}" for i in range(10)) + r" \le y$"
    assert "<wbr>" in tex.to_html(long)
    assert "<wbr>" not in tex.to_html(r"$x \le y$")
    inside = "$f(" + " + ".join(f"x_{i}" for i in range(10)) + r" \le y)$"
    assert "<wbr>" not in tex.to_html(inside)
