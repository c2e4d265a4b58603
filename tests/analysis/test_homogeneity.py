"""Degrees of homogeneity: proved by the rules with probes off, refuted by probes with a witness."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.homogeneity import analyse, degree
from theodolite.testing import check_global_state, snapshot

D = 6


def lin(i: int = D, o: int = D, bias: bool = False) -> nn.Linear:
    return nn.Linear(i, o, bias=bias)


def conv(i: int, o: int, **options) -> nn.Conv2d:  # type: ignore[no-untyped-def]
    return nn.Conv2d(i, o, 3, padding=1, bias=False, **options)


def chain(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


class Apply(nn.Module):
    """A function of submodules and the input."""

    def __init__(self, function, *modules: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)
        self.weight = nn.Parameter(torch.randn(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def residual(identity: bool) -> nn.Module:
    def run(self: Apply, x: Tensor) -> Tensor:
        h = self.parts[0](x)
        return self.parts[2]((h if identity else self.parts[3](h)) + F.relu(self.parts[1](h)))

    return Apply(run, lin(), lin(), lin(D, 3), lin())


def branches(equal: bool) -> nn.Module:
    def run(self: Apply, x: Tensor) -> Tensor:
        return self.parts[2](torch.cat([self.parts[0](x), self.parts[1](x)], 1))

    return Apply(
        run, chain(lin(), nn.ReLU(), lin()), chain(lin(), nn.ReLU(), lin()) if equal else lin(), lin(2 * D, 3)
    )


def attention(linear: bool) -> nn.Module:
    def run(self: Apply, x: Tensor) -> Tensor:
        x = x.unflatten(1, (3, 2))
        q, k, v = (part(x) for part in self.parts[:3])
        scores = q @ k.transpose(1, 2)
        return self.parts[3]((scores if linear else scores.softmax(-1)) @ v).flatten(1)

    return Apply(run, *(lin(2, 2) for _ in range(4)))


def fused_attention(trained_scores: bool) -> nn.Module:
    def run(self: Apply, x: Tensor) -> Tensor:
        x = x.unflatten(1, (3, 2))
        q = self.parts[0](x) if trained_scores else x
        return F.scaled_dot_product_attention(q, x, self.parts[1](x)).flatten(1)

    return Apply(run, lin(2, 2), lin(2, 2))


def batch_norm(*, affine: bool = True, mean: float = 0.0, kind=nn.BatchNorm1d) -> nn.Module:  # type: ignore[no-untyped-def]
    norm = kind(D, affine=affine)
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(0.7)
    return norm


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def tied() -> nn.Module:
    shared = lin()
    return chain(shared, nn.ReLU(), shared, nn.ReLU(), shared)


IMAGE = (D, 8, 8)
# name -> (module, training mode, degree in the parameters, degree in the input, input shape); None: not proved
PROVED = {
    "linear": (lambda: lin(), False, 1, 1, (D,)),
    "three layers": (lambda: chain(lin(), nn.ReLU(), lin(), nn.LeakyReLU(0.1), lin()), False, 3, 1, (D,)),
    "first bias": (lambda: chain(lin(bias=True), nn.ReLU(), lin()), False, 2, None, (D,)),
    "last bias": (lambda: chain(lin(), nn.ReLU(), lin(bias=True)), False, None, None, (D,)),
    "frozen first layer": (lambda: chain(frozen(lin()), nn.ReLU(), lin()), False, 1, 1, (D,)),
    "all frozen": (lambda: frozen(chain(lin(), nn.ReLU(), lin())), False, 2, 1, (D,)),
    "tied": (tied, False, 3, 1, (D,)),
    "embedding": (lambda: chain(nn.Embedding(9, D), nn.Flatten(), lin(3 * D, 2)), False, 2, None, "tokens"),
    "convolutions": (lambda: chain(conv(D, 4), nn.ReLU(), conv(4, 4, groups=2), nn.Flatten(), lin(256, 2)), False, 3, 1, IMAGE),
    "pools": (lambda: chain(conv(D, 4), nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1), nn.AdaptiveMaxPool2d(2), nn.Flatten()), False, 1, 1, IMAGE),
    "global pool": (lambda: chain(conv(D, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), lin(4, 2)), False, 2, 1, IMAGE),
    "constant padding": (lambda: chain(conv(D, 4), nn.ConstantPad2d(1, 0.5)), False, None, None, IMAGE),
    "dropout, evaluation": (lambda: chain(lin(), nn.Dropout(), lin()), False, 2, 1, (D,)),
    "dropout, training": (lambda: chain(lin(), nn.Dropout(), lin()), True, 2, 1, (D,)),
    "channel dropout": (lambda: chain(conv(D, 4), nn.Dropout2d(), conv(4, 2)), True, 2, 1, IMAGE),
    "residual": (lambda: residual(False), False, 3, 1, (D,)),
    "identity skip": (lambda: residual(True), False, None, 1, (D,)),
    "equal branches": (lambda: branches(True), False, 3, 1, (D,)),
    "unequal branches": (lambda: branches(False), False, None, 1, (D,)),
    "batch norm, evaluation": (lambda: chain(lin(), batch_norm(), nn.ReLU(), lin()), False, None, 1, (D,)),
    "batch norm, no shift": (lambda: chain(lin(), batch_norm(affine=False), nn.ReLU(), lin()), False, 2, 1, (D,)),
    "batch norm, mean": (lambda: chain(lin(), batch_norm(affine=False, mean=0.5), lin()), False, None, None, (D,)),
    "batch norm of the input": (lambda: chain(batch_norm(mean=0.5), lin()), False, 2, None, (D,)),
    "frozen batch norm": (lambda: chain(lin(), frozen(batch_norm()), lin()), False, 2, 1, (D,)),
    "batch norm, training": (lambda: chain(lin(), batch_norm(), lin()), True, None, None, (D,)),
    "batch norm of the input, training": (lambda: chain(batch_norm(), lin()), True, 2, None, (D,)),
    "layer norm": (lambda: chain(lin(), nn.LayerNorm(D), lin()), False, None, None, (D,)),
    "layer norm, eps 0": (lambda: chain(lin(), nn.LayerNorm(D, eps=0.0), lin()), False, 2, 0, (D,)),
    "group norm, eps 0": (lambda: chain(conv(D, 4), nn.GroupNorm(2, 4, eps=0.0), conv(4, 2)), False, 2, 0, IMAGE),
    "instance norm": (lambda: chain(conv(D, 4), nn.InstanceNorm2d(4), conv(4, 2)), False, None, None, IMAGE),
    "softmax": (lambda: chain(lin(), nn.Softmax(1)), False, None, None, (D,)),
    "softmax of the input": (lambda: chain(nn.Softmax(1), lin()), False, 1, None, (D,)),
    "sigmoid": (lambda: chain(lin(), nn.ReLU(), lin(), nn.Sigmoid()), False, None, None, (D,)),
    "gelu": (lambda: chain(lin(), nn.GELU(), lin()), False, None, None, (D,)),
    "relu6": (lambda: chain(lin(), nn.ReLU6(), lin()), False, None, None, (D,)),
    "prelu": (lambda: chain(lin(), nn.PReLU(), lin()), False, None, 1, (D,)),
    "frozen prelu": (lambda: chain(lin(), frozen(nn.PReLU()), lin()), False, 2, 1, (D,)),
    "local response": (lambda: chain(conv(D, 4), nn.LocalResponseNorm(3), conv(4, 2)), False, None, None, IMAGE),
    "attention": (lambda: attention(False), False, None, None, (D,)),
    "linear attention": (lambda: attention(True), False, 4, 3, (D,)),
    "fused attention": (lambda: fused_attention(True), False, None, None, (D,)),
    "attention of the input": (lambda: fused_attention(False), False, 1, None, (D,)),
    "square": (lambda: Apply(lambda s, x: s.parts[1](s.parts[0](x) ** 2), lin(), lin()), False, 3, 2, (D,)),
    "root": (lambda: Apply(lambda s, x: (x @ s.weight).abs().sqrt()), False, 0.5, 0.5, (D,)),
    "quotient": (lambda: Apply(lambda s, x: (x @ s.weight) / torch.linalg.vector_norm(s.weight)), False, 0, 1, (D,)),
    "normalized": (lambda: Apply(lambda s, x: F.normalize(x @ s.weight)), False, None, None, (D,)),
    "clamp at 0": (lambda: Apply(lambda s, x: (x @ s.weight).clamp(min=0)), False, 1, 1, (D,)),
    "clamp at 1": (lambda: Apply(lambda s, x: (x @ s.weight).clamp(max=1)), False, None, None, (D,)),
    "mask": (lambda: Apply(lambda s, x: torch.where(x @ s.weight > 0, x, 0.0)), False, 0, 1, (D,)),
    "threshold": (lambda: Apply(lambda s, x: torch.where(x @ s.weight > 0.1, x, 0.0)), False, None, None, (D,)),
    "zero": (lambda: Apply(lambda s, x: x @ s.weight * 0.0), False, 0, 0, (D,)),
    "weight norm": (lambda: chain(nn.utils.parametrizations.weight_norm(lin()), nn.ReLU(), lin()), False, 2, 1, (D,)),
    "cast to integers": (lambda: Apply(lambda s, x: (x @ s.weight).long().to(x.dtype)), False, None, None, (D,)),
    "lstm": (lambda: Apply(lambda s, x: s.parts[0](x.unflatten(1, (3, 2)))[0].flatten(1), nn.LSTM(2, 2, batch_first=True)), False, None, None, (D,)),
    "recurrence": (lambda: Apply(recurrence, lin(2, 2), lin(2, 2)), False, None, 1, (D,)),
}  # fmt: skip
# not homogeneous by an eps of 1e-12, which no probe can see
OPEN = {"normalized"}


def recurrence(self: Apply, x: Tensor) -> Tensor:
    hidden = torch.zeros(x.shape[0], 2, dtype=x.dtype)
    for step in x.unflatten(1, (3, 2)).unbind(1):
        hidden = F.relu(self.parts[0](step) + self.parts[1](hidden))
    return hidden


def inputs(shape, dtype: torch.dtype = torch.float64) -> Tensor:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    if shape == "tokens":
        return torch.randint(0, 9, (4, 3), generator=generator)
    return torch.randn(4, *shape, generator=generator, dtype=dtype)


@pytest.fixture(scope="module", params=sorted(PROVED))
def case(request):  # type: ignore[no-untyped-def]
    build, training, in_parameters, in_input, shape = PROVED[request.param]
    torch.manual_seed(0)
    model, x = build().double().train(training), inputs(shape)
    return model, x, trace(model, x), in_parameters, in_input, request.param in OPEN


@pytest.mark.parametrize("wrt", ["parameters", "input"])
def test_rules_alone_prove_and_probes_refute_the_rest(case, wrt):
    model, x, graph, in_parameters, in_input, open_question = case
    expected = in_parameters if wrt == "parameters" else in_input
    bare = analyse(model, x, wrt=wrt, graph=graph, probes=False)
    probed = analyse(model, x, wrt=wrt, graph=graph, probes=True)
    assert not bare.refuted
    if expected is not None:
        assert bare.proved
        assert probed.proved
        assert bare.degree == probed.degree == expected
        assert probed.probe_error <= probed.tolerance or expected == 0
    else:
        assert not bare.proved
        assert bare.degree is None
        assert not probed.proved
        assert probed.refuted != (open_question or (wrt == "input" and not x.is_floating_point()))
        if probed.refuted:
            assert probed.witness["layer_type"]
            assert probed.witness["alpha"] in (0.25, 0.5, 2.0, 4.0)


def test_the_witness_names_the_layer_the_factor_and_the_sample():
    torch.manual_seed(0)
    model = chain(lin(), nn.ReLU(), lin(), nn.ReLU(), lin(D, 2), nn.Sigmoid())
    x = inputs((D,), torch.float32)
    value = degree(model, x)
    assert (value.value, value.kind) == (None, "exact")
    witness = value.witness
    assert (witness["layer"], witness["layer_type"], witness["alpha"], witness["expected"]) == (
        "5",
        "Sigmoid",
        2.0,
        8.0,
    )
    row = witness["sample"]
    twice = torch.func.functional_call(model, {k: 2 * p for k, p in model.named_parameters()}, (x,))
    ratio = (twice[row, witness["output"]] / model(x)[row, witness["output"]]).item()
    assert witness["ratio"] == pytest.approx(ratio, rel=1e-5)
    shown = f"f(2w) = {ratio:.3g} f(w) at sample {row}, not 8 f(w)"
    assert value.note == f"layer '5' (Sigmoid) is not positively homogeneous: {shown}"
    json.dumps(value.to_dict())


def test_a_zero_bias_that_is_trained_is_refuted_at_other_weights():
    model = chain(lin(), nn.ReLU(), lin(bias=True))
    nn.init.zeros_(model[2].bias)
    found = analyse(model, inputs((D,), torch.float32), wrt="parameters")
    assert found.refuted
    assert "at random" not in found.reason
    assert "random values" in found.reason
    assert found.witness["layer"] == "2"


def test_a_zero_bias_is_no_obstacle_in_the_input_or_when_frozen():
    model = chain(lin(), nn.ReLU(), lin(bias=True))
    nn.init.zeros_(model[2].bias)
    x = inputs((D,), torch.float32)
    assert analyse(model, x, wrt="input").degree == 1
    model[2].bias.requires_grad_(False)
    assert analyse(model, x, wrt="parameters").degree == 2


def test_no_rule_and_no_refutation_is_open():
    model = Apply(lambda s, x: torch.special.erfc(-1e9 * (x @ s.weight)) * (x @ s.weight))
    found = analyse(model, inputs((D,)), wrt="parameters")
    assert (found.proved, found.refuted, found.degree) == (False, False, 1.0)
    assert found.probe_error <= found.tolerance
    assert "special_erfc" in found.reason
    assert "proves nothing" in found.reason
    assert degree(model, inputs((D,))).kind == "score"
    bare = analyse(model, inputs((D,)), wrt="parameters", probes=False)
    assert (bare.proved, bare.refuted, bare.degree) == (False, False, None)
    assert degree(model, inputs((D,)), probes=False).value is None


def test_integers_cannot_be_scaled():
    found = analyse(nn.Embedding(9, 3), inputs("tokens"), wrt="input")
    assert (found.proved, found.refuted, found.degree) == (False, False, None)
    assert "torch.int64" in found.reason


class Branching(nn.Module):
    """A forward that depends on the data, so that it cannot be traced."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x) if x.sum().item() > -1e9 else x


def test_untraceable_models_are_refuted_by_probes_and_a_suspect_is_named():
    x = inputs((D,))
    refuted = analyse(Branching(lin(), nn.Tanh(), lin()).double(), x, wrt="parameters")
    assert refuted.refuted
    assert refuted.witness["layer"] == "parts.1"
    assert "cannot be traced" in refuted.reason
    assert (
        analyse(Branching(lin(), lin(bias=True)).double(), x, wrt="parameters").witness["layer"] == "parts.1"
    )
    open_ = analyse(Branching(lin(), nn.ReLU(), lin()).double(), x, wrt="parameters")
    assert (open_.proved, open_.refuted, open_.degree) == (False, False, 2.0)


def test_a_chain_is_proved_by_its_modules_when_it_cannot_be_traced_as_a_whole():
    model, x = chain(lin(), chain(nn.ReLU(), lin())).double(), inputs((D,))
    whole = trace(model, x)
    whole.nodes, whole.output, whole.source, whole.reason = [], None, "modules", "for the test"
    found = analyse(model, x, wrt="parameters", graph=whole, probes=False)
    assert found.proved
    assert found.degree == 2
    assert "modules one after another" in found.reason
    model[1][1] = lin(bias=True).double()
    found = analyse(model, x, wrt="parameters", graph=whole, probes=False)
    assert not found.proved
    assert found.witness["layer"] == "1.1"


def test_nothing_is_changed():
    model = chain(lin(), nn.BatchNorm1d(D), nn.Dropout(), lin(bias=True)).train()
    before = snapshot(model)
    check_global_state(
        lambda: [degree(model, inputs((D,), torch.float32), wrt) for wrt in ("parameters", "input")]
    )
    assert snapshot(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_probed_in_float64(dtype):
    model = chain(lin(), nn.ReLU(), lin()).to(dtype)
    found = analyse(model, inputs((D,), dtype), wrt="parameters")
    assert found.degree == 2
    assert found.probe_error == 0.0


def test_what_may_be_scaled_is_checked():
    with pytest.raises(ValueError, match="wrt: expected 'parameters' or 'input', got 'weights'"):
        degree(lin(), inputs((D,), torch.float32), "weights")


def test_a_tuple_is_refused():
    with pytest.raises(ValueError, match="a tuple of 2"):
        degree(nn.LSTM(D, 3), inputs((D,), torch.float32))
