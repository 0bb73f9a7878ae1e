"""The robot side: bundles, the control loop, robots. numpy and onnxruntime alone; torch is never imported."""
