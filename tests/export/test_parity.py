from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
timm = pytest.importorskip("timm")

from export.parity import (  # noqa: E402
    ParityError,
    ParityLimits,
    check_asked,
    check_parity,
    chosen_limits,
    default_limits,
    gather_pictures,
    reference_embeddings,
)
from export.pictures import Pictures, for_ranges  # noqa: E402
from export.torch_embedder import TorchEmbedder  # noqa: E402
from geoinfer.answer import Answer  # noqa: E402
from geoinfer.backends.base import EmbedderIdentity  # noqa: E402
from geoinfer.errors import InputError, MismatchError, ModelError, UsageError  # noqa: E402
from geoinfer.images import Preprocessing, load_pixels  # noqa: E402
from geoinfer.images.near_duplicates import perceptual_hash  # noqa: E402
from geoinfer.index import References, write_index  # noqa: E402

pytestmark = pytest.mark.slow

SIZE, DIM = 32, 6
PREPROCESSING = Preprocessing(size=SIZE, resize="squash", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
IDENTITY = EmbedderIdentity("drawn:0", DIM, PREPROCESSING)
LOOSE = ParityLimits(min_cosine=0.0, min_agreement=0.0, max_shift=1e6)
EXAMPLES = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six JPEGs of noise, two of them further down."""
    top = tmp_path_factory.mktemp("photos")
    (top / "trip").mkdir()
    rng = np.random.default_rng(11)
    for number in range(6):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        name = f"trip/{number}.jpg" if number >= 4 else f"{number}.jpg"
        Image.fromarray(coarse).resize((80, 64), Image.Resampling.BICUBIC).save(top / name, quality=95)
    return top


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Pictures:
    return gather_pictures(folder, PREPROCESSING, at_least=8)


def table(rows: np.ndarray, *, broken: dict[int, np.ndarray] | None = None) -> bytes:
    """A model that looks its embeddings up: row i for the picture whose first pixels are (i, ...), see `marked`.

    Args:
        rows: (n, dim) what it gives.
        broken: batch size to what is given in batches of this size instead.
    """
    assert rows.dtype == np.float32
    helper = onnx.helper
    constants = [
        onnx.numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("starts", [0, 0, 0]), ("ends", [1, 1, 1]), ("axes", [1, 2, 3]), ("flat", [-1]))
    ]
    constants.append(onnx.numpy_helper.from_array(rows, "rows"))
    nodes = [
        helper.make_node("Slice", ["pixels", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["wide"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["number"]),
        helper.make_node("Gather", ["rows", "number"], ["embeddings" if not broken else "found0"]),
    ]
    for position, (batch, other) in enumerate((broken or {}).items()):
        last = position == len(broken or {}) - 1
        constants.append(onnx.numpy_helper.from_array(other, f"rows{batch}"))
        constants.append(onnx.numpy_helper.from_array(np.array([batch], np.int64), f"batch{batch}"))
        nodes += [
            helper.make_node("Gather", [f"rows{batch}", "number"], [f"other{batch}"]),
            helper.make_node("Shape", ["number"], [f"size{batch}"]),
            helper.make_node("Equal", [f"size{batch}", f"batch{batch}"], [f"is{batch}"]),
            helper.make_node(
                "Where",
                [f"is{batch}", f"other{batch}", f"found{position}"],
                ["embeddings" if last else f"found{position + 1}"],
            ),
        ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["batch", rows.shape[1]])],
        constants,
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def marked(pictures: Pictures) -> Pictures:
    """The same pictures with their number in the first pixel, for `table`."""
    pixels = pictures.pixels.copy()
    pixels[:, 0, 0, 0] = np.arange(len(pixels))
    return replace(pictures, pixels=pixels)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_embeddings(n: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)))


def turned(rows: np.ndarray, cosine: float, seed: int = 1) -> np.ndarray:
    """Rows at just this cosine from the given ones."""
    sideways = np.random.default_rng(seed).normal(size=rows.shape)
    sideways -= (sideways * rows).sum(axis=1, keepdims=True) * rows
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    return unit(cosine * rows.astype(np.float64) + math.sqrt(1 - cosine**2) * sideways)


def check(pictures: Pictures, expected: np.ndarray, data: bytes, **options: object):
    defaults = {"limits": default_limits("fp32"), "max_batch": 8, "identity": IDENTITY}
    return check_parity(data, marked(pictures), expected, **(defaults | options))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_few_photos_are_turned(folder: Path) -> None:
    pictures = gather_pictures(folder, PREPROCESSING, at_least=15)

    names = ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "trip/4.jpg", "trip/5.jpg")
    assert pictures.names[:6] == names
    assert pictures.names[6:12] == tuple(f"{name} turned by 90" for name in names)
    assert pictures.names[12:] == tuple(f"{name} turned by 180" for name in names[:3])
    assert pictures.photos == len(pictures.files) == 6
    for row, name in enumerate(names):
        path = folder / name
        assert os.fsdecode(pictures.files[row]) == str(path)
        assert pictures.content_sha256[row].tobytes() == hashlib.sha256(path.read_bytes()).digest()
        upright = load_pixels(bytes(path), PREPROCESSING)
        np.testing.assert_array_equal(pictures.pixels[row], upright)
        np.testing.assert_array_equal(pictures.pixels[6 + row], np.transpose(upright, (1, 0, 2))[::-1])
    np.testing.assert_array_equal(pictures.pixels[12], pictures.pixels[0][::-1, ::-1])


def test_a_large_folder_is_looked_at_evenly(folder: Path) -> None:
    pictures = gather_pictures(folder, PREPROCESSING, at_least=2, at_most=3)
    assert pictures.names == ("0.jpg", "2.jpg", "trip/4.jpg")


def test_a_photo_that_cannot_be_decoded_costs_itself_alone(folder: Path, tmp_path: Path) -> None:
    data = (folder / "0.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 3])
    (tmp_path / "b.jpg").write_bytes(data)
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "d.jpg").write_bytes((folder / "1.jpg").read_bytes())
    (tmp_path / "e.nef").write_bytes(data)
    (tmp_path / "f.txt").write_text("a diary")
    (tmp_path / os.fsdecode(b"g\xff.jpg")).write_bytes((folder / "2.jpg").read_bytes())

    pictures = gather_pictures(tmp_path, PREPROCESSING, at_least=3)

    assert pictures.names == ("b.jpg", "d.jpg", "g\\xff.jpg")
    assert pictures.unreadable == ("a.jpg", "c.png")
    # Two of five would be a.jpg and c.png: others take their place.
    assert gather_pictures(tmp_path, PREPROCESSING, at_least=1, at_most=2).names == ("b.jpg", "d.jpg")

    for name in ("b.jpg", "d.jpg", os.fsdecode(b"g\xff.jpg")):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"none of its 2 photos can be decoded; a\.jpg: "):
        gather_pictures(tmp_path, PREPROCESSING, at_least=3)


def test_copies_of_a_photo_count_once(folder: Path, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.jpg").write_bytes((folder / f"{number // 10}.jpg").read_bytes())
    pictures = gather_pictures(tmp_path, PREPROCESSING, at_least=5)
    assert pictures.names == (
        "00.jpg", "10.jpg", "00.jpg turned by 90", "10.jpg turned by 90", "00.jpg turned by 180",
    )  # fmt: skip
    assert (pictures.photos, pictures.unreadable) == (2, ())


def test_ranges_are_measured_all_over_and_at_the_extremes() -> None:
    pixels = np.zeros((200, 8, 8, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(200)
    chosen = for_ranges(pixels)
    assert chosen.shape == (68, 8, 8, 3)
    assert chosen.dtype == np.uint8
    numbers = chosen[:64, 0, 0, 0].astype(int)
    assert numbers[0] == 0
    assert set(np.diff(numbers)) == {3, 4}
    assert numbers[-1] > 190
    black, white, noise, stripes = chosen[64:]
    assert black.max() == 0
    assert white.min() == 255
    assert 60 < noise.std() < 90
    assert noise.mean() == pytest.approx(127.5, abs=20)
    assert (stripes == np.array([0, 0, 255, 255, 0, 0, 255, 255])[None, :, None]).all()
    assert len(for_ranges(pixels[:5])) == 9


def test_without_photos_there_is_no_gate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photos"):
        gather_pictures(tmp_path, PREPROCESSING, at_least=3)
    with pytest.raises(InputError, match="there is no such folder"):
        gather_pictures(tmp_path / "gone", PREPROCESSING, at_least=3)


def test_the_checkout_has_photos_of_its_own() -> None:
    pictures = gather_pictures(None, PREPROCESSING, at_least=16)
    assert (pictures.photos, len(pictures.names)) == (10, 16)
    assert pictures.unreadable == ()


# --- torch's embeddings -----------------------------------------------------------------------------------------------


def embedder_of(network: torch.nn.Module) -> TorchEmbedder:
    return TorchEmbedder(network.eval(), PREPROCESSING, "drawn:0", "a test", "CC0-1.0", "0" * 64)


def test_reference_embeddings_are_torchs(pictures: Pictures) -> None:
    torch.manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=0)
    given = reference_embeddings(embedder_of(network), pictures.pixels)

    for row, picture in enumerate(pictures.pixels):
        planes = np.empty((1, 3, SIZE, SIZE), np.float32)
        for channel in range(3):
            scaled = picture[:, :, channel].astype(np.float64) / 255
            planes[0, channel] = (scaled - PREPROCESSING.mean[channel]) / PREPROCESSING.std[channel]
        with torch.no_grad():
            wanted = network(torch.from_numpy(planes))[0].double().numpy()
        np.testing.assert_allclose(given[row], wanted / np.linalg.norm(wanted), atol=2e-6)
    assert given.dtype == np.float32


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torch.nn.Identity(), r"float32 \(4, 3, 32, 32\)"),
        (torch.nn.Sequential(torch.nn.Flatten(0)), r"float32 \(12288,\)"),
    ],
)
def test_a_network_that_embeds_nothing_is_refused(network: torch.nn.Module, words: str, pictures: Pictures) -> None:
    with pytest.raises(ModelError, match=words):
        reference_embeddings(embedder_of(network), pictures.pixels)


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_a_faithful_model_passes(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    report = check(pictures, expected, table(expected), max_batch=5)

    assert (report.photos, report.pictures, report.batches) == (6, 8, (1, 2, 3, 5))
    assert report.min_cosine == pytest.approx(1.0, abs=1e-12)
    assert report.max_norm_error < 1e-6
    assert report.index is None
    values = report.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert set(values) == {
        "photos", "pictures", "batches", "min_cosine", "mean_cosine", "max_norm_error", "onnxruntime",
    }  # fmt: skip
    assert values["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(("max_batch", "batches"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 3, 8))])
def test_batches(pictures: Pictures, max_batch: int, batches: tuple[int, ...]) -> None:
    expected = some_embeddings(8)
    assert check(pictures, expected, table(expected), max_batch=max_batch).batches == batches


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cosine=st.floats(0.5, 0.9999999), row=st.integers(0, 7), seed=st.integers(0, 99), limit=st.floats(0.5, 0.9999999)
)
def test_it_passes_if_and_only_if_the_worst_picture_does(
    pictures: Pictures, cosine: float, row: int, seed: int, limit: float
) -> None:
    expected = some_embeddings(8, seed)
    rows = expected.copy()
    rows[row] = turned(expected, cosine)[row]
    # Plain sums, one number at a time.
    dot = math.fsum(float(a) * float(b) for a, b in zip(rows[row], expected[row], strict=True))
    lengths = [math.sqrt(math.fsum(float(a) ** 2 for a in each)) for each in (rows[row], expected[row])]
    worst = dot / lengths[0] / lengths[1]

    def run():
        return check(pictures, expected, table(rows), limits=ParityLimits(limit, 0.0, 0.0))

    if abs(worst - limit) < 1e-12:
        return
    if worst < limit:
        with pytest.raises(ParityError) as caught:
            run()
        report = caught.value.report
        assert caught.value.rows[0] == row
        assert f"the embedding of {pictures.names[row]} has a cosine of" in str(caught.value)
        assert "nothing was written" in str(caught.value)
        assert "--explain" in caught.value.hint
    else:
        report = run()
    assert report is not None
    assert report.min_cosine == pytest.approx(worst, abs=1e-12)
    assert report.worst == pictures.names[row]
    assert report.mean_cosine == pytest.approx((7 + worst) / 8, abs=1e-7)
    assert worst - 1.001e-7 < report.as_dict()["min_cosine"] <= worst


def test_no_photo_is_named_in_what_travels(pictures: Pictures, folder: Path) -> None:
    expected = some_embeddings(8)
    rows = expected.copy()
    rows[5] = turned(expected, 0.999999)[5]
    report = check(pictures, expected, table(rows))

    assert report.worst == "trip/5.jpg"
    assert "5.jpg" not in json.dumps(report.as_dict())
    assert str(folder) not in json.dumps(report.as_dict()) + "".join(report.lines())
    assert "0.9999989 (trip/5.jpg)" in report.lines()[1] or "0.9999990 (trip/5.jpg)" in report.lines()[1]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_picture_must_embed_alike_in_every_batch(pictures: Pictures, batch: int) -> None:
    expected = some_embeddings(8)
    # Both within the limit of torch's, on opposite sides of it.
    one, other = turned(expected, 0.992), unit(2 * 0.992 * expected - turned(expected, 0.992))
    limits = ParityLimits(0.99, 0.0, 0.0)
    assert check(pictures, expected, table(one), limits=limits).min_cosine > 0.99
    assert check(pictures, expected, table(other), limits=limits).min_cosine > 0.99

    with pytest.raises(ParityError, match=r"embeds differently in batches of different sizes \(1, 2, 3, 8\)") as caught:
        check(pictures, expected, table(one, broken={batch: other}), limits=limits)
    assert caught.value.rows[0] < batch


def test_a_fault_in_one_batch_size_is_a_fault(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    with pytest.raises(
        ParityError, match=r"0\.jpg has a cosine of -1\.0000000 with torch's|\.jpg has a cosine of -0\.9999"
    ):
        check(pictures, expected, table(expected, broken={3: -expected}))


def alike(spread: float, n: int = 8) -> np.ndarray:
    """Embeddings of photos that hardly differ."""
    return unit(np.ones(DIM) / math.sqrt(DIM) + spread * np.random.default_rng(2).normal(size=(n, DIM)))


def test_one_answer_to_everything_does_not_pass(pictures: Pictures) -> None:
    """Of photos alike, any of their embeddings is within the limit for all of them."""
    expected = alike(0.03)
    for answer in (expected[:1], unit(expected.mean(axis=0, keepdims=True))):
        with pytest.raises(ParityError, match="does not tell the pictures apart as torch does") as caught:
            check(pictures, expected, table(np.repeat(answer, 8, axis=0)), limits=default_limits("int8"))
        assert caught.value.report.min_cosine > 0.98
        assert "has a cosine" not in str(caught.value)
    best = unit(expected.mean(axis=0, keepdims=True)).astype(np.float64)[0]
    reached = [math.fsum(a * float(b) for a, b in zip(best, row, strict=True)) for row in expected]
    assert caught.value.report.constant_cosine == pytest.approx(math.fsum(reached) / 8, abs=1e-6)
    # Photos mixed up are as wrong.
    with pytest.raises(ParityError, match="does not tell the pictures apart"):
        check(pictures, expected, table(np.roll(expected, 1, axis=0)), limits=default_limits("int8"))


@pytest.mark.parametrize(("precision", "loss"), [("fp32", 1e-7), ("fp16", 1e-5), ("int8", 5e-4)])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-5, 1e-3, 0.03, 0.3])
def test_rounding_passes_however_alike_the_photos_are(
    precision: str, loss: float, spread: float, pictures: Pictures
) -> None:
    """As networks of random weights have it, which embed all photos nearly alike."""
    expected = alike(spread)
    rows = turned(expected, 1 - loss)
    assert check(pictures, expected, table(rows), limits=default_limits(precision)).min_cosine < 1 - loss / 2


def test_rows_must_be_of_unit_length(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    with pytest.raises(ParityError, match=r"rows are not of unit length: off by 1\.0e-03, 0\.0001 is allowed"):
        check(pictures, expected, table(expected * np.float32(1.001)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_must_be_finite(pictures: Pictures, value: float) -> None:
    expected = some_embeddings(8)
    rows = expected.copy()
    rows[[2, 4], 1] = value
    with pytest.raises(ParityError, match=r"2\.jpg and 1 more: its numbers are not finite in a batch of 8") as caught:
        check(pictures, expected, table(rows))
    assert caught.value.rows == (2, 4)
    with pytest.raises(ModelError, match=r"torch network itself gives numbers that are not finite for 2\.jpg"):
        check(pictures, rows, table(expected))


def test_shapes_must_be_torchs(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    with pytest.raises(ParityError, match=r"it gives float32 \(8, 5\) where float32 \(8, 6\) is expected"):
        check(pictures, expected, table(np.ascontiguousarray(expected[:, :5])))


def test_what_onnx_runtime_cannot_run_is_refused(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    with pytest.raises(ModelError, match="ONNX Runtime cannot open the exported model"):
        check(pictures, expected, b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the exported model in a batch of 8"):
        check(pictures, expected, table(expected[:4]))


def test_limits_that_somebody_sets_are_taken_literally() -> None:
    default = default_limits("int8")
    assert (default.free_photos, default.shift_floor_km) == (1, 25.0)
    assert default.allowed_shift_km(100.0) == 25.0
    assert chosen_limits("int8") == default
    assert chosen_limits("int8", min_cosine=0.9) == replace(default, min_cosine=0.9)
    assert chosen_limits("int8", min_agreement=0.9) == replace(default, min_agreement=0.9, free_photos=0)
    chosen = chosen_limits("int8", max_shift=0.1)
    assert chosen == replace(default, shift_floor_km=0.0)
    assert chosen.allowed_shift_km(100.0) == pytest.approx(10.0)
    assert ParityLimits(0.9, 0.9, 0.1).allowed_shift_km(100.0) == pytest.approx(10.0)


def test_limits_are_told_with_all_their_digits(pictures: Pictures) -> None:
    expected = some_embeddings(8)
    limits = ParityLimits(0.99999999, 0.0, 0.0)
    with pytest.raises(ParityError, match=r"at least 0\.99999999 is asked for"):
        check(pictures, expected, table(turned(expected, 0.9999999)), limits=limits)
    assert "at least 0.99999999 is asked for" in check(pictures, expected, table(expected), limits=limits).lines()[1]
    with pytest.raises(UsageError, match=r"--min-cosine 1\.0000001: expected 0 to 1"):
        ParityLimits(1.0000001, 0.0, 0.0)


def test_limits() -> None:
    assert [default_limits(precision).min_cosine for precision in ("fp32", "fp16", "int8")] == [0.99999, 0.999, 0.98]
    with pytest.raises(UsageError, match="fp8"):
        default_limits("fp8")
    for wrong in ((1.5, 0.5, 0.0), (0.5, -0.1, 0.0), (0.5, 0.5, math.nan), (0.5, 0.5, -1.0), (math.nan, 0.5, 0.0)):
        with pytest.raises(UsageError):
            ParityLimits(*wrong)


# --- the index --------------------------------------------------------------------------------------------------------

PLACES = np.array([[48.85, 2.35], [51.5, -0.12], [40.71, -74.0], [-33.87, 151.2], [35.68, 139.69], [-1.29, 36.82]])


def hand_made(
    folder: Path,
    vectors: np.ndarray,
    places: np.ndarray,
    *,
    digests: dict[int, bytes] | None = None,
    hashes: dict[int, np.ndarray] | None = None,
    identity: EmbedderIdentity = IDENTITY,
) -> Path:
    rng = np.random.default_rng(5)
    n = len(vectors)
    sha256 = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    perceptual = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    for row, digest in (digests or {}).items():
        sha256[row] = np.frombuffer(digest, np.uint8)
    for row, bits in (hashes or {}).items():
        perceptual[row] = bits
    references = References(
        ids=[f"reference {i}" for i in range(n)],
        coordinates=np.asarray(places, np.float64),
        sources=[""] * n,
        attributions=[""] * n,
        content_sha256=sha256,
        perceptual_hashes=perceptual,
    )
    write_index(folder, vectors.astype(np.float32), references, identity, answer=Answer(1, "top1"))
    return folder


def axes_and_between() -> tuple[np.ndarray, np.ndarray]:
    """References along the six axes; six queries near one each, the last of them nearly between two."""
    references = np.eye(DIM)
    queries = unit(np.eye(DIM) + 0.1)
    queries[5] = unit(np.array([[0.0, 0, 0, 0, 0.70, 0.71]]))[0]
    return references, np.concatenate([queries, queries[:2]])


def over_the_line(queries: np.ndarray) -> np.ndarray:
    """The same, but for the last photo, which is now nearer to the other reference."""
    rows = queries.copy()
    rows[5] = unit(np.array([[0.0, 0, 0, 0, 0.71, 0.70]]))[0]
    return rows


def test_agreement_counts_the_one_photo_that_changes(pictures: Pictures, tmp_path: Path) -> None:
    references, queries = axes_and_between()
    index = hand_made(tmp_path / "index", references, PLACES)
    data = table(over_the_line(queries))
    assert check(pictures, queries, table(queries), index=index).index.agreement == 1.0

    report = check(pictures, queries, data, index=index, limits=replace(LOOSE, min_agreement=0.5))

    assert report.index.changed == (5,)
    assert report.index.photos == 6
    assert report.as_dict()["agreement"] == 0.8333
    assert any("the same for 5 of 6 photos (83.33%)" in line for line in report.lines())
    # One may always differ under the default limits; a limit that somebody sets is kept.
    lenient = replace(LOOSE, min_agreement=0.99, free_photos=1)
    assert check(pictures, queries, data, index=index, limits=lenient).index.changed == (5,)
    with pytest.raises(ParityError, match="another one for 1 of 6 photos"):
        check(pictures, queries, data, index=index, limits=replace(LOOSE, min_agreement=0.99))
    with pytest.raises(ParityError, match=r"another one for 1 of 6 photos \(trip/5\.jpg is the first\)"):
        check(pictures, queries, data, index=index, limits=replace(LOOSE, min_agreement=1.0))


def test_more_than_one_change_is_too_many(pictures: Pictures, tmp_path: Path) -> None:
    references, queries = axes_and_between()
    index = hand_made(tmp_path / "index", references, PLACES)
    rows = over_the_line(queries)
    rows[0] = rows[1]
    with pytest.raises(ParityError, match=r"another one for 2 of 6 photos \(0\.jpg .* an agreement of 0\.6666; at"):
        check(pictures, queries, table(rows), index=index, limits=replace(LOOSE, min_agreement=0.9))
    assert check(pictures, queries, table(rows), index=index, limits=replace(LOOSE, min_agreement=0.6)).index.changed


def test_references_at_the_same_spot_are_one_answer(pictures: Pictures, tmp_path: Path) -> None:
    references, queries = axes_and_between()
    places = PLACES.copy()
    places[4] = places[5] + [0.0005, 0.0]  # 56 m
    index = hand_made(tmp_path / "index", references, places)
    assert check(pictures, queries, table(over_the_line(queries)), index=index, limits=LOOSE).index.changed == ()


def test_ties_are_one_answer(pictures: Pictures, tmp_path: Path) -> None:
    """Two references that torch cannot tell apart: either may come first."""
    references, queries = axes_and_between()
    queries[5] = unit(np.array([[0.0, 0, 0, 0, 1.0, 1.0]]))[0]
    index = hand_made(tmp_path / "index", references, PLACES)
    rows = queries.copy()
    rows[5] = unit(np.array([[0.0, 0, 0, 0, 1.0, 1.0001]]))[0]
    assert check(pictures, queries, table(rows), index=index, limits=LOOSE).index.changed == ()
    # But not the other way round: where torch can tell, the order counts.
    assert check(pictures, rows, table(queries), index=index, limits=LOOSE).index.changed == (5,)


def test_a_photo_is_not_found_by_its_own_copy(pictures: Pictures, tmp_path: Path) -> None:
    """A photo that is a reference itself, by its bytes or by its looks, would agree under any model."""
    references, queries = axes_and_between()
    vectors, places = np.concatenate([references, queries[5:6]]), np.concatenate([PLACES, PLACES[:1]])
    bits = perceptual_hash(marked(pictures).pixels[5])
    bits[:5] ^= 255
    for number, (own, changed) in enumerate(
        [
            ({}, ()),
            ({"digests": {6: pictures.content_sha256[5].tobytes()}}, (5,)),
            ({"hashes": {6: bits}}, (5,)),
            # A reference that is no photo has no digest, and what stands for its hash says nothing.
            ({"hashes": {6: bits}, "digests": {6: bytes(32)}}, ()),
        ]
    ):
        index = hand_made(tmp_path / f"index{number}", vectors, places, **own)
        report = check(pictures, queries, table(over_the_line(queries)), index=index, limits=LOOSE)
        assert report.index.changed == changed
        assert report.index.photos == 6


def test_an_index_of_copies_compares_nothing(pictures: Pictures, tmp_path: Path) -> None:
    _, queries = axes_and_between()
    index = hand_made(tmp_path / "index", queries[:1], PLACES[:1], digests={0: pictures.content_sha256[0].tobytes()})
    alone = Pictures(
        pictures.names[:1], marked(pictures).pixels[:1], pictures.folder, pictures.files[:1],
        pictures.content_sha256[:1],
    )  # fmt: skip
    report = check_parity(table(queries), alone, queries[:1], limits=LOOSE, max_batch=1, index=index, identity=IDENTITY)
    assert report.index.photos == 0
    assert "agreement" not in report.as_dict()
    assert any("not compared" in line for line in report.lines())


@pytest.mark.parametrize(
    "identity",
    [
        EmbedderIdentity("other:0", DIM, PREPROCESSING),
        EmbedderIdentity("drawn:0", DIM, Preprocessing(size=SIZE)),
    ],
)
def test_an_index_of_another_embedder_is_refused(
    identity: EmbedderIdentity, pictures: Pictures, tmp_path: Path
) -> None:
    references, queries = axes_and_between()
    index = hand_made(tmp_path / "index", references, PLACES, identity=identity)
    with pytest.raises(MismatchError, match="was made by"):
        check(pictures, queries, table(queries), index=index)
    with pytest.raises(MismatchError, match="was made by"):
        check_asked(index, None, folder=None, name="drawn:0", preprocessing=PREPROCESSING)


def test_an_index_of_other_dimensions_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    index = hand_made(tmp_path / "index", np.eye(7), np.tile(PLACES, (2, 1))[:7], identity=replace(IDENTITY, dim=7))
    with pytest.raises(MismatchError, match="7 dimensions"):
        check(pictures, some_embeddings(8), table(some_embeddings(8)), index=index)


# --- labels -----------------------------------------------------------------------------------------------------------


def great_circle_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """By the spherical law of cosines, with another formula than the runtime's."""
    first, second = math.radians(a[0]), math.radians(b[0])
    cosine = math.sin(first) * math.sin(second) + math.cos(first) * math.cos(second) * math.cos(
        math.radians(b[1] - a[1])
    )
    return 6371.0 * math.acos(max(-1.0, min(1.0, cosine)))


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


TRUTH = {  # 4.jpg has no label, and one label has no photo
    "0.jpg": (48.0, 3.0),
    "1.jpg": (53.0, -2.0),
    "2.jpg": (45.0, -70.0),
    "3.jpg": (-30.0, 140.0),
    "trip/5.jpg": (0.0, 36.0),
    "gone.jpg": (0.0, 0.0),
}


def labels_in(folder: Path) -> Path:
    path = folder / "labels.csv"
    rows = [f"{name},{latitude},{longitude}" for name, (latitude, longitude) in TRUTH.items()]
    path.write_text("\n".join(["path,latitude,longitude", *rows, "trip/4.jpg,999,0"]) + "\n")
    return path


def test_the_shift_is_that_of_plain_loops(pictures: Pictures, tmp_path: Path) -> None:
    references, queries = axes_and_between()
    rows = over_the_line(queries)
    rows[2] = rows[3]
    index = hand_made(tmp_path / "index", references, PLACES)
    medians = []
    for embeddings in (rows, queries):
        distances = []
        for row, name in enumerate(pictures.names[:6]):
            if name in TRUTH:
                similarities = [
                    sum(float(a) * float(b) for a, b in zip(embeddings[row], reference, strict=True))
                    for reference in references
                ]
                nearest = PLACES[similarities.index(max(similarities))]
                distances.append(great_circle_km(TRUTH[name], tuple(nearest)))
        medians.append(median(distances))
    labels = labels_in(tmp_path)

    report = check(pictures, queries, table(rows), index=index, labels=labels, limits=LOOSE)

    assert report.index.labelled == 5
    assert report.index.model_km == pytest.approx(medians[0], abs=1e-6)
    assert report.index.torch_km == pytest.approx(medians[1], abs=1e-6)
    assert report.as_dict()["median_km"] == round(medians[0], 1)
    assert any(f"median distance {medians[0]:.1f} km, by torch {medians[1]:.1f} km" in x for x in report.lines())
    grown = medians[0] / medians[1] - 1
    assert grown > 0.5
    check(pictures, queries, table(rows), index=index, labels=labels, limits=replace(LOOSE, max_shift=grown * 1.01))
    with pytest.raises(ParityError, match=rf"grows from {medians[1]:.1f} km to {medians[0]:.1f} km"):
        check(pictures, queries, table(rows), index=index, labels=labels, limits=replace(LOOSE, max_shift=grown * 0.99))
    # Coming nearer is no fault.
    better = check(pictures, rows, table(queries), index=index, labels=labels, limits=replace(LOOSE, max_shift=0.0))
    assert better.index.shift_km == pytest.approx(medians[1] - medians[0], abs=1e-6)


def test_some_kilometres_are_allowed_by_default(pictures: Pictures, tmp_path: Path) -> None:
    """Answers 20 km further off: a share of nothing, and still no fault."""
    references, queries = axes_and_between()
    places = np.concatenate([PLACES, PLACES + np.array([0.18, 0.0])])
    vectors = np.concatenate([references, unit(np.eye(DIM) - 0.3)])
    index = hand_made(tmp_path / "index", vectors, places)
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{PLACES[row][0]},{PLACES[row][1]}" for row, name in enumerate(pictures.names[:6])]
    labels.write_text("\n".join(["path,latitude,longitude", *rows]) + "\n")
    shifted = np.concatenate([unit(np.eye(DIM) - 0.25), queries[6:]])
    close = np.concatenate([unit(np.eye(DIM) + 0.05), queries[6:]])

    def run(limits: ParityLimits):
        return check(pictures, close, table(shifted), index=index, labels=labels, limits=limits)

    with pytest.raises(ParityError, match=r"grows from 0\.0 km to 20\.0 km; 0\.0 km more are allowed"):
        run(replace(LOOSE, max_shift=0.0))
    report = run(replace(LOOSE, max_shift=0.0, shift_floor_km=25.0))

    assert report.index.torch_km == pytest.approx(0.0, abs=1e-3)
    assert report.index.model_km == pytest.approx(20.0, abs=0.1)


def test_labels_that_cannot_be_used_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    references, queries = axes_and_between()
    index = hand_made(tmp_path / "index", references, PLACES)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,latitude,longitude\nelsewhere.jpg,1,2\n")
    with pytest.raises(UsageError, match="no index is given"):
        check(pictures, queries, table(queries), labels=labels)
    with pytest.raises(InputError, match="names none of the 6 photos"):
        check(pictures, queries, table(queries), index=index, labels=labels)
    with pytest.raises(InputError, match="cannot be read"):
        check(pictures, queries, table(queries), index=index, labels=tmp_path / "gone.csv")


# --- a real network ---------------------------------------------------------------------------------------------------


def test_a_timm_model_through_torchs_exporter() -> None:
    pytest.importorskip("onnxscript")
    from export.graph import trace

    torch.manual_seed(5)
    network = timm.create_model("test_efficientnet", num_classes=0).eval()
    pictures = gather_pictures(EXAMPLES, PREPROCESSING, at_least=5)
    expected = reference_embeddings(embedder_of(network), pictures.pixels)
    model = trace(network, PREPROCESSING, dim=expected.shape[1], metadata={}).model
    identity = replace(IDENTITY, dim=expected.shape[1])

    report = check_parity(
        model.SerializeToString(), pictures, expected, limits=default_limits("fp32"), max_batch=5, identity=identity
    )
    assert report.min_cosine > 0.999999
    assert report.photos == 10

    weights = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    array = onnx.numpy_helper.to_array(weights)
    noise = np.random.default_rng(0).normal(size=array.shape).astype(np.float32) * array.std()
    weights.CopyFrom(onnx.numpy_helper.from_array(array + noise, weights.name))
    with pytest.raises(ParityError, match=r"\.jpg has a cosine of 0\.[0-9]{7} with torch"):
        check_parity(
            model.SerializeToString(), pictures, expected, limits=default_limits("fp32"), max_batch=5, identity=identity
        )
