"""The embedder's network, written anew around the published weights.

Theory of operation. The published file holds its matrices in int8, a scale a column, and its graph
unpacks them to float32 first: the runtime then keeps 42 MB of floats and streams them through the
processor for every question, 5 ms for ten words. Here the same six layers stand in the runtime's
joined operators, and the matrices stay int8. The activations are rounded to eight bits as well,
each token's row by its own range, so the products run in the processor's integer instructions over
a quarter of the bytes. One range for a whole run would round coarser, and let a text's vector
depend on the texts beside it.

    row x of a token, s = max|x| / 127:   q = round(x / s) + 128 as uint8
    x W = s (q - 128) W_int8 scale_of_the_column

A layer's last matrix takes the output of GELU, which is never below -.16997. There
q = round((x + .17) / s), s = max(x + .17) / 255, has steps half as wide; .17 times the sums of the
matrix's columns leaves with the bias.

The word table is looked up in int8 and only the rows found are unpacked: 47 MB less than unpacking
all. Positions and token types are added up beforehand (the type is always 0).

On processors without the VNNI instructions (or their like) the runtime adds pairs of products in 16
bits, and they overflow: `adds_exactly` asks it, and there the network computes in float32.

Source: BERT (arXiv:1810.04805); docs/decisions/0008-the-embedder-by-itself.md. This module needs
numpy and is imported when there is an embedder, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np

from memory.embedding.onnx_file import CONTRIB, FLOAT, INT32, INT64, Graph, read_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory.embedding.onnx_file import Array, ModelParts

LAYERS: Final = 6
DIM: Final = 384
HEADS: Final = 12
POSITIONS: Final = 256
"""Those a text can have: the model was trained to read no more."""

EPSILON: Final = 1e-12
"""Of the layer norms, as published."""

GELU_LEAST: Final = 0.17
"""x Phi(x) is never below -.16997."""

IDS, MASK, HIDDEN = "input_ids", "attention_mask", "last_hidden_state"

_EMBEDDINGS: Final = "inner.embeddings."
_PROBE_WIDTH: Final = 64


class _Matrix(NamedTuple):
    """A matrix as the file holds it."""

    codes: NDArray[np.int8]
    """[in, out]"""
    scales: NDArray[np.float32]
    """[out]"""


def write_network(model: bytes, *, exact: bool) -> bytes:
    """An ONNX file of the network.

    Args:
        model: the published file.
        exact: compute in float32, as the published graph does.
    """
    return _Writer(read_model(model), exact=exact).write()


class _Writer:
    """Six layers, from the weights to the file."""

    def __init__(self, parts: ModelParts, *, exact: bool) -> None:
        self._tensors = parts.tensors
        self._exact = exact
        # In the order of work; their names are numbers.
        found = [
            names[1] for operator, names in parts.inputs
            if operator == "MatMul" and f"{names[1]}_q" in parts.tensors
        ]  # fmt: skip
        assert len(found) == 6 * LAYERS, "not the file that the hash promises"
        self._matrices = [self._matrix(name) for name in found]
        self._graph = Graph()

    def write(self) -> bytes:
        """The file."""
        graph = self._graph
        for name, sizes in (("flat", (-1, DIM)), ("dim", (DIM,)), ("thirds", (DIM,) * 3)):
            graph.tensor(name, np.array(sizes, np.int64))
        if not self._exact:
            self._rounding_constants()
        x = self._words()
        for layer in range(LAYERS):
            x = self._layer(layer, x)
        graph.node("Reshape", [x, "batch"], HIDDEN)
        texts = ("texts", "tokens")
        return graph.model(
            {IDS: (INT64, texts), MASK: (INT64, texts)}, {HIDDEN: (FLOAT, (*texts, "width"))}
        )

    def _rounding_constants(self) -> None:
        graph = self._graph
        for name, code in (("zero", 0), ("middle", 128)):
            graph.tensor(name, np.array(code, np.uint8))
        floats = {"one": 1.0, "gelu_least": GELU_LEAST, "1/127": 1 / 127, "1/255": 1 / 255}
        for name, value in floats.items():
            graph.tensor(name, np.array(value, np.float32))
        graph.tensor("row", np.array([-1], np.int64))

    def _words(self) -> str:
        """What is known before the first layer; float32[tokens of all texts, 384]."""
        graph = self._graph
        graph.tensor("words", self._tensors[f"{_EMBEDDINGS}word_embeddings.weight_q"])
        graph.tensor("word_scales", self._tensors[f"{_EMBEDDINGS}word_embeddings.weight_scale"])
        graph.node("Gather", ["words", IDS], "rows_packed")
        graph.node("Gather", ["word_scales", IDS], "rows_scales")
        graph.node("Cast", ["rows_packed"], "rows_float", to=FLOAT)
        graph.node("Mul", ["rows_float", "rows_scales"], "rows")
        graph.tensor("positions", self._positions())
        graph.tensor("first", np.array([0], np.int64))
        graph.node("Shape", [IDS], "tokens", start=1)
        graph.node("Slice", ["positions", "first", "tokens"], "places")
        graph.node("Add", ["rows", "places"], "placed")
        graph.node("Reshape", ["placed", "flat"], "placed_flat")
        graph.node("Shape", [IDS], "texts_tokens")
        graph.node("Concat", ["texts_tokens", "dim"], "batch", axis=0)
        graph.node("Cast", [MASK], "seen", to=INT32)
        if not self._exact:
            graph.node("Shape", ["placed_flat"], "rows_all", end=1)
            for name in ("zero", "middle"):  # rounding by rows wants its middle by rows too
                graph.node("Expand", [name, "rows_all"], f"{name}s")
        return self._norm("placed_flat", f"{_EMBEDDINGS}LayerNorm", "x")

    def _positions(self) -> NDArray[np.float32]:
        """What is added to the words of each place."""
        packed = self._float(f"{_EMBEDDINGS}position_embeddings.weight_q")[:POSITIONS]
        scales = self._float(f"{_EMBEDDINGS}position_embeddings.weight_scale")[:POSITIONS]
        kinds = self._float(f"{_EMBEDDINGS}token_type_embeddings.weight")
        positions: NDArray[np.float32] = packed * scales + kinds[0]
        return positions

    def _layer(self, layer: int, x: str) -> str:
        graph, at, inner = self._graph, f"{layer}.", f"inner.encoder.layer.{layer}."
        *three, joined, wide, narrow = self._matrices[6 * layer : 6 * layer + 6]
        y = self._attention(x, three, f"{inner}attention.self.", at)
        y = self._linear(y, joined, f"{inner}attention.output.dense", f"{at}joined")
        graph.node("Add", [y, x], f"{at}beside")
        x = self._norm(f"{at}beside", f"{inner}attention.output.LayerNorm", f"{at}attention")
        y = self._linear(x, wide, f"{inner}intermediate.dense", f"{at}wide")
        graph.node("Gelu", [y], f"{at}gelu", domain=CONTRIB)
        y = self._linear(f"{at}gelu", narrow, f"{inner}output.dense", f"{at}narrow", gelu=True)
        graph.node("Add", [y, x], f"{at}sum")
        return self._norm(f"{at}sum", f"{inner}output.LayerNorm", f"{at}out")

    def _attention(self, x: str, three: list[_Matrix], published: str, at: str) -> str:
        """What each token takes from the others of its text, by query, key and value."""
        graph = self._graph
        matrix = _Matrix(
            np.concatenate([one.codes for one in three], axis=1),
            np.concatenate([one.scales for one in three]),
        )
        names = ("query", "key", "value")
        bias = np.concatenate([self._float(f"{published}{name}.bias") for name in names])
        together = self._times(x, matrix, f"{at}three")
        graph.node("Split", [together, "thirds"], [f"{at}{name}_flat" for name in names], axis=-1)
        for name in names:
            graph.node("Reshape", [f"{at}{name}_flat", "batch"], f"{at}{name}")
        inputs = [*(f"{at}{name}" for name in names), graph.tensor(f"{at}three_bias", bias), "seen"]
        graph.node("MultiHeadAttention", inputs, f"{at}taken", domain=CONTRIB, num_heads=HEADS)
        return graph.node("Reshape", [f"{at}taken", "flat"], f"{at}taken_flat")

    def _linear(
        self, x: str, matrix: _Matrix, published: str, at: str, *, gelu: bool = False
    ) -> str:
        bias = self._float(f"{published}.bias")
        if gelu and not self._exact:
            columns = matrix.codes.sum(axis=0, dtype=np.int64) * matrix.scales
            bias = (bias - GELU_LEAST * columns).astype(np.float32)
        product = self._times(x, matrix, at, gelu=gelu)
        return self._graph.node(
            "Add", [product, self._graph.tensor(f"{at}_bias", bias)], f"{at}_biased"
        )

    def _times(self, x: str, matrix: _Matrix, at: str, *, gelu: bool = False) -> str:
        """The product of x and a matrix, for GELU's output that of x + .17."""
        graph = self._graph
        if self._exact:
            matrix_float = matrix.codes.astype(np.float32) * matrix.scales
            graph.tensor(f"{at}_matrix", matrix_float)
            return graph.node("MatMul", [x, f"{at}_matrix"], f"{at}_product")
        graph.tensor(f"{at}_codes", matrix.codes)
        graph.tensor(f"{at}_scales", matrix.scales)
        if gelu:
            x = sizes = graph.node("Add", [x, "gelu_least"], f"{at}_raised")
            steps, middle = "1/255", "zero"
        else:
            sizes = graph.node("Abs", [x], f"{at}_sizes")
            steps, middle = "1/127", "middle"
        graph.node("ReduceMax", [sizes], f"{at}_largest", axes=[1])
        graph.node("Mul", [f"{at}_largest", steps], f"{at}_step")
        graph.node("Reshape", [f"{at}_step", "row"], f"{at}_steps")
        graph.node("QuantizeLinear", [x, f"{at}_steps", f"{middle}s"], f"{at}_packed", axis=0)
        inputs = [f"{at}_packed", f"{at}_codes", "one", f"{at}_scales", middle]
        graph.node("MatMulIntegerToFloat", inputs, f"{at}_whole", domain=CONTRIB)
        return graph.node("Mul", [f"{at}_whole", f"{at}_step"], f"{at}_product")

    def _norm(self, x: str, published: str, name: str) -> str:
        graph = self._graph
        weight = graph.tensor(f"{name}_weight", self._tensors[f"{published}.weight"])
        bias = graph.tensor(f"{name}_bias", self._tensors[f"{published}.bias"])
        return graph.node("LayerNormalization", [x, weight, bias], name, axis=-1, epsilon=EPSILON)

    def _matrix(self, name: str) -> _Matrix:
        codes = cast("NDArray[np.int8]", self._tensors[f"{name}_q"])
        return _Matrix(codes, self._float(f"{name}_scale").reshape(-1))

    def _float(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name].astype(np.float32)


def write_probe() -> bytes:
    """An ONNX file that multiplies rows of uint8 with 127s of int8, for `adds_exactly`."""
    graph = Graph()
    graph.tensor("codes", np.full((_PROBE_WIDTH, _PROBE_WIDTH), 127, np.int8))
    graph.node("MatMulInteger", ["x", "codes"], "y")
    return graph.model({"x": (2, ("rows", "columns"))}, {"y": (INT32, ("rows", "columns"))})


def probe_rows(rows: int) -> NDArray[np.uint8]:
    """The largest numbers there are."""
    return np.full((rows, _PROBE_WIDTH), 255, np.uint8)


def adds_exactly(products: Array) -> bool:
    """Whether the products of `probe_rows` with the matrix of `write_probe` are right."""
    return bool((products == 255 * 127 * _PROBE_WIDTH).all())
