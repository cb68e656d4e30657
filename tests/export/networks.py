"""Networks small enough to export in seconds, pictures without a file, and what makes an embedder of a network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import timm
import torch

from export.torch_embedder import TorchEmbedder
from geoinfer.images import Preprocessing

IMAGENET = Preprocessing(size=32, resize="squash", interpolation="bilinear")


def drawn(size: int) -> np.ndarray:
    """Six pictures: gradients, noise, a checkerboard, a mixture, black and white. (6, size, size, 3) uint8."""
    rng = np.random.default_rng(20240501)
    ramp = np.linspace(0, 255, size)
    across, down = np.broadcast_to(ramp, (size, size)), np.broadcast_to(ramp[:, None], (size, size))
    board = (np.indices((size, size)).sum(axis=0) // 16 % 2) * 255
    noise = rng.integers(0, 256, (size, size, 3))
    return np.stack(
        [
            np.stack([across, down, 255 - across], axis=2),
            noise,
            np.repeat(board[..., None], 3, axis=2),
            noise // 2 + np.stack([down, across, down], axis=2) // 2,
            np.zeros((size, size, 3)),
            np.full((size, size, 3), 255),
        ]
    ).astype(np.uint8)


def embedder_of(network: torch.nn.Module, preprocessing: Preprocessing = IMAGENET, **changed: object) -> TorchEmbedder:
    embedder = TorchEmbedder(
        network=network,
        preprocessing=preprocessing,
        identity="tiny:0",
        source="drawn by a test",
        licence="CC0-1.0",
        weights_sha256="0" * 64,
    )
    return dataclasses.replace(embedder, **changed)


def truth(network: torch.nn.Module, pixels: np.ndarray, preprocessing: Preprocessing = IMAGENET) -> np.ndarray:
    """Unit embeddings by torch in float64, from the formula."""
    planes = (pixels / 255.0 - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.std)
    with torch.inference_mode():
        outputs = network.double()(torch.from_numpy(planes).permute(0, 3, 1, 2)).numpy()
    network.float()
    return outputs / np.linalg.norm(outputs, axis=1, keepdims=True)


def randomised(network: torch.nn.Module, seed: int = 7) -> torch.nn.Module:
    """Weights as uneven as trained ones; fresh ones have zeros and ones where a mistake would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
            noise = torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
            tensor.copy_(1 + noise if tensor.ndim == 1 and name.endswith("weight") else noise)
        for name, tensor in network.named_buffers():
            if tensor.is_floating_point():
                drawn_values = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn_values + 0.5 if name.endswith("running_var") else drawn_values - 0.5)
    return network.eval()


def vit(size: int = 32) -> torch.nn.Module:
    return randomised(timm.create_model("test_vit", num_classes=0, img_size=size))


class Tiny(torch.nn.Module):
    """Enough of a network to export in a second: (n, 3, 32, 32) -> (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(8)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.norm(self.conv(planes)))).flatten(1)


class QuickGelu(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * torch.sigmoid(1.702 * values)


class ClipTower(torch.nn.Module):
    """The image tower of CLIP as its authors wrote it, with torch's own attention: (n, 3, 32, 32) -> (n, 24)."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.token = torch.nn.Parameter(torch.zeros(width))
        self.places = torch.nn.Parameter(torch.zeros(17, width))
        self.before = torch.nn.LayerNorm(width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2 * layers))
        self.attentions = torch.nn.ModuleList(torch.nn.MultiheadAttention(width, 4) for _ in range(layers))
        self.mlps = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(width, 4 * width), QuickGelu(), torch.nn.Linear(4 * width, width))
            for _ in range(layers)
        )
        self.after = torch.nn.LayerNorm(width)
        self.projection = torch.nn.Parameter(torch.zeros(width, 24))
        randomised(self)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(planes).flatten(2).transpose(1, 2)
        first = self.token.expand(tokens.shape[0], 1, -1)
        stream = self.before(torch.cat([first, tokens], dim=1) + self.places).transpose(0, 1)
        for attention, mlp, a, b in zip(self.attentions, self.mlps, self.norms[::2], self.norms[1::2], strict=True):
            seen = a(stream)
            stream = stream + attention(seen, seen, seen, need_weights=False)[0]
            stream = stream + mlp(b(stream))
        return self.after(stream.transpose(0, 1)[:, 0]) @ self.projection


def built_by(trt: Any, data: bytes) -> tuple[int, ...]:
    """Parses and builds a strongly typed engine, without a GPU, and gives the shape of its output."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(data), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    configuration = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("pixels", (1, *shape), (4, *shape), (16, *shape))
    configuration.add_optimization_profile(profile)
    assert network.get_output(0).dtype == trt.DataType.FLOAT
    plan = builder.build_serialized_network(network, configuration)
    assert plan is not None
    return tuple(network.get_output(0).shape)
