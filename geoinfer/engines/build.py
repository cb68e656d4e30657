"""Builds an engine from an ONNX model, on the machine that it is to run on, with TensorRT alone.

Precision is a property of the ONNX model: networks are strongly typed, and there is no flag that would change them.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoinfer.engines.build_options import (
    BuildOptions,
    check_flavor_options,
    check_options,
    check_out,
    target_capabilities,
)
from geoinfer.engines.cast_first import with_cast_first
from geoinfer.engines.embedder_model import EmbedderModel, read_embedder_model
from geoinfer.engines.flavors import TENSORRT, TENSORRT_RTX, Flavor, default_flavor, load_flavor
from geoinfer.engines.gpu import Gpu, cuda_runtime, find_gpu
from geoinfer.engines.log import make_logger, tidied
from geoinfer.engines.onnx_metadata import TensorSpec, damage_named, mapped
from geoinfer.engines.sidecar import (
    BuiltOn,
    Parity,
    Profile,
    Sidecar,
    StoredFile,
    parsed_capability,
    sidecar_path,
    this_platform,
    write_sidecar,
)
from geoinfer.errors import (
    DeviceError,
    GeoInferError,
    MissingPackageError,
    ModelError,
    OutputError,
    UsageError,
)
from geoinfer.integrity import atomic_file, sha256_of, sync_folder
from geoinfer.lock import OutputLock
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["BuildOptions", "build_engine", "make_logger"]


def build_engine(
    onnx: Path,
    out: Path,
    options: BuildOptions,
    report: Callable[[str], None],
    check: Callable[[Path, Sidecar], dict[str, Any] | None] | None = None,
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Sidecar:
    """Builds `out` and its sidecar from an ONNX model.

    Both are written aside and take their places when they are whole. An engine that was there loses its sidecar first
    and gets the new one last: whatever happens in between, no sidecar lies beside an engine that it does not describe.

    Args:
        onnx: an ONNX model with geoinfer's metadata.
        out: the engine, `*.trt`; its folder must exist.
        options: how.
        report: takes lines for a reader.
        check: called with the engine and its sidecar before they take their places; what it returns is stored as
            `parity.engine`, and if it raises, nothing is written.
        writing: makes a context that everything after TensorRT's own work runs in, from the first byte that is written
            aside to the last rename: the place to make a signal an exception, so that what was written is removed.

    Returns:
        The sidecar.

    Raises:
        UsageError: the options make no sense, or the flavour has no such option.
        InputError: there is no such model.
        ModelError: the model is none that an engine can be built from, or TensorRT cannot build it.
        DeviceError: TensorRT needs a GPU and there is none.
        MissingPackageError: the flavour is not installed.
        OutputError: the engine cannot be written, or would overwrite something else.
    """
    check_options(options)
    model = read_embedder_model(onnx)
    check_out(out, onnx, force=options.force)
    flavor = default_flavor() if options.flavor is None else load_flavor(options.flavor)
    check_flavor_options(options, flavor)
    gpu = _gpu(flavor, options)
    capabilities = target_capabilities(flavor, options, gpu)
    where = f"for {gpu}" if gpu and flavor.name == TENSORRT else f"for compute capability {', '.join(capabilities)}"
    takes = "this takes minutes" if flavor.name == TENSORRT else "this takes seconds"
    report(f"building with {flavor.title} {where.replace('+', ' and later')}, {model.precision}: {takes}")
    lock = OutputLock(out.with_name(f".{out.name}.lock"), out, option="--out")
    with _output_errors(out):
        lock.take()
    with undone_at_the_end(lock.remove):
        try:
            return _built(model, flavor, gpu, capabilities, onnx, out, options, report, check, writing)
        finally:
            lock.remove()


def _built(
    model: EmbedderModel,
    flavor: Flavor,
    gpu: Gpu | None,
    capabilities: tuple[str, ...],
    onnx: Path,
    out: Path,
    options: BuildOptions,
    report: Callable[[str], None],
    check: Callable[[Path, Sidecar], dict[str, Any] | None] | None,
    writing: Callable[[], AbstractContextManager[None]],
) -> Sidecar:
    """Builds and writes, in the locked place."""
    began = time.monotonic()
    plan, timings = _interruptible(lambda: _build(model, flavor, options, report))
    seconds = time.monotonic() - began
    engine_aside = out.with_name(f".{out.stem}.geoinfer-tmp.trt")
    with writing(), _removed_afterwards(engine_aside):
        if options.timing_cache is not None:
            _write_timing_cache(options.timing_cache, timings, report)
        with _output_errors(out), atomic_file(engine_aside) as file:
            file.write(plan)
        del plan
        sidecar = Sidecar(
            # The package leads to every layer above this one; its version alone is wanted.
            geoinfer=import_module("geoinfer").__version__,
            flavor=flavor.name,
            flavor_version=flavor.version,
            engine=StoredFile(engine_aside.stat().st_size, sha256_of(engine_aside)),
            platform=this_platform(),
            gpu=None if gpu is None else BuiltOn(gpu.name, "{}.{}".format(*gpu.compute_capability)),
            portable=options.portable or (flavor.name == TENSORRT_RTX and not options.compute_capabilities),
            compute_capabilities=capabilities,
            precision=model.precision,
            profile=Profile(options.min_batch, options.opt_batch, options.max_batch),
            workspace_bytes=options.workspace_bytes,
            input=model.input,
            output=model.output,
            onnx=StoredFile(model.size_bytes, model.sha256, onnx.name),
            identity=model.identity,
            dim=model.dim,
            preprocessing=model.preprocessing,
            source=model.source,
            licence=model.licence,
            weights_sha256=model.weights_sha256,
            parity=Parity(model.parity, None),
            build_seconds=round(seconds, 3),
        )
        write_sidecar(engine_aside, sidecar)
        if check is not None:
            try:
                found = check(engine_aside, sidecar)
            except GeoInferError as error:  # a reader knows nothing of the name that it has for now
                aside, name = str(engine_aside), str(out)
                raise type(error)(str(error).replace(aside, name), hint=error.hint.replace(aside, name)) from error
            sidecar = replace(sidecar, parity=Parity(sidecar.parity.onnx, found))
            write_sidecar(engine_aside, sidecar)
        with _output_errors(out):
            sidecar_path(out).unlink(missing_ok=True)
            engine_aside.replace(out)
            sidecar_path(engine_aside).replace(sidecar_path(out))
            sync_folder(out.parent)
    return sidecar


def _gpu(flavor: Flavor, options: BuildOptions) -> Gpu | None:
    """The GPU to build on: TensorRT needs one; TensorRT-RTX does without, and it is only noted."""
    if flavor.name == TENSORRT_RTX:
        with suppress(DeviceError, MissingPackageError):
            return find_gpu(options.device)
        return None
    try:
        gpu = find_gpu(options.device)
    except DeviceError as error:
        raise DeviceError(
            f"TensorRT builds an engine on the GPU that is to run it: {error}",
            hint=f"build it there; without a GPU --flavor {TENSORRT_RTX} builds for RTX GPUs",
        ) from error
    return gpu


def _interruptible(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, from a thread of its own.

    A signal is handled by Python's main thread, which would otherwise be in TensorRT for minutes.
    """
    outcome: list[Any] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True, name="geoinfer-engine-build")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return outcome[0]


def _build(
    model: EmbedderModel, flavor: Flavor, options: BuildOptions, report: Callable[[str], None]
) -> tuple[memoryview, bytes]:
    """The plan, and the timings to keep for the next build (empty without a timing cache)."""
    api = flavor.api
    logger = make_logger(api)
    if flavor.name == TENSORRT:
        _use_gpu(options.device)
    try:
        builder = api.Builder(logger)
        # Bit of a flag that is the only mode since TensorRT 11, and ignored there.
        network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        config = builder.create_builder_config()
        parser = api.OnnxParser(network, logger)
    except (TypeError, RuntimeError) as error:  # its constructors return nothing where CUDA does not work
        raise DeviceError(
            f"{flavor.title} cannot start: {logger.fault() or error}", hint="`geoinfer doctor` shows what is there"
        ) from error
    _parse(model, flavor, parser, logger)
    _check_network(model, flavor, network)
    profile = builder.create_optimization_profile()
    shape = model.input.shape[1:]
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile.set_shape(model.input.name, *((batch, *shape) for batch in batches))
    config.add_optimization_profile(profile)
    # On by default, it would round the factors of an fp32 product to 10 bits: precision is the graph's to say.
    config.clear_flag(api.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.portable and flavor.name == TENSORRT:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capabilities:
        _set_capabilities(api, config, options.compute_capabilities)
    if options.timing_cache is not None:
        _read_timing_cache(options.timing_cache, config, flavor, report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(model, flavor, options, logger.fault())
    timings = b"" if options.timing_cache is None else bytes(memoryview(config.get_timing_cache().serialize()))
    return memoryview(plan), timings


def _use_gpu(ordinal: int) -> None:
    """Makes a GPU the one that this thread works on."""
    (fault,) = cuda_runtime().cudaSetDevice(ordinal)
    if int(fault) != 0:
        raise DeviceError(f"cuda:{ordinal}: cannot be used (CUDA error {int(fault)})")


def _parse(model: EmbedderModel, flavor: Flavor, parser: Any, logger: Any) -> None:
    with mapped(model.path) as data:
        with damage_named(model.path):
            changed = with_cast_first(data, model.input.name)
        # The path is what weights in files of their own are relative to.
        if parser.parse(data if changed is None else changed, str(model.path)):
            return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    operators = sorted({str(error.node_operator()) for error in errors if error.node_operator()})
    reason = tidied([str(error.desc()) for error in errors]) or logger.fault() or "it gives no reason"
    unknown = [name for name in operators if not parser.supports_operator(name)]
    if unknown:
        raise ModelError(
            f"{model.path}: {flavor.title} does not know the ONNX operator{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(unknown)}",
            hint="a newer TensorRT may; `geoinfer predict --engine MODEL.onnx --device cuda` runs the model without",
        )
    at = f" at {', '.join(operators)}" if operators else ""
    raise ModelError(
        f"{model.path}: {flavor.title} cannot read the model{at}: {reason}",
        hint="export it again with `python -m export onnx`, or run the .onnx model itself with --device cuda",
    )


def _check_network(model: EmbedderModel, flavor: Flavor, network: Any) -> None:
    """That TensorRT understood the model's ends as they are written."""
    expected = (model.input, model.output)
    seen = tuple(
        TensorSpec(tensor.name, _dtype(tensor.dtype), tuple(int(n) for n in tensor.shape))
        for tensor in (
            *(network.get_input(number) for number in range(network.num_inputs)),
            *(network.get_output(number) for number in range(network.num_outputs)),
        )
    )
    if [(s.name, s.dtype, len(s.shape)) for s in seen] != [(e.name, e.dtype, len(e.shape)) for e in expected]:
        raise ModelError(
            f"{model.path}: {flavor.title} reads its ends as {'; '.join(map(str, seen))}; expected "
            f"{'; '.join(map(str, expected))}",
            hint="export it again with `python -m export onnx`",
        )


def _dtype(kind: Any) -> str:
    return {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}.get(kind.name, kind.name.lower())


def _set_capabilities(api: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    wanted = sorted(set(capabilities), key=parsed_capability)
    config.num_compute_capabilities = len(wanted)
    for number, capability in enumerate(wanted):
        member = getattr(api.ComputeCapability, f"SM{capability.replace('.', '')}")
        if not config.set_compute_capability(member, number):
            raise UsageError(f"--compute-capability {capability}: refused by TensorRT-RTX")


def _build_error(model: EmbedderModel, flavor: Flavor, options: BuildOptions, fault: str) -> GeoInferError:
    if "OutOfMemory" in fault or "out of memory" in fault.lower():
        limit = "" if options.workspace_bytes is None else " within --workspace"
        return ModelError(
            f"{model.path}: {flavor.title} ran out of memory{limit}: {fault}",
            hint="a larger --workspace, or a smaller --max-batch",
        )
    return ModelError(
        f"{model.path}: {flavor.title} cannot build an engine: {fault or 'it gives no reason'}",
        hint="the model itself runs with --device cuda or --device cpu",
    )


def _read_timing_cache(path: Path, config: Any, flavor: Flavor, report: Callable[[str], None]) -> None:
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise OutputError(f"--timing-cache {path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(
            f"--timing-cache {path}: no timings of {flavor.title} on this GPU", hint="name a new file, or remove it"
        )
    report(f"timing cache: {path}, {'read and added to' if stored else 'new'}")


def _write_timing_cache(path: Path, timings: bytes, report: Callable[[str], None]) -> None:
    """The engine is built: timings that cannot be kept cost the next build time, and this one nothing."""
    try:
        with atomic_file(path) as file:
            file.write(timings)
    except OSError as error:
        report(f"timing cache: {path} cannot be written: {(error.strerror or str(error)).lower()}")


@contextmanager
def _removed_afterwards(engine: Path) -> Iterator[None]:
    """Whatever happens, nothing stays that was written aside."""
    try:
        yield
    finally:
        for path in (engine, sidecar_path(engine)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise OutputError(
            f"--out {out}: cannot be written: {(error.strerror or str(error)).lower()}",
            hint="choose another place, or make room",
        ) from error
