"""Finding where a model can be cut: a symbolic trace that looks only into the modules around the cut.

Every module that does not hold the split point is a leaf of the trace, so it may hold any code at all.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from delta.models.obstacle import Obstacle

__all__ = ["Cut", "find_cut", "trace_around"]

_ROOT = "model"


class _Whole(nn.Module):
    """Holds the model as a child: it is then called with its default arguments as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401
        return self.model(x)


class _Tracer(fx.Tracer):
    """Traces into the modules that hold `at`; remembers in whose forward a trace failed."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = f"{_ROOT}.{at}"
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._at.startswith(f"{module_qualified_name}.")

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


@dataclass(frozen=True)
class Cut:
    """A model cut in two.

    Attributes:
        at: the first module that runs in the cloud, under its first name in the model.
        producer: where the tensor that crosses comes from, in words.
        backbone: what runs before the cut, records → IR; shares the model's parameters.
        body: the rest, IR → the model's output; shares the model's parameters.
    """

    at: str
    producer: str
    backbone: fx.GraphModule
    body: fx.GraphModule


def trace_around(model: nn.Module, at: str) -> tuple[fx.Graph, nn.Module] | Obstacle:
    """Trace a model in its present mode, looking only into the modules that hold `at`.

    Returns:
        The graph and the module to which its targets belong; or what stands in the way.
    """
    whole = _Whole(model)
    tracer = _Tracer(at)
    try:
        return tracer.trace(whole), whole
    except Exception as error:  # a user's forward may fail in any way under proxies
        module = tracer.failed_in.removeprefix(_ROOT).removeprefix(".")
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        if isinstance(error, fx.proxy.TraceError) or "Proxy" in text or "control flow" in text:
            reason = f"its forward has dynamic control flow: it branches or loops on values or sizes ({text})"
        else:
            reason = f"its forward cannot be traced ({type(error).__name__}: {text})"
        mend = (
            "move that code into a module of its own beside the split point (such modules are not looked "
            "into), or split at a module outside it"
        )
        return Obstacle(module, reason, mend)


def find_cut(model: nn.Module, at: str) -> Cut | Obstacle:
    """Cut a model in front of a module.

    Returns:
        The cut, checked for structure but not yet for numbers; or what stands in the way.
    """
    found = _canonical_name(model, at)
    if isinstance(found, Obstacle):
        return found
    at = found
    traced = trace_around(model, at)
    if isinstance(traced, Obstacle):
        return traced
    graph, whole = traced
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == f"{_ROOT}.{at}"]
    if len(calls) > 1:
        mend = "give each call a module of its own, or split where the module is called once"
        return Obstacle(at, f"it is called {len(calls)} times in one forward pass", mend)
    if not calls or calls[0] not in _ancestors(_output(graph)):
        inner = [n for n, _ in model.get_submodule(at).named_children()]
        mend = (
            f"name a module that is called, such as {at}.{inner[0]}"
            if inner
            else "name a module that is called"
        )
        return Obstacle(at, "the model's forward never calls it, or drops what it returns", mend)
    return _cut_before(calls[0], graph, whole, at)


def _canonical_name(model: nn.Module, at: str) -> str | Obstacle:
    names = [name for name, _ in model.named_modules() if name]
    try:
        wanted = model.get_submodule(at) if at else None
    except AttributeError:
        wanted = None
    if wanted is None:
        near = (
            difflib.get_close_matches(at, names, n=3, cutoff=0.4)
            or [n for n, _ in model.named_children()][:5]
        )
        return Obstacle(
            at, "the model has no such module", f"the nearest names are {', '.join(near) or '(none)'}"
        )
    named: str = next(name for name, module in model.named_modules() if module is wanted)
    return named


def _cut_before(call: fx.Node, graph: fx.Graph, whole: nn.Module, at: str) -> Cut | Obstacle:
    inputs = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, fx.Node)]
    if len(inputs) != 1 or len(call.all_input_nodes) != 1:
        reason = f"it takes {len(call.all_input_nodes)} tensors"
        return Obstacle(at, reason, "exactly one tensor may cross: split at a module that takes one")
    ir = inputs[0]
    if ir.op == "placeholder":
        return Obstacle(
            at, "nothing runs before it, so the backbone would be empty", "split at a later module"
        )

    moving = _descendants(next(n for n in graph.nodes if n.op == "placeholder"))
    before = {ir, *_ancestors(ir)}
    # The batch size may cross: the IR has the same one.
    batch = {n for n in graph.nodes if _batch_size_of(n) in before}
    output = _output(graph)
    reached = {output, *_reach(output, lambda n: [s for s in n.all_input_nodes if s not in before | batch])}
    after = [n for n in graph.nodes if n in reached]
    for node in after:
        for source in node.all_input_nodes:
            if source in before and source in moving and source is not ir and source not in batch:
                past = f"{_describe(source)} feeds {_describe(node)}, past the module"
                reason = f"a second tensor crosses the cut: {past}"
                return Obstacle(at, reason, "split where that connection has ended or not yet begun")

    shared = _shared_state(before, after, whole)
    if shared:
        reason = f"{shared!r} is used before and after the cut, so the cloud would hold private weights"
        return Obstacle(at, reason, "use separate parameters on the two sides")
    front = _subgraph([n for n in graph.nodes if n in before], whole, result=ir)
    back = _subgraph(after, whole, start=ir, batch=batch, shareable=before - moving)
    return Cut(at, _describe(ir), front, back)


def _subgraph(
    nodes: Iterable[fx.Node],
    whole: nn.Module,
    *,
    result: fx.Node | None = None,
    start: fx.Node | None = None,
    batch: Collection[fx.Node] = (),
    shareable: Collection[fx.Node] = (),
) -> fx.GraphModule:
    """The nodes as a module; `start` becomes its input, `batch` nodes become the input's batch size."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copies[start] = graph.placeholder("ir")

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies and node in batch and start is not None:
            copies[node] = graph.call_method("size", (copies[start], 0))
        elif node not in copies and node in shareable:
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy_of)
    if result is not None:
        graph.output(copies[result])
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = _attribute(whole, str(node.target))
            node.target = str(node.target).removeprefix(f"{_ROOT}.")
            parts[node.target] = value
    graph.lint()
    return fx.GraphModule(parts, graph)


def _shared_state(before: Iterable[fx.Node], after: Iterable[fx.Node], whole: nn.Module) -> str:
    """Name of a parameter, or of a buffer in a module, that both sides use; empty if none."""
    private = {id(tensor) for node in before for _, tensor in _state(node, whole)}
    for node in after:
        for name, tensor in _state(node, whole):
            if id(tensor) in private:
                return name
    return ""


def _state(node: fx.Node, whole: nn.Module) -> list[tuple[str, Tensor]]:
    if node.op not in ("call_module", "get_attr"):
        return []
    value, name = _attribute(whole, str(node.target)), str(node.target).removeprefix(f"{_ROOT}.")
    if isinstance(value, nn.Module):
        tensors = [*value.named_parameters(), *value.named_buffers()]
        return [(f"{name}.{inner}", tensor) for inner, tensor in tensors]
    return [(name, value)] if isinstance(value, nn.Parameter) else []


def _attribute(whole: nn.Module, path: str) -> Any:  # noqa: ANN401
    return operator.attrgetter(path)(whole)


def _batch_size_of(node: fx.Node) -> fx.Node | None:
    """The tensor t if a node is `t.size(0)` or `t.shape[0]`."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size":
        return source if node.args[1:] == (0,) or node.kwargs.get("dim") == 0 else None
    if node.op == "call_function" and node.target is operator.getitem and node.args[1] == 0:
        shape = source.op == "call_function" and source.target is getattr and source.args[1] == "shape"
        sizes = source.op == "call_method" and source.target == "size" and len(source.args) == 1
        tensor = source.args[0] if shape or sizes else None
        return tensor if isinstance(tensor, fx.Node) else None
    return None


def _describe(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"module {str(node.target).removeprefix(f'{_ROOT}.')!r}"
    if node.op == "placeholder":
        return "the record itself"
    if node.op == "output":
        return "the output"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "operation")
    source = next((n for n in node.all_input_nodes if n.op == "call_module"), None)
    return f"operation {name!r}" + (f" on {_describe(source)}" if source else "")


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(n for n in reversed(graph.nodes) if n.op == "output")
    return node


def _ancestors(node: fx.Node) -> set[fx.Node]:
    return _reach(node, lambda n: n.all_input_nodes)


def _descendants(node: fx.Node) -> set[fx.Node]:
    return _reach(node, lambda n: list(n.users)) | {node}


def _reach(node: fx.Node, neighbours: Callable[[fx.Node], list[fx.Node]]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = list(neighbours(node))
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack.extend(neighbours(current))
    return seen
