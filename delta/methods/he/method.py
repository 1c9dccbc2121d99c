"""The private half of `he`: encrypt, ask, decrypt; where the cloud fails, the private model answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from delta.bundle.store import Bundle, CloudPart
from delta.errors import (
    CloudAnswerError,
    CloudError,
    CloudMismatchError,
    InputError,
    TrainingUnsupportedError,
)
from delta.methods.asking import Call, checked_answer
from delta.methods.base import Cost, Method, MethodFacts, Prediction, RecordIds, StepResult
from delta.methods.failures import reason_of
from delta.methods.he.cloud import EVALUATE, KEYS, HeCloud, load_spec, result_name
from delta.methods.he.keys import Keys, new_session
from delta.methods.he.making import encrypted_bundle
from delta.methods.he.scheme import Scheme
from delta.methods.he.spec import Mode
from delta.methods.layers import with_layers
from delta.methods.records import checked_records
from delta.methods.registry import register_method
from delta.methods.schema import CloudHalf
from delta.methods.whole import (
    WholeModel,
    allowed_targets,
    rebuilt,
    refuse_settings,
)
from delta.transport.base import Transport

__all__ = ["Encrypted"]

_RANGE = 4.0
"""How far beyond preprocessed images in [0, 1] a value may lie; it only catches data of another kind."""


@register_method
class Encrypted(Method):
    """Records leave encrypted under a key that never does; the cloud knows the weights, and no value."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="he",
        summary="a small network, or a final linear layer, computed by the cloud on encrypted records (CKKS)",
        keeps=frozenset({"I2", "I3"}),
        protects=("query input", "query label"),
        rests_on=("lattice",),
        trains=False,
    )

    def __init__(self, bundle: Bundle, *, allow: Collection[str] = ()) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._input = manifest.input
        self._spec, self._circuit = load_spec(manifest)
        self._module = rebuilt(bundle, bundle.private, allowed=allowed_targets(bundle, allow))
        self._front: nn.Module | None = None
        if self._spec.mode == "last-layer":
            self._front = with_layers(self._module, {self._spec.layer: nn.Identity()}).eval()
        self._keys: Keys | None = None
        self._scheme: Scheme | None = None
        self._session = new_session()
        self._sent = False
        self._setup = (0, 0)
        self._transport: Transport | None = None
        self._deadline_s = 10.0

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        mode: Mode = "network",
        precision: int | None = None,
        integer_bits: int = 11,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """Choose the ring, and hand the weights of what runs encrypted to the cloud.

        Args:
            model: for `network`, layers in a row with square or quadratic activations; for `last-layer`, any model
                whose result is that of an `nn.Linear`.
            mode: what runs encrypted.
            precision: bits of the scale; none: as many as the ring bears that 26 need, 28 for `last-layer`.
            integer_bits: of the logits, sign included.
            settings: there are no others.

        Raises:
            ModelError: a layer cannot run encrypted; the text names it.
            ConfigError: no secure ring is large enough, or the logits are too large.
            MethodError: TenSEAL is not installed.
        """
        refuse_settings(cls.facts.name, settings, known=("mode", "precision", "integer_bits"))
        return encrypted_bundle(
            model, cls.facts.name, mode=mode, precision=precision, integer_bits=integer_bits
        )

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The circuit with its weights; it computes on the CPU, and builds nothing of the user's."""
        return HeCloud(part)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half; the option is `allow`."""
        return cls(bundle, **options)

    @property
    def setup_bytes(self) -> tuple[int, int]:
        """Bytes (up, down) of the keys that were sent since `prepare`; no query's cost holds them."""
        return self._setup

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session and make the keys, once; they are sent with the first record."""
        self._transport, self._deadline_s = transport, deadline_s
        self._session, self._sent, self._setup = new_session(), False, (0, 0)
        if transport is not None and self._keys is None:
            self._scheme = Scheme(self._spec.ring)
            self._keys = Keys(self._scheme, self._circuit)

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Encrypt each record, decrypt what comes back; the private model answers where the cloud does not.

        `extras` holds `setup_bytes`, those of this call's keys.
        """
        x = checked_records(x, self._input.shape)
        call = Call(self._transport, deadline_s=self._deadline_s)
        inputs = self._values(x)
        if self._transport is None or self._keys is None:
            return self._alone(x, call, None)
        values = self._circuit.encoded(inputs)
        setups: list[Cost] = []
        before = self._setup
        try:
            try:
                logits = self._asked(call, values, self._keys, setups)
            except CloudMismatchError:
                # The cloud has forgotten this session, or drops keys on their way: all of them once more.
                self._sent = False
                logits = self._asked(call, values, self._keys, setups)
        except CloudError as error:
            prediction = self._alone(x, call, error)
        else:
            prediction = Prediction(logits, call.cost(self._bundle.facts), used_cloud=True)
        setup = tuple(now - then for now, then in zip(self._setup, before, strict=True))
        cost = _with_setups(prediction.cost, setups)
        return replace(prediction, cost=cost, extras={"setup_bytes": setup})

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Not offered: see the error."""
        raise TrainingUnsupportedError(
            "method 'he' does not train: a backward pass under encryption is deeper than any ring that it has, and "
            "the cloud could not read the loss; train the model in plain, such as with private-only, and convert it"
        )

    def _values(self, x: Tensor) -> Tensor:
        """What is encrypted of records `[n, *shape]`: themselves, or the features in front of the last layer.

        Raises:
            InputError: they are so large that the logits could wrap around.
        """
        if self._front is None:
            mean, std = torch.tensor(self._input.mean), torch.tensor(self._input.std)
            limit = (torch.maximum(mean.abs(), (1 - mean).abs()) / std)[:, None, None]
            if bool((x.abs() > _RANGE * limit).any()):
                raise InputError(
                    "a record is far out of the range that the manifest declares, and encrypted values would wrap "
                    "around; preprocess images in [0, 1]"
                )
            return x
        with torch.inference_mode():
            features: Tensor = self._front(x).float()
        weight, bias = self._bundle.cloud["0.weight"], self._bundle.cloud["0.bias"]
        # Cauchy and Schwarz: no logit is larger.
        bound = features.norm(dim=1).max() * weight.norm(dim=1).max() + bias.abs().max()
        if not bool(bound < self._spec.bound):
            raise InputError(
                "a record's features are so large that its logits could wrap around; convert with more integer_bits"
            )
        return features

    def _asked(self, call: Call, values: Tensor, keys: Keys, setups: list[Cost]) -> Tensor:
        """Logits of slot values; the keys go first where the cloud does not have them.

        Raises:
            CloudMismatchError: the cloud lacks keys.
            CloudError: another failure of the cloud.
        """
        if not self._sent:
            self._send_keys(keys, setups)
        return self._ask(call, values, keys)

    def _send_keys(self, keys: Keys, setups: list[Cost]) -> None:
        call = Call(self._transport, deadline_s=self._deadline_s)
        try:
            public = keys.public
            for number, tensors in enumerate(public):
                answer = call.ask(KEYS, {"session": self._session, **tensors})
                missing = int(checked_answer(answer, "missing", shape=(1,), dtype=torch.int64))
                if not 0 <= missing < len(public):
                    raise CloudAnswerError("the cloud counts more or fewer keys than there are")
                # Fewer are missing where an attempt was cut short: the cloud has kept what had come.
                if missing >= len(public) - number:
                    raise CloudMismatchError("the cloud has dropped keys while they were sent")
            self._sent = True
        finally:
            cost = call.cost(self._bundle.facts)
            setups.append(cost)
            up, down = self._setup
            self._setup = (up + cost.bytes_up, down + cost.bytes_down)

    def _ask(self, call: Call, values: Tensor, keys: Keys) -> Tensor:
        """Logits `[n, classes]` of slot values `[n, slots]`: one request a record, each sent when it is ready."""
        requests = [
            call.submit(EVALUATE, {"session": self._session, "x": keys.encrypted(row)}) for row in values
        ]
        return torch.stack([self._logits(answer.tensors, keys) for answer in call.collect(requests)])

    def _logits(self, tensors: dict[str, Tensor], keys: Keys) -> Tensor:
        found = []
        for number, (_, slots) in enumerate(self._circuit.results):
            name = result_name(number)
            data = tensors.get(name)
            if data is None or data.dtype != torch.uint8 or data.dim() != 1:
                raise CloudAnswerError(f"the cloud's {name!r} is no encrypted vector")
            try:
                found.append(keys.decrypted(data, slots))
            except ValueError as error:
                raise CloudAnswerError(
                    f"the cloud's {name!r} is no ciphertext of this key: {error}"
                ) from None
        logits = torch.cat(found).float()
        if not bool(torch.isfinite(logits).all()):
            raise CloudAnswerError("the cloud's logits are not finite")
        bound = self._bundle.manifest.logit_bound
        return logits.clamp(-bound, bound)

    def _alone(self, x: Tensor, call: Call, error: CloudError | None) -> Prediction:
        with torch.inference_mode():
            logits: Tensor = self._module(x).float()
        return Prediction(
            logits.clone(),
            call.cost(self._bundle.facts),
            used_cloud=False,
            reason=reason_of(error),
            detail="" if error is None else str(error),
        )


def _with_setups(cost: Cost, setups: list[Cost]) -> Cost:
    """A call's cost with its keys' messages: their time and round trips count, their bytes stand apart."""
    waited = sum(setup.wall_ms - setup.private_ms for setup in setups)
    return replace(
        cost,
        private_ms=max(0.0, cost.private_ms - waited),
        cloud_ms=cost.cloud_ms + sum(setup.cloud_ms for setup in setups),
        round_trips=cost.round_trips + sum(setup.round_trips for setup in setups),
    )
