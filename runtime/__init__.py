"""The robot side: bundles, the control loop, robots. numpy and onnxruntime alone (websockets and msgpack for policies elsewhere); torch is never imported."""
