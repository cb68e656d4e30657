"""`--decode`: whether a GPU decodes photos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from geoinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from geoinfer.backends import Embedder
    from geoinfer.batch.device_decoding import DeviceDecoding
    from geoinfer.images.loader import PhotoLoader

PLACES: Final = ("auto", "cpu", "gpu")


def check_decode(mode: str) -> None:
    """Raises UsageError for a `--decode` that is none."""
    if mode not in PLACES:
        raise UsageError(f"--decode {mode}: expected auto, cpu or gpu")


def decoding_opener(
    mode: str, embedder: Embedder, *, workers: int, batch_size: int, tell: Callable[[str], None]
) -> Callable[[PhotoLoader], DeviceDecoding | None] | None:
    """What `run_predict` opens its decoding with; None where the CPU decodes, and nothing of a GPU is imported.

    Args:
        mode: of `--decode`.
        embedder: the model.
        workers: CPU threads.
        batch_size: photos that the model sees at once.
        tell: says a line to the user.
    """
    if mode == "cpu" or (mode == "auto" and embedder.device == "cpu"):
        return None

    def opened(loader: PhotoLoader) -> DeviceDecoding | None:
        from geoinfer.batch.device_decoding import decoding_key, open_device_decoding
        from geoinfer.self_tuning.decode_rates import load_rates, store_rates

        def remember(rates: dict[str, object]) -> None:
            if complaint := store_rates(key, rates):
                tell(complaint)

        key = decoding_key(embedder, workers, batch_size)
        decoding = open_device_decoding(
            mode, embedder, loader, workers=workers, batch_size=batch_size, remembered=load_rates(key),
            remember=remember, say=tell,
        )  # fmt: skip
        if decoding is not None:
            tell(decoding.described)
        return decoding

    return opened
