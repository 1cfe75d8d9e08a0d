"""Compare every implementation's outputs and gradients with the fp64 reference before anything is timed."""

import torch
from torch import Tensor

from benchmarks.operations.case import Candidate, Named
from tests.support.tolerances import assert_within


class Wrong(Exception):
    """An implementation does not compute what it should; the message says where and by how much."""


class Expected:
    """The reference's outputs, and its gradients for all or only some of the outputs.

    Cotangents are random and representable in bf16, so that every implementation gets the same numbers.
    """

    def __init__(self, reference: Candidate) -> None:
        self._reference = reference
        outputs = reference.outputs(reference.forward())
        self.outputs = {name: tensor.detach() for name, tensor in outputs.items()}
        generator = torch.Generator().manual_seed(1)
        self.cotangents = {
            name: torch.randn(outputs[name].shape, generator=generator, dtype=torch.float32)
            .to(torch.bfloat16)
            .to(outputs[name].device, torch.float64)
            for name in sorted(outputs)
            if outputs[name].requires_grad
        }
        self._gradients: dict[frozenset[str], Named] = {}

    def gradients(self, of_outputs: frozenset[str]) -> Named:
        """The reference's gradients if only these outputs have a cotangent."""
        if of_outputs not in self._gradients:
            outputs = self._reference.outputs(self._reference.forward())
            cotangents = {name: self.cotangents[name] for name in sorted(of_outputs)}
            self._gradients[of_outputs] = _gradients(self._reference, outputs, cotangents)
        return self._gradients[of_outputs]


def verify(candidate: Candidate, expected: Expected, tolerances: tuple[float, float], everything: bool) -> None:
    """Compare one implementation with the reference.

    Args:
        candidate: the implementation.
        expected: the results of the reference.
        tolerances: of outputs and of gradients, relative to the largest entry. Integers must be equal.
        everything: whether it must have all outputs of the reference; a peer may lack those that only ours has.

    Raises:
        Wrong: it differs.
    """
    outputs = candidate.outputs(candidate.forward())
    _require(bool(outputs), "it returns nothing that could be compared")
    strange = sorted(outputs.keys() - expected.outputs.keys())
    _require(not strange, f"the reference has no {', '.join(strange)}")
    missing = sorted(expected.outputs.keys() - outputs.keys()) if everything else []
    _require(not missing, f"it does not return {', '.join(missing)}")
    for name, tensor in outputs.items():
        _compare(name, tensor.detach(), expected.outputs[name], tolerances[0])
    with_cotangent = outputs.keys() & expected.cotangents.keys()
    wanted = expected.gradients(frozenset(with_cotangent))
    gradients = _gradients(candidate, outputs, {name: expected.cotangents[name] for name in sorted(with_cotangent)})
    _require(gradients.keys() == wanted.keys(), f"gradients of {sorted(gradients)}, expected of {sorted(wanted)}")
    for name, tensor in gradients.items():
        _compare(f"gradient of {name}", tensor, wanted[name], tolerances[1])


def _gradients(candidate: Candidate, outputs: Named, cotangents: Named) -> Named:
    """One backward pass from the outputs that have a cotangent.

    Raises:
        Wrong: an output has no graph, or a leaf got no gradient.
    """
    for tensor in candidate.leaves.values():
        tensor.grad = None
    for name in cotangents:
        _require(outputs[name].requires_grad, f"{name} has no gradient function")
    torch.autograd.backward(
        [outputs[name] for name in cotangents], [_like(cotangents[n], outputs[n]) for n in cotangents]
    )
    gradients: Named = {}
    for name, tensor in candidate.leaves.items():
        if tensor.grad is None:
            raise Wrong(f"no gradient of {name}")
        gradients[name], tensor.grad = tensor.grad, None
    return candidate.gradients(gradients)


def _compare(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    try:
        # Integers of the reference are exact, so these must be equal.
        assert_within(actual, expected, tolerance if expected.is_floating_point() else 0.0)
    except AssertionError as error:
        raise Wrong(f"{name}: {error}") from None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def _like(cotangent: Tensor, output: Tensor) -> Tensor:
    """A copy, because some kernels overwrite the gradient that they are given."""
    return cotangent.to(output.dtype, copy=True)
