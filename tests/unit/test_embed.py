"""The embedder of the extra `embed`: what it gives, and what it refuses to start from."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from memory.config import MemoryConfig
from memory.embedding import network
from memory.embedding.embedder import (
    DIM,
    MODEL_PACKAGE,
    MiniLm,
    _checked_model,
    _open_tokenizer,
    check_model,
    checked,
    load_embedder,
    missing_libraries,
    require_embedder,
    unit_rows,
)
from memory.errors import EmbedError

if TYPE_CHECKING:
    from pathlib import Path

installed = pytest.mark.skipif(bool(missing_libraries()), reason="the extra is not installed")

# The first five components of each sentence's vector, of this model. int8 arithmetic differs a
# little between processors.
GOLDEN = {
    "The cat sat on the mat.": (0.127, -0.016, -0.035, 0.055, -0.060),
    "Deploys go through staging first.": (0.028, -0.062, 0.004, -0.025, 0.031),
    "": (-0.127, 0.041, -0.001, -0.016, 0.054),
}
# 101 and 102 frame a text; una ##ffa ##ble is the example of BERT's own documentation.
TOKENS = {
    "Hello, world!": [101, 7592, 1010, 2088, 999, 102],
    "unaffable": [101, 14477, 20961, 3468, 102],
    "naïve café": [101, 15743, 7668, 102],
    "北京": [101, 1781, 1755, 102],
    "": [101, 102],
}


@pytest.fixture(scope="module")
def minilm() -> MiniLm:
    return MiniLm()


@installed
def test_fixed_sentences_have_the_vectors_they_had(minilm: MiniLm) -> None:
    found = minilm.encode(list(GOLDEN), query=False)
    assert found.shape == (len(GOLDEN), DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :5], list(GOLDEN.values()), atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@installed
@pytest.mark.parametrize("text", TOKENS)
def test_texts_have_the_published_token_ids(minilm: MiniLm, text: str) -> None:
    assert minilm.token_ids(text) == TOKENS[text]


USE = (
    "from memory.embedding.embedder import MiniLm; print(MiniLm().encode(['a'], query=False).shape)"
)


@installed
def test_the_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """It does so from 1.29 on, and begins by writing an identity and a queue below HOME."""
    # Bare: with the variables of a build machine it would be quiet by itself.
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"(1, {DIM})\n"
    assert list(tmp_path.rglob("*")) == []


@installed
def test_a_paraphrase_is_nearer_than_another_subject(minilm: MiniLm) -> None:
    asked, near, far = minilm.encode(
        ["how do we ship to production", "deploys go out after staging", "the cat likes tuna"],
        query=False,
    )
    assert asked @ near > asked @ far + 0.1


@installed
def test_a_text_has_one_vector_whatever_stands_beside_it(minilm: MiniLm) -> None:
    # Different lengths, so that they land in different runs, in another order, unpadded alone.
    texts = ["word " * n for n in (90, 1, 200, 14, 3, 60, 120, 7)]
    together = minilm.encode(texts, query=False)
    for text, vector in zip(texts, together, strict=True):
        assert vector @ minilm.encode([text], query=True)[0] > 0.9999


@installed
def test_a_long_text_is_read_up_to_its_256th_token(minilm: MiniLm) -> None:
    assert len(minilm.token_ids("word " * 5000)) == 256
    long, longer = minilm.encode(["word " * 300, "word " * 299 + "cat " * 900], query=False)
    np.testing.assert_allclose(long, longer, atol=1e-6)


@installed
def test_no_texts_are_no_vectors(minilm: MiniLm) -> None:
    assert minilm.encode([], query=False).shape == (0, DIM)


TEXTS = [
    "Deploys go through staging first.",
    "word " * 300,
    "",
    "sqlite3.OperationalError: database is locked (code 5)",
    "naïve café 北京 🎉",
]


@pytest.fixture(scope="module")
def published() -> np.ndarray:
    """Vectors of `TEXTS` by the published graph, untouched."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_checked_model(), options)
    tokenizer = _open_tokenizer()
    means = []
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids])
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        means.append(session.run(["last_hidden_state"], feeds)[0][0].mean(axis=0))
    return unit_rows(np.stack(means))


@installed
def test_computed_in_floats_the_vectors_are_the_published_graphs(published: np.ndarray) -> None:
    exact = MiniLm(exact=True)
    assert exact.id == "minilm@8199be6f"
    np.testing.assert_allclose(exact.encode(TEXTS, query=False), published, atol=1e-5)


@installed
def test_computed_in_integers_they_are_close(published: np.ndarray) -> None:
    rounded = MiniLm(exact=False)
    assert rounded.id == "minilm-i8@8199be6f"
    cosines = (rounded.encode(TEXTS, query=False) * published).sum(axis=1)
    assert cosines.min() > 0.985
    assert cosines.max() < 1 - 1e-5, "nothing was rounded"


@installed
def test_where_the_processor_overflows_the_network_computes_in_floats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "adds_exactly", lambda products: products.shape[0] == 1)
    assert MiniLm().id == "minilm@8199be6f"


def test_a_sum_that_stopped_at_sixteen_bits_is_not_exact() -> None:
    right = np.full((7, 64), 255 * 127 * 64, np.int32)
    assert network.adds_exactly(right)
    right[3, 5] = 32_767 * 32
    assert not network.adds_exactly(right)


@installed
def test_the_model_is_found_without_importing_its_package() -> None:
    assert check_model().state == "ok"
    assert MODEL_PACKAGE not in sys.modules


# ---- what is not there, or not what it should be


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the model's name that Python finds first; its folder, without a model."""
    folder = tmp_path / MODEL_PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@installed
def test_an_altered_model_is_not_loaded(model_folder: Path) -> None:
    (model_folder / "model.onnx").write_bytes(b"another model")
    with pytest.raises(EmbedError, match=r"is not the published model.*covey\[embed\]") as caught:
        load_embedder(MemoryConfig())
    assert caught.value.reason == "model_altered"
    assert check_model().state == "model_altered"


@installed
def test_a_missing_model_is_named(model_folder: Path) -> None:
    with pytest.raises(EmbedError, match=r"model\.onnx cannot be read") as caught:
        load_embedder(MemoryConfig(embedder="minilm"))
    assert caught.value.reason == "model_missing"
    assert str(model_folder) in str(caught.value)


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the runtime were not installed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.mark.usefixtures("no_extra")
def test_without_the_extra_auto_is_none() -> None:
    assert load_embedder(MemoryConfig()) is None
    require_embedder(MemoryConfig())


@pytest.mark.usefixtures("no_extra")
def test_without_the_extra_minilm_names_it() -> None:
    config = MemoryConfig(embedder="minilm")
    for use in (load_embedder, require_embedder):
        with pytest.raises(EmbedError, match=r"onnxruntime: install covey\[embed\]") as caught:
            use(config)
        assert caught.value.reason == "extra_missing"


def test_none_loads_nothing() -> None:
    assert load_embedder(MemoryConfig(embedder="none")) is None


# ---- what an embedder may not give


def _rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    "rows",
    [
        _rows((0.6, 0.8), (np.nan, 1)),
        _rows((0.6, 0.8), (np.inf, 0)),
        _rows((0.6, 0.8), (0, 0)),
        _rows((0.6, 0.8), (3, 4)),
        _rows((0.6, 0.8)),
        _rows((0.6, 0.8, 0), (0, 1, 0)),
        _rows((0.6, 0.8), (0, 1)).astype(np.float64),
    ],
    ids=["nan", "infinite", "zero", "long", "one missing", "other dimension", "other type"],
)
def test_what_is_no_vector_is_refused(rows: np.ndarray) -> None:
    with pytest.raises(EmbedError):
        checked(rows, 2, 2)


def test_what_is_a_vector_passes() -> None:
    rows = _rows((0.6, 0.8), (0, 1))
    assert checked(rows, 2, 2) is rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_rows_without_direction_are_not_scaled(bad: float) -> None:
    with pytest.raises(EmbedError):
        unit_rows(_rows((1, 2), (bad, bad)))
