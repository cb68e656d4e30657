"""TensorRT engines: built from ONNX models on the machine that uses them, and described by a sidecar each."""
