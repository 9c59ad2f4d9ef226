import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipschitz.network.activations import ACTIVATION_FUNCTIONS, ACTIVATION_MODULES
from lipschitz.network.activations.piecewise import ELU, Hardtanh, PReLU, Softshrink
from lipschitz.network.activations.smooth import Softplus

_ARGUMENTS = {
    torch.clamp: (-0.5, 0.7),
    torch.clip: (-0.5, 0.7),
    "clamp": (-0.5,),
    "clip": (None, 0.7),
    torch.clamp_min: (0.2,),
    "clamp_min": (0.2,),
    torch.clamp_max: (0.2,),
    "clamp_max": (0.2,),
    torch.pow: (2,),
    operator.pow: (2.0,),
    "pow": (2,),
    "__pow__": (2,),
    F.leaky_relu: (-0.3,),
    F.elu: (1.5,),
    F.celu: (2.0,),
    F.softplus: (2.0,),
    F.hardtanh: (-2.0, 0.5),
    F.softshrink: (0.3,),
}


def assert_same_function(entry, z, value):
    """The entry's value and slope are torch's and autograd's."""
    (gradient,) = torch.autograd.grad(value.sum(), z)
    with torch.no_grad():
        torch.testing.assert_close(entry.forward(z), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(entry.slope(z), gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", ACTIVATION_FUNCTIONS, ids=lambda f: getattr(f, "__name__", f))
def test_functions_are_torchs(function):
    z = 3 * torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments = _ARGUMENTS.get(function, ())
    if ACTIVATION_FUNCTIONS[function](*arguments).needs:
        z = z.abs() + 0.01
    z.requires_grad_()
    own = z * 1  # functions may work in place
    if isinstance(function, str):
        value = getattr(own, function)(*arguments)
    else:
        value = function(own, *arguments)
    assert_same_function(ACTIVATION_FUNCTIONS[function](*arguments), z, value)


@pytest.mark.parametrize("kind", ACTIVATION_MODULES, ids=lambda kind: kind.__name__)
def test_modules_are_torchs(kind):
    z = 3 * torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    module = kind(num_parameters=4) if kind is nn.PReLU else kind()
    value = module.double()(z)
    assert_same_function(ACTIVATION_MODULES[kind](module, z), z, value)


@pytest.mark.parametrize(
    "module",
    [
        nn.GELU("tanh"),
        nn.ELU(1.7),
        nn.CELU(0.5),
        nn.Softplus(3.0, 25.0),
        nn.Hardtanh(-0.3, 2.0),
        nn.LeakyReLU(1.5),
        nn.LeakyReLU(-0.5),
        nn.Softshrink(0.1),
    ],
    ids=str,
)
def test_parameters_of_modules_are_read(module):
    z = torch.linspace(-40, 40, 501, dtype=torch.float64).requires_grad_()
    assert_same_function(ACTIVATION_MODULES[type(module)](module, z), z, module(z))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 4)])
def test_prelu_has_a_slope_per_channel(shape):
    module = nn.PReLU(3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([-0.5, 0.25, 2.0]))
    z = torch.randn(2, *shape, dtype=torch.float64).requires_grad_()
    value = module(z)
    entry = ACTIVATION_MODULES[nn.PReLU](module, value)
    assert_same_function(entry, z, value)
    lower, upper = entry.slope_interval(torch.full_like(z, -1.0), torch.full_like(z, 1.0))
    weight = module.weight.detach().reshape(-1, *[1] * (len(shape) - 1)).expand(2, *shape)
    assert torch.equal(lower, weight.clamp(max=1))
    assert torch.equal(upper, weight.clamp(min=1))
    assert entry.slope_range == (-0.5, 2.0)
    assert entry.to("cpu", torch.float32).weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Softplus(threshold=5.0), "jumps"),
        (lambda: Softplus(beta=-1.0), "beta"),
        (lambda: ELU(-1.0), "alpha"),
        (lambda: ELU.celu(0.0), "alpha"),
        (lambda: Hardtanh(1.0, 1.0), "empty"),
        (lambda: Softshrink(-1.0), "threshold"),
        (lambda: ACTIVATION_FUNCTIONS[torch.pow](torch.ones(2)), "one number"),
        (lambda: ACTIVATION_FUNCTIONS[torch.pow](0), "power of 0"),
        (lambda: ACTIVATION_FUNCTIONS[torch.clamp](torch.zeros(2)), "two numbers"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_reason(make, reason):
    with pytest.raises(NotImplementedError, match=reason):
        make()


def test_prelu_of_several_networks_are_not_mixed_up():
    """Entries with tensors are compared by identity, so they may be keys."""
    assert PReLU(torch.ones(1)) != PReLU(torch.ones(1))
