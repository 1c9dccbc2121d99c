"""The cloud half: it holds the weights and the clients' public keys, and computes on what it cannot read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import CloudPart
from delta.errors import BundleError, ConfigError, ModelError, RequestError
from delta.methods.he.circuit import Circuit
from delta.methods.he.keys import RELIN
from delta.methods.he.scheme import Evaluator, Scheme, bytes_of, bytes_tensor, from_bytes, tensor_bytes
from delta.methods.he.sessions import Sessions
from delta.methods.he.spec import Spec
from delta.methods.schema import Operation, TensorSpec

__all__ = ["EVALUATE", "KEYS", "HeCloud", "load_spec", "result_name"]

KEYS, EVALUATE = "keys", "evaluate"
"""Names of the operations: one public key of a session; one encrypted record to its encrypted logits."""


def result_name(number: int) -> str:
    """Name of a ciphertext in an answer."""
    return f"y{number}"


def load_spec(manifest: Manifest) -> tuple[Spec, Circuit]:
    """What a manifest's settings say.

    Raises:
        BundleError: they are not those of method `he`, or insecure, or of other records.
    """
    try:
        spec = Spec.parse(manifest.settings, what="manifest: settings")
        circuit = Circuit(spec, manifest.input.shape)
    except (ConfigError, ModelError) as error:
        raise BundleError(f"{error}; make the bundle again") from None
    if spec.widths[-1] != len(manifest.class_names):
        raise BundleError(
            f"the manifest names {len(manifest.class_names)} classes, and its circuit ends with {spec.widths[-1]} "
            "logits; make the bundle again"
        )
    return spec, circuit


class HeCloud:
    """Keys of a few sessions, and the circuit.

    Args:
        part: manifest and weights.
        sessions: clients whose keys are held at a time.
        in_use_s: how long a client's keys are safe from making room for another's, after their last use.

    Raises:
        BundleError: the weights do not fit the manifest.
        MethodError: TenSEAL is not installed.
    """

    def __init__(self, part: CloudPart, *, sessions: int = 8, in_use_s: float = 5.0) -> None:
        spec, self._circuit = load_spec(part.manifest)
        self._scheme = Scheme(spec.ring)
        self._constants = self._prepared(part.cloud)
        self._steps = {self._scheme.element(step): step for step in self._circuit.rotations}
        self._needed = {*self._steps, *([RELIN] if self._circuit.squares else [])}
        primes = len(spec.ring.bits)
        self._key_bytes = 16 * (primes - 1) * primes * spec.ring.degree  # of one key, unpacked
        self._sessions = Sessions(
            len(self._needed), key_bytes=self._key_bytes, most=sessions, in_use_s=in_use_s
        )
        session, data = TensorSpec(torch.uint8, (16,)), TensorSpec(torch.uint8, ("m",))
        number = TensorSpec(torch.int64, (1,))
        self.operations: dict[str, Operation] = {
            KEYS: Operation(
                {"session": session, "element": number, "key": data}, {"missing": number}, self._take_key
            ),
            EVALUATE: Operation(
                {"session": session, "x": data},
                {
                    result_name(i): TensorSpec(torch.uint8, (f"m{i}",))
                    for i in range(len(self._circuit.results))
                },
                self._evaluate,
            ),
        }

    def _prepared(self, weights: Mapping[str, Tensor]) -> list[tuple[list[list[Any]], list[Any]]]:
        """Every constant as a plaintext of the level at which it is used."""
        prepared = []
        scheme = self._scheme
        for number, layer in enumerate(self._circuit.layers):
            try:
                weight, bias = weights[f"{number}.weight"].double(), weights[f"{number}.bias"].double()
                if tuple(weight.shape) != layer.weight_shape or len(bias) != len(weight):
                    raise ValueError("other sizes")
                constants = layer.constants(weight, bias)
                level = 2 * number
                products = [
                    [
                        None if w is None else scheme.encoded(w, level=level, scale=scheme.primes[level])
                        for w in group
                    ]
                    for group in constants.weights
                ]
                sums = [
                    scheme.encoded(b, level=level + 1, scale=scheme.scales[level + 1])
                    for b in constants.biases
                ]
            except (KeyError, RuntimeError, ValueError, IndexError):
                raise BundleError(
                    f"the weights of encrypted layer {number} do not fit the manifest; make the bundle again"
                ) from None
            if not all(any(w is not None for w in group) for group in products):
                raise BundleError(
                    f"encrypted layer {number} has an output whose weights are all zero at "
                    f"{scheme.ring.precision} bits; remove it, or raise the precision"
                )
            prepared.append((products, sums))
        return prepared

    def _take_key(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        element = int(tensors["element"])
        if element not in self._needed:
            raise RequestError(
                f"{KEYS}: no rotation of this circuit needs that key; use the bundle of this cloud"
            )
        seal = self._scheme.seal
        empty = seal.RelinKeys() if element == RELIN else seal.GaloisKeys()
        try:
            data = tensor_bytes(tensors["key"])
            key = from_bytes(empty, self._scheme.context, data, size=self._key_bytes)
        except ValueError as error:
            raise RequestError(
                f"{KEYS}: no public key of this ring ({error}); send one of TenSEAL's"
            ) from None
        fits = key.has_key(2) if element == RELIN else key.has_key(element)
        if not fits or key.size() != 1:
            raise RequestError(f"{KEYS}: another key than the request names; send each by itself")
        name = tensor_bytes(tensors["session"])
        return {"missing": torch.tensor([self._sessions.add(name, element, key)])}

    def _evaluate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name = tensor_bytes(tensors["session"])
        keys = self._sessions.keys_of(name)
        if keys is None:
            raise RequestError(f"{EVALUATE}: the keys of this session are not here; send them (again)")
        scheme = self._scheme
        try:
            x = scheme.ciphertext(tensor_bytes(tensors["x"]), level=0, scale=scheme.scales[0])
        except ValueError as error:
            raise RequestError(f"{EVALUATE}: no encrypted record ({error}); send one of this ring") from None
        rotations = {step: keys[element] for element, step in self._steps.items()}
        ops = Evaluator(scheme, relin=keys.get(RELIN), rotations=rotations)
        try:
            results = self._circuit.run(x, self._constants, ops)
        except (ValueError, RuntimeError, IndexError):
            # A transparent ciphertext or another's key: SEAL's own checks have caught it.
            raise RequestError(
                f"{EVALUATE}: the ciphertext cannot be computed on; encrypt it again"
            ) from None
        self._sessions.used(name)
        return {result_name(i): bytes_tensor(bytes_of(result)) for i, result in enumerate(results)}
