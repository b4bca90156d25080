"""From the nodes of an ONNX graph to the published names of the tensors that they use.

PyTorch's exporter writes a node's module path into its name (`/blocks.0/attn/query/MatMul`) and keeps the names of
some parameters only: those that it folded or transposed are called `onnx::MatMul_2228` or the like. So a parameter is
known by its own name where it has one, else by the node that uses it and the place it takes there. Knows the names of
both nets, and nothing of their sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ...errors import WeightsError
from ..dtypes import FLOATS
from ..header import printable
from ..tensors import StoredTensor
from .onnx_file import Graph, Node

MAX_CHAIN = 1000  # Identity nodes from a parameter to its user; the exporter writes one
KINDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Input place -> kind of parameter. Matrices of MatMul stand as (in, out), those of Gemm so unless transB is set.
PLACES = {"Conv": {1: "weight", 2: "bias"}, "Gemm": {1: "weight", 2: "bias"}, "MatMul": {1: "weight"},
          "Add": {0: "bias", 1: "bias"}, "Mul": {0: "weight", 1: "weight"},
          "LayerNormalization": {1: "weight", 2: "bias"},
          "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}}  # fmt: skip
S3_NAMES = (  # what the graph calls it -> what the published state dict does
    (re.compile(r"^(?:encoders?\.)?(?=conv[12]\.|blocks\.)"), "encoder."),
    (
        re.compile(r"^quantizer\.(?:rq\.)?(?:project_in|project_down|_codebook\.project_down)(?=\.)"),
        "quantizer._codebook.project_down",
    ),
)


def module_path(node: Node) -> str:
    """Module path of a node: `/head/layer1/layer1.0/conv1/Conv` -> `head.layer1.0.conv1`.

    The operator goes, and so do segments that the next one repeats, as it does for the items of a list.
    """
    text = node.name or (node.outputs[0] if node.outputs else "")
    if "/" not in text:
        return ""
    found: list[str] = []
    for segment in text.strip("/").split("/")[:-1]:
        if found and segment.startswith(f"{found[-1]}."):
            found.pop()
        found.append(segment)
    return ".".join(found)


def named_tensors(graph: Graph, kind: str) -> dict[str, StoredTensor]:
    """Initialisers by published name, each `.name` still the one in the file. `kind` is "tokenizer" or "speaker".

    A parameter that several nodes share comes once for each. Initialisers that no node uses keep their own names.

    Raises
    ------
    WeightsError
        An operator that takes floating-point weights in a way that neither net does, or two initialisers for one name.
    """
    found: dict[str, StoredTensor] = {}
    used = set()
    for node, place, own, tensor in _uses(graph):
        used.add(tensor.name)
        if tensor.dtype not in FLOATS:
            if len(tensor.shape) > 1:
                raise WeightsError(
                    f"{node.where} takes {printable(tensor.name)} of type {tensor.dtype}; a quantised "
                    "graph is not supported, only floating-point weights"
                )
            continue  # shapes, axes and indices
        if tensor.shape in ((), (1,)) and own.rpartition(".")[2] not in KINDS:
            continue  # constants of the arithmetic, an exponent or an epsilon
        name = _name(node, place, own, kind)
        if name is None or node.op not in (*PLACES, "Transpose"):
            raise WeightsError(
                f"{node.where} takes {printable(tensor.name)} of shape {tensor.shape}, which has no "
                "place in the published net; is it another model?"
            )
        tensor = _as_published(node, place, tensor)
        if name in found and found[name] != tensor:
            raise WeightsError(
                f"{node.where}: {printable(found[name].name)} and {printable(tensor.name)} would both become {name}"
            )
        found[name] = tensor
    for name, tensor in graph.initialisers.items():
        if name not in used and (tensor.dtype in FLOATS or name.endswith(KINDS[-1])):
            found.setdefault(_published(name, kind), tensor)
    return found


def _uses(graph: Graph) -> Iterator[tuple[Node, int, str, StoredTensor]]:
    """(node, input place, name it is used under, initialiser).

    The exporter lets equal parameters share one by way of Identity nodes, whose outputs keep the parameters' own names.
    """
    source = {n.outputs[0]: n.inputs[0] for n in graph.nodes if n.op == "Identity" and n.inputs and n.outputs}
    for name in list(source):  # each leads to where its chain ends, or to itself in a circle
        chain = []
        while name in source and name not in chain[-1:]:
            chain.append(name)
            name = source[name]
            if len(chain) > MAX_CHAIN:
                raise WeightsError(f"more than {MAX_CHAIN} Identity nodes follow one another; is it another model?")
        source |= dict.fromkeys(chain, name)
    for node in graph.nodes:
        if node.op == "Identity":
            continue
        for place, own in enumerate(node.inputs):
            name = source.get(own, own)
            if name in graph.initialisers:
                yield node, place, own, graph.initialisers[name]


def _name(node: Node, place: int, own: str, kind: str) -> str | None:
    if own.rpartition(".")[2] in KINDS:
        return _published(own, kind)
    which, path = PLACES.get(node.op, {}).get(place), module_path(node)
    return _published(f"{path}.{which}", kind) if which and path else None


def _published(name: str, kind: str) -> str:
    if kind == "tokenizer":
        for pattern, new in S3_NAMES:
            name, n = pattern.subn(new, name)
            if n:
                return name
    return name


def _as_published(node: Node, place: int, tensor: StoredTensor) -> StoredTensor:
    """Matrices turned to (out, in); an Add's bias may be one row."""
    as_in_out = node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transB"))
    if place == 1 and len(tensor.shape) == 2 and as_in_out:
        return tensor.transposed
    if node.op == "Add" and len(tensor.shape) > 1 and tensor.shape[:-1] == (1,) * (len(tensor.shape) - 1):
        return replace(tensor, shape=tensor.shape[-1:])
    return tensor


# ---- what the nodes themselves say ----


def the_one(graph: Graph, op: str, attribute: str, suffix: str = ""):
    """The value that all operators `op`, whose module path ends so, agree on; None where there is none.

    Raises `WeightsError` where they do not agree.
    """
    found = {}
    for node in graph.nodes:
        if node.op == op and module_path(node).endswith(suffix) and attribute in node.attributes:
            value = node.attributes[attribute]
            found[value if not isinstance(value, float) else float(f"{value:.7g}")] = node
    if len(found) > 1:
        shown = ", ".join(f"{value} at {node.where}" for value, node in list(found.items())[:2])
        raise WeightsError(f"{attribute} differs: {shown}; the published net has one for all")
    return next(iter(found), None)


def attention_heads(graph: Graph) -> int | None:
    """Heads that the queries are reshaped to, (B, T, heads, size), where the graph says so in plain numbers."""
    producers = {name: node for node in graph.nodes for name in node.outputs}
    found = set()
    for node in graph.nodes:
        if node.op != "Reshape" or len(node.inputs) < 2 or not re.search(r"(^|\.)attn$", module_path(node)):
            continue
        shape = _numbers(node.inputs[1], graph, producers)
        if shape and len(shape) == 4 and shape[2] and shape[2] > 0:
            found.add(shape[2])
    if len(found) > 1:
        raise WeightsError(f"attention layers have {sorted(found)} heads; the published net has one number for all")
    return next(iter(found), None)


def _numbers(name: str, graph: Graph, producers: dict[str, Node]) -> tuple[int | None, ...] | None:
    """A list of whole numbers in the graph; None for each that is computed."""
    if name in graph.constants:
        return graph.constants[name]
    node = producers.get(name)
    if node is None or node.op != "Concat":
        return None
    parts = []
    for part in node.inputs:
        node = producers.get(part)
        if node is not None and node.op == "Unsqueeze" and node.inputs:
            part = node.inputs[0]
        parts += graph.constants.get(part) or (None,)
    return tuple(parts)
