"""Statements in LaTeX, read once and written as MathML or as plain text.

Covers the part of LaTeX that statements of theorems use.  A formula with anything
else is shown as its source rather than wrongly.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)

_IDENTIFIERS = {
    **{
        name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
        for name in (
            "alpha beta gamma delta zeta eta theta iota kappa lambda mu nu xi "
            "pi rho sigma tau upsilon chi psi omega"
        ).split()
    },
    **{
        name: unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
        for name in "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega".split()
    },
    **{"epsilon": "ϵ", "varepsilon": "ε", "phi": "ϕ", "varphi": "φ", "vartheta": "ϑ", "varrho": "ϱ"},
    **{"ell": "ℓ"},
    **{"infty": "∞", "partial": "∂", "nabla": "∇", "emptyset": "∅", "varnothing": "∅", "hbar": "ℏ"},
    **{"dots": "…", "ldots": "…", "cdots": "⋯", "vdots": "⋮", "top": "⊤", "bot": "⊥"},
    **{"Re": "ℜ", "Im": "ℑ", "prime": "′"},
}
_OPERATORS = {
    **{"le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "ne": "≠"},
    **{"neq": "≠", "approx": "≈", "sim": "∼", "simeq": "≃", "equiv": "≡", "propto": "∝", "ll": "≪"},
    **{"gg": "≫", "in": "∈", "notin": "∉", "subset": "⊂", "subseteq": "⊆", "cup": "∪", "cap": "∩"},
    **{"setminus": "∖", "to": "→", "rightarrow": "→", "leftarrow": "←", "mapsto": "↦", "Rightarrow": "⇒"},
    **{"implies": "⇒", "iff": "⇔", "Leftrightarrow": "⇔", "times": "×", "cdot": "·", "circ": "∘"},
    **{"pm": "±", "mp": "∓", "otimes": "⊗", "oplus": "⊕", "odot": "⊙", "ast": "∗", "star": "⋆"},
    **{"forall": "∀", "exists": "∃", "wedge": "∧", "vee": "∨", "mid": "|", "colon": ":", "perp": "⊥"},
    **{"succeq": "⪰", "preceq": "⪯", "succ": "≻", "prec": "≺", "neg": "¬", "sum": "∑", "prod": "∏"},
    **{"int": "∫", "bigcup": "⋃", "bigcap": "⋂", "gtrsim": "≳", "lesssim": "≲", "asymp": "≍"},
    **{"lvert": "|", "rvert": "|", "vert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖", "|": "‖"},
    **{"langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "{": "{"},
    **{"}": "}", "backslash": "\\", "lbrace": "{", "rbrace": "}", "#": "#", "%": "%", "&": "&", "_": "_"},
    **{"$": "$", "not": "̸", "bigotimes": "⨂"},
}
_FENCES = frozenset("( ) [ ] { } | ‖ ⟨ ⟩ ⌊ ⌋ ⌈ ⌉".split())
_CLOSING = frozenset(") ] } ⟩ ⌋ ⌉ | ‖ ⊤ ′ ! %".split())
_RELATIONS = frozenset("≤ ≥ = < > ≈ ∼ ≡ ∝ ≪ ≫ → ⇒ ⇔ ∈".split())
_LONG = 12
_FUNCTIONS = frozenset(
    "max min sup inf lim limsup liminf log ln exp sin cos tan arcsin arccos arctan tanh cosh sinh det dim ker rank arg argmax "
    "argmin deg gcd Pr trace diag sign median".split()
)
_LIMITS = frozenset("∑ ∏ ⨂ ⋃ ⋂ max min sup inf lim".split())
_NAMED = 'movablelimits="true" lspace="0" rspace="0"'
_MATRICES = {"matrix": ("", ""), "pmatrix": ("(", ")"), "bmatrix": ("[", "]"), "cases": ("{", "")}
_ACCENTS = {
    **{"hat": "^", "widehat": "^", "bar": "¯", "overline": "¯", "tilde": "~", "widetilde": "~"},
    **{"dot": "˙", "vec": "→"},
}
_COMBINING = {"^": "̂", "¯": "̄", "~": "̃", "˙": "̇", "→": "⃗"}
_SPACES = {",": 0.17, ":": 0.22, ";": 0.28, "!": 0.0, " ": 0.33, "quad": 1.0, "qquad": 2.0, "enspace": 0.5}
_IGNORED = frozenset(
    "displaystyle textstyle scriptstyle limits nolimits left right middle nonumber rm bf it".split()
)
_SIZES = {
    name + side: 1.2 + 0.5 * i
    for i, name in enumerate(("big", "Big", "bigg", "Bigg"))
    for side in ("", *"lmr")
}
_TEXTS = frozenset(
    "text textrm textit mathit textup mbox mathrm mathop operatorname operatorname* mathsf textsf texttt mathtt".split()
)
_ALPHABETS = {
    "mathbb": lambda c: (
        {"R": "ℝ", "N": "ℕ", "Z": "ℤ", "P": "ℙ", "C": "ℂ", "Q": "ℚ", "1": "𝟙"}.get(c)
        or (chr(0x1D538 + ord(c) - 65) if c.isupper() else c)
    ),
    "mathcal": lambda c: (
        {"B": "ℬ", "E": "ℰ", "F": "ℱ", "H": "ℋ", "I": "ℐ", "L": "ℒ", "M": "ℳ", "R": "ℛ"}.get(c)
        or (chr(0x1D49C + ord(c) - 65) if c.isupper() else c)
    ),
    "mathbf": lambda c: (
        chr((0x1D400 if c.isupper() else 0x1D41A) + ord(c.lower()) - 97) if c.isalpha() and c.isascii() else c
    ),
}
_ALPHABETS |= {
    "mathscr": _ALPHABETS["mathcal"],
    "boldsymbol": _ALPHABETS["mathbf"],
    "bm": _ALPHABETS["mathbf"],
}


class UnknownTeXError(ValueError):
    """The formula uses something that is not covered."""


@dataclass(frozen=True)
class _Node:
    """Of a kind that `_mathml` and `_plain` know."""

    kind: str
    text: str = ""
    parts: tuple[_Node | None, ...] = ()


class _Parser:
    def __init__(self, source: str) -> None:
        self.tokens = _TOKEN.findall(source)
        self.at = 0

    def peek(self) -> str:
        while self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise UnknownTeXError("the formula ends too early")
        self.at += 1
        return token

    def row(self, end: str) -> _Node:
        parts: list[_Node | None] = []
        while self.peek() != end:
            part = self.scripted()
            if part is not None:
                parts.append(part)
        if end:
            self.take()
        return parts[0] if len(parts) == 1 and parts[0] is not None else _Node("row", parts=tuple(parts))

    def scripted(self) -> _Node | None:
        base = self.atom()
        lower = upper = None
        while self.peek() in ("_", "^", "'"):
            mark = self.take()
            if mark == "'":
                upper = _Node("mo", "′" if upper is None else upper.text + "′")
            elif mark == "_":
                lower = self.argument()
            else:
                upper = self.argument() if upper is None else _Node("row", parts=(upper, self.argument()))
        if lower is None and upper is None:
            return base
        return _Node("script", parts=(base or _Node("row"), lower, upper))

    def argument(self) -> _Node:
        if len(self.peek()) > 1 and self.peek()[0].isdigit():  # as in TeX, \frac12 is one half
            token = self.tokens[self.at]
            self.tokens[self.at] = token[1:]
            return _Node("mn", token[0])
        found = self.atom()
        if found is None:
            raise UnknownTeXError("an argument is missing")
        return found

    def table(self, name: str) -> _Node:
        r"""Return the rows of an environment, cells apart at & and rows at \\."""
        if name not in _MATRICES:
            raise UnknownTeXError(f"\\begin{{{name}}}")
        rows: list[list[_Node | None]] = [[]]
        while True:
            cell: list[_Node | None] = []
            while self.peek() not in ("&", "\\\\", "\\end"):
                cell.append(self.scripted())
            rows[-1].append(_Node("row", parts=tuple(part for part in cell if part is not None)))
            mark = self.take()
            if mark == "\\\\":
                rows.append([])
            elif mark == "\\end":
                self.words()
                return _Node("table", name, tuple(_Node("cells", parts=tuple(row)) for row in rows))

    def words(self) -> str:
        """Return an argument as it stands, spaces kept."""
        first = self.take()
        if first != "{":
            return first.lstrip("\\")
        depth, words = 1, ""
        while depth:
            if self.at >= len(self.tokens):
                raise UnknownTeXError("a brace is not closed")
            token = self.tokens[self.at]
            self.at += 1
            depth += (token == "{") - (token == "}")
            if token not in "{}":
                words += " " if token.isspace() or token == "~" else token.lstrip("\\")
        return words

    def atom(self) -> _Node | None:
        token = self.take()
        if token == "{":
            return self.row("}")
        if token.startswith("\\"):
            return self.command(token[1:])
        if token[0].isdigit():
            return _Node("mn", token)
        if token.isalpha():
            return _Node("mi", token)
        if token == "~":
            return _Node("space", "0.33")
        if token in "}&^_":
            raise UnknownTeXError(f"unexpected {token}")
        return _Node("mo", {"-": "−", "*": "∗"}.get(token, token))

    def command(self, name: str) -> _Node | None:
        if name in _IDENTIFIERS:
            return _Node("mi", _IDENTIFIERS[name])
        if name in _OPERATORS:
            return _Node("mo", _OPERATORS[name])
        if name in _SPACES:
            return _Node("space", str(_SPACES[name]))
        if name in _FUNCTIONS:
            return _Node("name", {"argmax": "arg max", "argmin": "arg min"}.get(name, name))
        if name in _SIZES:
            return _Node("big", f"{_SIZES[name]:.1f}em", (self.argument(),))
        if name in _IGNORED:
            if name in ("left", "right") and self.peek() == ".":
                self.take()
            return None
        if name in _TEXTS:
            return _Node("name" if name.startswith(("math", "operator")) else "text", self.words())
        if name in ("frac", "tfrac", "dfrac"):
            return _Node("frac", parts=(self.argument(), self.argument()))
        if name == "begin":
            return self.table(self.words())
        if name == "binom":
            return _Node("binom", parts=(self.argument(), self.argument()))
        if name == "sqrt":
            return _Node("sqrt", parts=(self.argument(),))
        if name in _ACCENTS:
            return _Node("over", _ACCENTS[name], (self.argument(),))
        if name in _ALPHABETS:
            return _Node("mi", "".join(map(_ALPHABETS[name], self.words())))
        raise UnknownTeXError(f"\\{name}")


def parse(formula: str) -> _Node:
    """Return the tree of a formula.

    Raises
    ------
    UnknownTeXError
        If it uses a command that is not covered.
    """
    return _Parser(formula).row("")


def _mathml(node: _Node | None) -> str:
    if node is None:
        return "<mrow></mrow>"
    if node.kind == "row":
        return f"<mrow>{''.join(_spaced_row(node))}</mrow>"
    inner = "".join(map(_mathml, node.parts))
    text = escape(node.text)
    if node.kind == "mo":
        # a norm bar may open or close; left to itself, a browser would space it like a relation
        return (
            f'<mo stretchy="false" lspace="0" rspace="0">{text}</mo>'
            if node.text in _FENCES
            else f"<mo>{text}</mo>"
        )
    if node.kind == "name":
        return f'<mi mathvariant="normal">{text}</mi>'
    if node.kind == "text":
        return f"<mtext>{text.replace(' ', chr(160))}</mtext>"
    if node.kind == "space":
        return f'<mspace width="{node.text}em"></mspace>'
    if node.kind == "big":
        return f'<mo minsize="{node.text}" maxsize="{node.text}" lspace="0" rspace="0">{escape(_head(node).text)}</mo>'
    if node.kind == "frac":
        return f"<mfrac>{inner}</mfrac>"
    if node.kind == "cells":
        return "<mtr>{}</mtr>".format("".join(f"<mtd>{_mathml(part)}</mtd>" for part in node.parts))
    if node.kind == "table":
        left, right = (f"<mo>{escape(fence)}</mo>" if fence else "" for fence in _MATRICES[node.text])
        return f"<mrow>{left}<mtable>{inner}</mtable>{right}</mrow>"
    if node.kind == "binom":
        return f'<mrow><mo>(</mo><mfrac linethickness="0">{inner}</mfrac><mo>)</mo></mrow>'
    if node.kind == "sqrt":
        return f"<msqrt>{inner}</msqrt>"
    if node.kind == "over":
        return f'<mover accent="true">{inner}<mo stretchy="false">{text}</mo></mover>'
    if node.kind == "script":
        base, lower, upper = node.parts
        first, tags = _mathml(base), ("msub", "msup", "msubsup")
        if base is not None and base.text in _LIMITS:  # below and above, in a formula on a line of its own
            tags = ("munder", "mover", "munderover")
            first = first.replace('<mi mathvariant="normal">', f"<mo {_NAMED}>").replace("</mi>", "</mo>")
        if lower is None or upper is None:
            tag, only = (tags[0], lower) if upper is None else (tags[1], upper)
            return f"<{tag}>{first}{_mathml(only)}</{tag}>"
        return f"<{tags[2]}>{first}{_mathml(lower)}{_mathml(upper)}</{tags[2]}>"
    return f"<{node.kind}>{text}</{node.kind}>"


def _spaced_row(row: _Node) -> list[str]:
    """Return the parts: a thin space after a function's name, no space after a sign."""
    texts = []
    for before, part, after in zip((None, *row.parts), row.parts, (*row.parts[1:], None), strict=False):
        text = _mathml(part)
        if part is not None and part.kind == "mo" and part.text in "−+±" and _opens(before):
            text = text.replace("<mo", '<mo form="prefix"', 1)
        texts.append(text)
        if _head(part).kind == "name" and after is not None and _head(after).text not in _FENCES:
            texts.append('<mspace width="0.17em"></mspace>')
    return texts


def _opens(node: _Node | None) -> bool:
    """Return whether a sign after the node belongs to what follows."""
    return node is None or (node.kind == "mo" and node.text not in _CLOSING)


def _breakable(formula: _Node) -> str:
    """Return a formula as MathML, a long one in pieces between which a line may end."""
    parts = formula.parts if formula.kind == "row" else (formula,)
    pieces: list[list[_Node | None]] = [[]]
    depth = 0
    for part in parts:
        text = _head(part).text
        depth += (text in "([{⟨⌊⌈") - (text in ")]}⟩⌋⌉") if text else 0
        if pieces[-1] and depth == 0 and len(parts) > _LONG and part is not None and part.text in _RELATIONS:
            pieces.append([])
        pieces[-1].append(part)
    rows = [_Node("row", parts=tuple(piece)) for piece in pieces]
    first, *rest = (_mathml(row) for row in rows)
    # a piece begins with its relation, which is to be spaced as between two terms
    rest = [text.replace("<mo>", '<mo form="infix">', 1) for text in rest]
    return "<wbr>".join(f"<math>{text}</math>" for text in (first, *rest))


def _head(node: _Node | None) -> _Node:
    """Return the base of a scripted or enlarged node, and any other node itself."""
    while node is not None and node.kind in ("script", "big"):
        node = node.parts[0]
    return node or _Node("row")


_SPACED = frozenset("≤ ≥ ≠ ≈ ∼ ≃ ≡ ∝ ≪ ≫ ∈ ∉ ⊂ ⊆ → ← ↦ ⇒ ⇔ = < > + − ± × ∪ ∩ ≳ ≲ ≍".split())


def _plain(node: _Node | None) -> str:
    if node is None:
        return ""
    if node.kind == "row":
        return _join([_plain(p) for p in node.parts], node.parts)
    if node.kind == "space":
        return " " if float(node.text) > 0.2 else ""
    if node.kind == "frac":
        above, below = map(_plain, node.parts)
        above = f"({above})" if " " in above else above
        return f"{above}/{below}" if len(below) == 1 or below.isdigit() else f"{above}/({below})"
    if node.kind == "big":
        return _plain(node.parts[0])
    if node.kind == "cells":
        return ", ".join(map(_plain, node.parts))
    if node.kind == "table":
        return "; ".join(map(_plain, node.parts)).join(_MATRICES[node.text])
    if node.kind == "binom":
        return "({} choose {})".format(*map(_plain, node.parts))
    if node.kind == "sqrt":
        return f"√{_grouped(node.parts[0])}"
    if node.kind == "over":
        inner = _plain(node.parts[0])
        return (
            unicodedata.normalize("NFC", inner + _COMBINING[node.text])
            if len(inner) == 1
            else inner + _COMBINING[node.text]
        )
    if node.kind == "script":
        base, lower, upper = node.parts
        text = _plain(base)
        if lower is not None:
            text += "_" + _grouped(lower, "{}")
        if upper is not None:
            prime = _plain(upper)
            text += prime if set(prime) <= {"′", "⊤"} else "^" + _grouped(upper, "{}")
        return text
    return node.text


def _join(texts: list[str], nodes: tuple[_Node | None, ...]) -> str:
    result = before = ""
    for text, node in zip(texts, nodes, strict=True):
        head, last = _head(node), result.rstrip()[-1:]
        if text in _SPACED:
            # after [x]_+ the plus is no operator that the sign would follow
            binary = last and last not in "([{|,;" and (last not in _SPACED or before == "script")
            result = f"{result.rstrip()} {text} " if binary else result + text
        elif text in (",", ";", ":"):
            result = f"{result.rstrip()}{text} "
        elif head.kind == "name" or head.text in ("∑", "∏"):
            result += (" " if last.isalnum() or last in ")}" else "") + f"{text} "
        elif text[:1] in ("(", "["):
            if before == "frac":  # 1/2 (1 + x)
                result = f"{result.rstrip()} {text}"
            else:
                result = result.rstrip() + text if last.isalnum() or last == "}" else result + text
        else:
            # x^2 y, not x^2y; 1/(2n) ‖w‖
            apart = (text[:1].isalnum() and before in ("script", "frac")) or (
                text[:1] == "‖" and before == "frac"
            )
            result += f" {text}" if apart and result[-1:] != " " else text
        before = node.kind if node is not None else ""
    return result.strip()


def _grouped(node: _Node | None, braces: str = "()") -> str:
    text = _plain(node)
    if braces == "{}":
        if node is not None and node.kind == "name" and text.isalpha():
            return text  # λ_max
        text = re.sub(r"\s+", "" if not re.search(r"\w\s\w", text) else " ", text)
    return text if len(text) <= 1 or text.isdigit() else f"{braces[0]}{text}{braces[1]}"


def _convert(statement: str, formula: Callable[[str], str], words: Callable[[str], str]) -> str:
    pieces = re.split(r"(?<!\\)\$", statement)
    return "".join(formula(p) if i % 2 else words(p) for i, p in enumerate(pieces))


def _prose(text: str) -> str:
    text = re.sub(r"\\(?:emph|textit|textbf|text)\{([^{}]*)\}", r"\1", text)
    text = (
        text.replace("``", "“")
        .replace("''", "”")
        .replace("---", "—")
        .replace("--", "–")
        .replace("~", "\u00a0")
    )
    return re.sub(r"\\([%&#_$ ])", r"\1", text)


def to_mathml(formula: str, display: bool = False) -> str:
    """Return one formula, without dollar signs, as MathML.

    Parameters
    ----------
    formula : str
        LaTeX.
    display : bool
        Whether it stands on a line of its own, where limits go below and above.

    Raises
    ------
    UnknownTeXError
        If it uses a command that is not covered.
    """
    node = parse(formula)
    return f'<math display="block">{_mathml(node)}</math>' if display else _breakable(node)


def to_html(statement: str) -> str:
    """Return a statement as HTML, its formulas in MathML.

    Parameters
    ----------
    statement : str
        LaTeX with inline formulas between dollar signs.

    Returns
    -------
    str
        Escaped; a formula that is not covered stands as its source in ``<code>``.
    """

    def formula(source: str) -> str:
        try:
            return to_mathml(source)
        except UnknownTeXError:
            return f'<code class="tex">{escape(source)}</code>'

    return _convert(statement, formula, lambda text: escape(_prose(text)))


def to_text(statement: str) -> str:
    """Return a statement as plain text: ``‖w‖^2 ≤ ∑_i w_i``."""

    def formula(source: str) -> str:
        try:
            return _plain(parse(source)).strip()
        except UnknownTeXError:
            return source

    return " ".join(_convert(statement, formula, _prose).split())
