"""Bounds of a box by the library, method by method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.others.box import Entry
from benchmarks.others.evaluator import stored_weights
from lipschitz import BranchOptions, MethodOptions, Prepared, load_model, make_problem
from lipschitz.bounds.methods import METHODS
from lipschitz.errors import InputError

BAB = "bab"
# From the cheapest to the dearest: what comes later should bound no worse in the time of what comes
# before. Others can be asked for, and are compared with none.
LADDER = ("ibp", "crown", "joint", "alpha", "sdp", BAB)
_TOLERANCE, _PRECISE = 1e-4, 1e-7  # relative gaps up to which a result is exact
_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "flatten": nn.Flatten}


def known_methods() -> tuple[str, ...]:
    """All names that can be asked for."""
    return (*LADDER, *(name for name in METHODS if name not in LADDER and name != "sampling"))


def library_network(entry: Entry, folder: Path) -> nn.Module:
    """The network of an entry of the manifest as a module.

    Raises:
        InputError, NotImplementedError: A file or a layer that the library does not take.
    """
    path = folder / entry["file"]
    if path.suffix == ".onnx":
        return load_model(path)
    weights = stored_weights(path)
    modules: list[nn.Module] = []
    for layer in entry["layers"]:
        if isinstance(layer, str):
            modules.append(_ACTIVATIONS[layer]())
            continue
        weight, bias = weights(layer.get("linear", layer.get("conv")))
        if "linear" in layer:
            module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            kernel = (weight.shape[2], weight.shape[3])
            stride, padding = layer.get("stride", 1), layer.get("padding", 0)
            module = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride, padding)
        module.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        modules.append(module)
    return nn.Sequential(*modules).eval()


def bounds(
    entry: Entry,
    folder: Path,
    centre: Tensor,
    radius: Tensor,
    methods: list[str],
    seconds: float,
    norm: str = "inf",
    precise: bool = False,
) -> Iterator[dict[str, Any]]:
    """Bounds of one box, one after the other.

    Args:
        entry, folder: The network.
        centre, radius: Of the box, [*input_shape] each.
        methods: Names of :func:`known_methods`.
        seconds: Time limit of each.
        norm: Of inputs and outputs.
        precise: Compute in float64, and call exact what agrees in more digits.

    Yields:
        Cells of a row for each method: ``upper``, ``lower``, ``status``, ``seconds``, ``cpu`` and
        ``note``.
    """
    model = library_network(entry, folder)
    for method in methods:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        try:
            found = _one(model, centre, radius, method, seconds, norm, precise)
        except (NotImplementedError, InputError) as error:
            found = {"status": "refused", "note": " ".join(str(error).split())[:300]}
        except MemoryError:
            found = {"status": "out of memory"}
        found.setdefault("seconds", time.perf_counter() - begin)
        yield {"method": method, "cpu": time.process_time() - begin_cpu, **found}


def _one(
    model: nn.Module,
    centre: Tensor,
    radius: Tensor,
    method: str,
    seconds: float,
    norm: str,
    precise: bool,
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"method": method, "options": MethodOptions(timeout=seconds)}
    if method == BAB:
        arguments = {"branching": BranchOptions(timeout=seconds)}
    elif method == "crown":
        arguments["engine"] = "native"
    dtype, tolerance = (torch.float64, _PRECISE) if precise else (None, _TOLERANCE)
    prepared = Prepared(model, centre.shape, norm=norm, dtype=dtype, **arguments)
    problem = make_problem(prepared.graph, centre, radius, norm=norm)
    begin = time.perf_counter()
    result = prepared.bound(problem, tolerance=tolerance)
    elapsed = time.perf_counter() - begin
    return {
        "upper": result.upper_bound if math.isfinite(result.upper_bound) else None,
        "lower": result.lower_bound,
        "status": result.status,
        "seconds": elapsed,
        "note": ", ".join(result.not_reached),
    }
