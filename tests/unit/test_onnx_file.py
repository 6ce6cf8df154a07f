"""ONNX files: what is written is read back, and the runtime computes what it says."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from memory.embedding.onnx_file import FLOAT, INT32, INT64, Graph, read_model

ARRAYS = [
    np.array(1.5, np.float32),
    np.array([[-128, 127], [0, 5]], np.int8),
    np.arange(255, 245, -1).astype(np.uint8).reshape(2, 5),
    np.array([-1, 2**62], np.int64),
    np.array([-(2**31), 7], np.int32),
    np.array([[True], [False]]),
    np.zeros((0, 3), np.float32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_a_tensor_is_read_as_it_was_written(array: np.ndarray) -> None:
    graph = Graph()
    assert graph.tensor("weights of x", array) == "weights of x"
    ((name, found),) = read_model(graph.model({}, {})).tensors.items()
    assert name == "weights of x"
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_nodes_are_read_in_order_with_their_inputs() -> None:
    graph = Graph()
    assert graph.node("Split", ["x", "parts"], ["a", "b"], axis=-1) == "a"
    graph.node("MatMul", ["a", "", "b"], "y", domain="com.microsoft", epsilon=1e-12)
    parts = read_model(graph.model({"x": (FLOAT, ("n",))}, {"y": (FLOAT, ("n",))}))
    assert parts.inputs == [("Split", ["x", "parts"]), ("MatMul", ["a", "", "b"])]
    assert parts.tensors == {}


def test_a_file_that_is_not_the_promised_one_is_no_silent_zero() -> None:
    with pytest.raises(AssertionError, match="wire type 3"):
        read_model(b"\x3a\x01\x0b")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra is not installed")
def test_the_runtime_computes_what_was_written() -> None:
    import onnxruntime  # type: ignore[import-untyped]

    graph = Graph()
    graph.tensor("two", np.array([2.0, 4.0], np.float32))
    graph.node("ReduceMax", ["x"], "largest", axes=[1], keepdims=0)
    graph.node("LeakyRelu", ["largest"], "leaky", alpha=0.25)
    graph.node("Mul", ["leaky", "two"], "product")
    graph.node("Cast", ["product"], "whole", to=INT32)
    graph.node("Shape", ["x"], "shape")
    model = graph.model(
        {"x": (FLOAT, ("rows", "columns"))},
        {"whole": (INT32, ("rows",)), "shape": (INT64, ("dimensions",))},
    )
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    whole, shape = session.run(None, {"x": np.array([[1, 3, 2], [-8, -9, -12]], np.float32)})
    assert whole.tolist() == [6, -8]
    assert shape.tolist() == [2, 3]
