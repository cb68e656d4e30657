"""Pixels to unit embeddings and to places: normalisation in the graph, heads, precision, layout, the regressor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from geoinfer.errors import UsageError  # noqa: E402
from geoinfer.geodesy import from_unit_vectors, haversine_km, to_unit_vectors  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from trainer.losses import haversine_loss  # noqa: E402
from trainer.models import Backbone, GeoModel, create_model, freeze  # noqa: E402
from trainer.models.embedder import unit_rows  # noqa: E402
from trainer.models.freezing import training_mode  # noqa: E402

pytestmark = pytest.mark.slow


def noise(count: int = 4, size: int = 64, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def built(backbone: str = "test_resnet", size: int = 64, **options: Any) -> GeoModel:
    torch.manual_seed(5)
    return create_model(backbone, Preprocessing(size), weights="none", **options).eval()


class Flat(torch.nn.Module):
    """Remembers what it was given, and answers with its first pixel."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen = pictures
        return pictures[:, :, 0, 0]


def flat(preprocessing: Preprocessing) -> GeoModel:
    return GeoModel(Backbone(Flat(), 3, (0.5,) * 3, (0.5,) * 3, "none"), preprocessing)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0.1, 1), (1, 2, 0.01))],
)
def test_the_graph_normalises_pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    size = 16
    model = flat(Preprocessing(size, mean=mean, std=std))  # type: ignore[arg-type]
    # Every value of every channel, at a place of its own.
    pixels = np.stack(
        [np.arange(256).reshape(16, 16), np.arange(255, -1, -1).reshape(16, 16), np.full((16, 16), 77)], 2
    )
    model(torch.from_numpy(pixels[None].astype(np.uint8)))
    expected = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    seen: Any = model.backbone.seen
    assert seen.dtype == torch.float32
    assert seen.shape == (1, 3, size, size)
    np.testing.assert_allclose(seen[0].permute(1, 2, 0).numpy(), expected, rtol=2e-6, atol=2e-6 / min(std))


def test_pixels_are_not_changed() -> None:
    pixels = noise()
    before = pixels.clone()
    built()(pixels)
    assert torch.equal(pixels, before)


def test_the_head_is_the_papers() -> None:
    model = built("resnet50", 32)
    head: Any = model.projection
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert (head[0].in_features, head[0].out_features, head[3].out_features) == (2048, 768, 256)
    assert head[2].p == 0.3
    assert model.coordinate_head is None


def test_the_answer_is_the_head_by_hand() -> None:
    model = built(coordinates="embedding")
    pixels = noise()
    with torch.no_grad():
        answers = model(pixels)
        pictures = (pixels.permute(0, 3, 1, 2) / 255 - model.mean / 255) / (model.std / 255)
        hidden = model.backbone(pictures)
        first: Any = model.projection
        embedded = torch.relu(hidden @ first[0].weight.T + first[0].bias) @ first[3].weight.T + first[3].bias
        embedded = embedded / embedded.square().sum(dim=1, keepdim=True).sqrt()
        second: Any = model.coordinate_head
        place = torch.relu(embedded @ second[0].weight.T + second[0].bias) @ second[3].weight.T + second[3].bias
        place = place / place.square().sum(dim=1, keepdim=True).sqrt()
    assert answers.shape == (4, 259)
    torch.testing.assert_close(answers, torch.cat([embedded, place], dim=1), rtol=1e-5, atol=1e-6)
    embeddings, places = model.split(answers)
    assert torch.equal(embeddings, answers[:, :256])  # type: ignore[arg-type]
    assert torch.equal(places, answers[:, 256:])  # type: ignore[arg-type]


@pytest.mark.parametrize(("dim", "coordinates", "width"), [(256, "none", 256), (0, "backbone", 3), (8, "backbone", 11)])
def test_heads_that_are_left_out(dim: int, coordinates: Any, width: int) -> None:
    model = built(dim=dim, coordinates=coordinates)
    answers = model(noise())
    assert answers.shape == (4, width)
    embeddings, places = model.split(answers)
    assert (embeddings is None) == (dim == 0)
    assert (places is None) == (coordinates == "none")


def test_a_model_that_answers_with_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="answer with nothing"):
        built(dim=0)
    with pytest.raises(UsageError, match=r"model.dim 0 leaves the embedding out"):
        built(dim=0, coordinates="embedding")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_rows_are_of_unit_length_in_float32_under_autocast(backbone: str, dtype: torch.dtype) -> None:
    model = built(backbone, coordinates="embedding")
    with torch.no_grad(), torch.autocast("cpu", dtype):
        answers = model(noise())
    assert answers.dtype == torch.float32
    for rows in (answers[:, :256], answers[:, 256:]):
        np.testing.assert_allclose(np.linalg.norm(rows.double().numpy(), axis=1), 1, rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-6, 6), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_unit_rows_have_unit_length_whatever_their_scale(seed: int, power: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (power if dtype != torch.float16 else power / 2)
    vectors = (torch.randn(5, 48, generator=generator) * scale).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        rows = unit_rows(vectors)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(np.linalg.norm(rows.double().numpy(), axis=1), 1, rtol=0, atol=1e-6)
    directions = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    np.testing.assert_allclose(rows.double().numpy(), directions.numpy(), rtol=0, atol=1e-6)


def test_doubles_stay_doubles() -> None:
    assert unit_rows(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_dropout_is_on_in_training_and_off_otherwise() -> None:
    model = built("test_vit", dropout=0.3)
    pixels = noise()
    with torch.no_grad():
        assert torch.equal(model(pixels), model(pixels))
        freeze(model, "none")
        training_mode(model, batch_norm=False)
        assert not torch.equal(model(pixels), model(pixels))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_channels_last_answers_the_same(backbone: str) -> None:
    model = built(backbone)
    pixels = noise()
    with torch.no_grad():
        before = model(pixels)
        model.use_channels_last()
        after = model(pixels)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    if backbone == "test_resnet":
        backbone_module: Any = model.backbone
        assert backbone_module.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_not_among_the_weights() -> None:
    assert not {"mean", "std"} & set(built().state_dict())


def test_the_same_seed_makes_the_same_heads() -> None:
    first, second = built(coordinates="backbone").state_dict(), built(coordinates="backbone").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# Far apart, at a pole and on both sides of the antimeridian.
PLACES = np.array([[52.5, 13.4], [-33.9, 151.2], [89.9, 10.0], [-17.5, 179.99], [-17.5, -179.99], [0.0, 0.0]])


@pytest.mark.parametrize("coordinates", ["backbone", "embedding"])
def test_a_coordinate_head_learns_a_few_places(coordinates: Any) -> None:
    model = built("test_vit", dim=16, coordinates=coordinates, dropout=0.0)
    freeze(model, "all" if coordinates == "backbone" else "none", ["coordinates"])
    training_mode(model, batch_norm=False)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    rate = 1e-3 if coordinates == "backbone" else 1e-2
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    pixels, truth = noise(len(PLACES)), torch.from_numpy(PLACES)
    losses = []
    for _ in range(150):
        _, places = model.split(model(pixels))
        assert places is not None
        loss = haversine_loss(places, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        places = model.eval().split(model(pixels))[1]
    assert places is not None
    errors_km = haversine_km(from_unit_vectors(places.numpy()), PLACES)
    assert losses[0] > 0.8  # random answers are a quarter of the way round, about 1.57
    assert losses[-1] < 0.2 * losses[0]
    assert errors_km.mean() == pytest.approx(6371 * losses[-1], rel=0.6)
    # The vectors lie as the runtime lays them out: z to the north pole, x to (0, 0).
    np.testing.assert_allclose(places.numpy(), to_unit_vectors(PLACES), atol=0.5)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    parts = {name.partition(".")[0] for name in frozen}
    assert parts == ({"projection"} if coordinates == "backbone" else {"backbone", "projection"})
