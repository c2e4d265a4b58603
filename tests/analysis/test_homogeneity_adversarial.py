"""No false proof: every node of random graphs that the rules give a degree has it numerically.

Each node of a graph is the output of a network of its own, so that one traced graph of some
hundred operations tests some hundred small networks.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.graph import Graph, trace
from theodolite.analysis.homogeneity_probes import scaled_parameters
from theodolite.analysis.homogeneity_rules import Interpreter
from theodolite.analysis.scaling import CONSTANT, Scaling

C, D = 4, 6  # every tensor has shape (n, C, D)
ALPHAS = (0.5, 2.0, 8.0, 3.0)
# Powers of two scale floating-point numbers exactly; the rounding of others may move what a jump decides.
JUMPS = set("sign gt ge lt le argmax sort topk atan2 round where masked_fill".split())


def assign(x: Tensor, y: Tensor) -> Tensor:
    out = x.clone()
    out[:, 0] = y[:, 1]
    out[:, 1] *= 2
    return out


def fill(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], C, D, dtype=x.dtype)
    out[:, 1:3] = x[:, :2]
    out[:, 3].fill_(0.0)
    return out


def add_one(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 2] += 1.0
    return out


def causal(x: Tensor) -> Tensor:
    mask = torch.triu(torch.full((C, C), float("-inf"), dtype=x.dtype), 1)
    return x @ x.transpose(1, 2) + mask


UNARY = {
    "relu": F.relu, "leaky": lambda x: F.leaky_relu(x, 0.1), "abs": torch.abs, "neg": lambda x: -x, "double": lambda x: 2 * x,
    "half": lambda x: x / 2, "plus one": lambda x: x + 1, "minus zero": lambda x: x - 0.0, "rsub": lambda x: 1 - x,
    "one over": lambda x: 1 / (x + 1.0), "reciprocal": torch.reciprocal, "square": torch.square,
    "root": lambda x: x.abs().sqrt(), "power": lambda x: x.abs() ** 1.5, "cube": lambda x: x**3, "zeroth": lambda x: x**0,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "elu": F.elu, "softplus": F.softplus,
    "softmax": lambda x: x.softmax(-1), "exp": lambda x: x.clamp(max=3.0).exp(), "relu6": F.relu6, "hardtanh": F.hardtanh,
    "clamp zero": lambda x: x.clamp(min=0), "clamp one": lambda x: x.clamp(-1, 1), "clamp min": lambda x: torch.clamp_min(x, 0.0),
    "max pool": lambda x: F.max_pool1d(x, 3, 1, 1), "average pool": lambda x: F.avg_pool1d(x, 3, 1, 1),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x, 2).repeat(1, 1, 3), "adaptive max": lambda x: F.adaptive_max_pool1d(x, D),
    "flip": lambda x: x.flip(2), "roll": lambda x: x.roll(1, 2), "transpose": lambda x: x.reshape(-1, D, C).transpose(1, 2),
    "mean": lambda x: x - x.mean(2, keepdim=True), "sum": lambda x: x.sum(1, keepdim=True).expand(-1, C, -1),
    "cumsum": lambda x: x.cumsum(2), "sort": lambda x: x.sort(2).values, "order": lambda x: x.sort(2).indices.to(x.dtype),
    "top": lambda x: x.topk(3, 2).values.repeat(1, 1, 2), "amax": lambda x: x.amax(2, keepdim=True) + x,
    "dim max": lambda x: x.max(2, keepdim=True).values - x, "norm": lambda x: x / torch.linalg.vector_norm(x, dim=2, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=2), "std": lambda x: x + x.std(2, keepdim=True), "var": lambda x: x * 0 + x.var(2, keepdim=True),
    "sign": torch.sign, "positive": lambda x: (x > 0).to(x.dtype), "above half": lambda x: (x > 0.5).to(x.dtype),
    "where zero": lambda x: torch.where(x > 0, x, 0.0), "where one": lambda x: torch.where(x > 0, x, 1.0),
    "mask": lambda x: x.masked_fill(x < 0, 0.0), "mask inf": lambda x: x.masked_fill(x < 0, float("-inf")).softmax(2),
    "zero": torch.zeros_like, "ones": torch.ones_like, "pad": lambda x: F.pad(x, (1, -1)), "pad one": lambda x: F.pad(x, (1, -1), value=1.0),
    "reflect": lambda x: F.pad(x, (1, 1), mode="reflect")[:, :, 1:-1], "round": torch.round, "to int": lambda x: x.to(torch.int64).to(x.dtype),
    "layer norm": lambda x: F.layer_norm(x, (D,)), "exact layer norm": lambda x: F.layer_norm(x, (D,), eps=0.0),
    "group norm": lambda x: F.group_norm(x, 2, eps=0.0), "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm": F.instance_norm, "rms norm": lambda x: F.rms_norm(x, (D,)),
    "dropout": lambda x: F.dropout(x, 0.3, True), "channel dropout": lambda x: F.dropout1d(x, 0.3, True),
    "one": add_one, "causal": lambda x: causal(x) @ x, "gram": lambda x: (x @ x.transpose(1, 2)) @ x,
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x), "log sum": lambda x: x + x.logsumexp(2, keepdim=True),
    "arg": lambda x: x.gather(2, x.argmax(2, keepdim=True)).expand(-1, -1, D), "fft": lambda x: torch.fft.fft(x).abs(),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0)[:, :, ::2], "shrink": lambda x: F.hardshrink(x, 0.1),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0), "threshold half": lambda x: F.threshold(x, 0.5, 0.0), "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
}  # fmt: skip
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": lambda x, y: x / y, "safe div": lambda x, y: x / (y.abs() + 1),
    "maximum": torch.maximum, "minimum": torch.minimum, "cat": lambda x, y: torch.cat([x[:, :2], y[:, 2:]], 1),
    "stack": lambda x, y: torch.stack([x, y]).sum(0), "where": lambda x, y: torch.where(x > y, x, y), "pick": lambda x, y: torch.where(x > 0, y, -y),
    "matmul": lambda x, y: (x @ y.transpose(1, 2)) @ x, "einsum": lambda x, y: torch.einsum("ncd,nce->nde", x, y)[:, :C],
    "attend": lambda x, y: F.scaled_dot_product_attention(x.sign(), x.sign(), y), "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y: torch.addcmul(x, x, y), "distance": lambda x, y: x * 0 + torch.cdist(x, y).mean((1, 2), keepdim=True), "assign": assign, "fill": fill,
    "compare": lambda x, y: (x >= y).to(x.dtype), "bmm": lambda x, y: torch.baddbmm(x, x @ y.transpose(1, 2), y),
    "hypot": torch.hypot, "angle": torch.atan2, "power": lambda x, y: x.abs() ** y.clamp(-1, 1),
}  # fmt: skip

# drawn less often, so that programs stay homogeneous for some length
BREAKING = set(
    """plus one,rsub,one over,sigmoid,tanh,gelu,silu,elu,softplus,softmax,exp,relu6,hardtanh,clamp one,where one,mask inf,
    pad one,round,to int,layer norm,rms norm,normalize,one,causal,log sum,attention,shrink,threshold half,glu,above half,
    safe div,power,ones,zero,batch norm,instance norm,order,sign,positive,zeroth,compare,angle""".replace(
        "\n    ", ""
    ).split(",")
)
assert {*UNARY, *BINARY} >= BREAKING


class Program(nn.Module):
    """A random program over tensors of one shape, of functions and modules."""

    def __init__(self, seed: int, length: int = 40) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.free = nn.Parameter(torch.randn(C, D))
        self.frozen = nn.Parameter(torch.randn(C, D), requires_grad=False)
        self.register_buffer("nothing", torch.zeros(C, D))
        self.layers = nn.ModuleDict()
        for step in range(length):
            kind = draw.choice(["unary"] * 4 + ["binary"] * 3 + ["module"] * 3)
            operands = draw.randrange(step + 4), draw.randrange(step + 4)
            if kind == "module":
                name = f"m{step}"
                self.layers[name] = self.module(draw)
            else:
                names = set(UNARY if kind == "unary" else BINARY)
                name = draw.choice(sorted(names & BREAKING if draw.random() < 0.1 else names - BREAKING))
            self.steps.append((name, *operands))

    @staticmethod
    def module(draw: random.Random) -> nn.Module:
        bias = draw.random() < 0.3
        batch_norm = nn.BatchNorm1d(C, affine=draw.random() < 0.5)
        if draw.random() < 0.5:
            batch_norm.running_mean.fill_(0.3)
        tied = nn.Linear(D, D, bias=False)
        return draw.choice(
            [
                nn.Linear(D, D, bias=bias), nn.Conv1d(C, C, 3, padding=1, bias=bias), nn.Linear(D, D, bias=False),
                nn.Conv1d(C, C, 3, padding=1, groups=2, bias=False, padding_mode="circular"), nn.ConvTranspose1d(C, C, 3, padding=1, bias=bias),
                batch_norm.train(draw.random() < 0.5), nn.LayerNorm(D, eps=draw.choice([0.0, 1e-5])), nn.PReLU(),
                nn.Sequential(tied, nn.ReLU(), tied), nn.Dropout(0.5), nn.Sequential(nn.PReLU().requires_grad_(False)),
                nn.utils.parametrizations.weight_norm(nn.Linear(D, D, bias=False)), nn.GroupNorm(2, C, eps=0.0),
            ]
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        values = [x, x * 0 + self.free, x * 0 + self.frozen, x * 0 + self.nothing]
        for name, one, two in self.steps:
            if name in self.layers:
                values.append(self.layers[name](values[one]))
            elif name in BINARY and not (name in UNARY and (one + two) % 2):
                values.append(BINARY[name](values[one], values[two]))
            else:
                values.append(UNARY[name](values[one]))
        return torch.cat(values, 1)


def observed(graph: Graph, x: Tensor, alpha: float, wrt: str) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    scaled = {id(p) for p in scaled_parameters(graph.model)} if wrt == "parameters" else set()
    overrides = {
        n.target: alpha * graph.value_of(n)
        for n in graph.nodes
        if n.op == "parameter" and id(graph.value_of(n)) in scaled
    }

    def observe(node, value):  # type: ignore[no-untyped-def]
        if isinstance(value, Tensor):
            seen[node.name] = value.detach().clone()

    with torch.no_grad():
        torch.manual_seed(7)
        graph.run(alpha * x if wrt == "input" else x, overrides=overrides, observe=observe)
    return seen


def largest(value: Tensor) -> float:
    finite = value.to(torch.complex128).abs()[value.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def violation(base: Tensor, scaled: Tensor, alpha: float, degree: float, operands: float) -> float:
    """Largest deviation from base * alpha^degree, relative to the largest entry of result and operands."""
    expected = base.to(torch.complex128) * alpha**degree
    difference = (scaled.to(torch.complex128) - expected).abs()
    same = (base == scaled) | (base.isnan() & scaled.isnan())
    difference[same & ~base.isfinite()] = 0.0
    size = max(largest(expected), operands)
    return float(difference.max()) / size if size > 0.0 else float(difference.max())


def broken(graph: Graph, x: Tensor, wrt: str) -> tuple[list[str], Counter[str], int]:
    """Return the false proofs, the operations proved at a degree other than 0, and the number of proofs."""
    variables = {id(p) for p in scaled_parameters(graph.model)} if wrt == "parameters" else set()
    source = Scaling(1.0) if wrt == "input" else CONSTANT
    scalings = Interpreter(graph, variables, source).run()
    runs = {alpha: observed(graph, x, alpha, wrt) for alpha in (1.0, *ALPHAS)}
    rough: set[str] = set()
    false: list[str] = []
    moving: Counter[str] = Counter()
    proofs = 0
    for node, scaling in scalings.items():
        if node.op in JUMPS or any(n.name in rough for n in node.inputs):
            rough.add(node.name)
        if scaling.fault is not None or node.name not in runs[1.0] or node.op == "new_empty":
            continue
        proofs += 1
        if scaling.degree != 0.0:
            moving[node.op] += 1
        for alpha in ALPHAS[:3] if node.name in rough else ALPHAS:
            operands = max(
                (largest(runs[alpha][n.name]) for n in node.inputs if n.name in runs[alpha]), default=0.0
            )
            for degree in (1.0, 2.0) if scaling.free else (scaling.degree,):
                error = violation(runs[1.0][node.name], runs[alpha][node.name], alpha, degree, operands)
                if not error <= 1e-9:
                    false.append(f"{node}: degree {degree} at {alpha}: error {error:.1e}")
    return false, moving, proofs


@pytest.mark.parametrize("seed", range(3))
def test_no_false_proof(seed):
    torch.manual_seed(seed)
    x = torch.randn(3, C, D, dtype=torch.float64)
    graph = trace(Program(seed).double(), x)
    assert graph.traced, graph.reason
    seen: Counter[str] = Counter()
    for wrt in ("parameters", "input"):
        false, moving, proofs = broken(graph, x, wrt)
        assert false == []
        assert proofs >= 30
        seen += moving
    assert sum(seen.values()) >= 10
