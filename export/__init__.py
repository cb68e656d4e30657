"""From a checkpoint to what travels: ONNX model, engine, bundle.

Torch is allowed here. It runs from a checkout (installed editable) and is not part of the wheel; what a device needs
without torch lives in `geoinfer`.
"""

import geoinfer  # noqa: F401 - before anything loads ONNX Runtime, whose telemetry it turns off
