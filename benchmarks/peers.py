"""The same student on every runtime that people would take: ONNX Runtime as actlet uses it, and what others offer.

Each backend answers the same recorded frames, and how far its actions lie from the float bundle's is said beside its speed: a fast network that
answers something else is not fast. Wall time is what a robot waits; CPU time of all threads is what is left when a machine is shared.

All are timed in one run, by turns in an order that is drawn anew for every round. A turn is `IN_A_ROW` calls. The first finds another's weights in the
cache, as where a robot's computer did other things since the last decision: it is "cold". The mean of the others is "warm", as in a loop that decides
all the time.

A policy is measured as it runs on a robot, for one instruction (`runtime.policy_network`), and so is every other backend that reads ONNX: each
has the network in which the instruction's part is constants already. Torch computes that part every time, and so do the rows "whole", which
show what it costs.

    ours             ONNX Runtime on bundles by `quantize.schemes`
    onnxruntime      its own `quantize_static` (QDQ) and `quantize_dynamic`, as they come
    openvino         float32, and int8 by NNCF's post-training quantization          pip install openvino nncf
                     of convolutions and plain products
    torch            eager, compiled, and compiled with int8 by torchao              pip install torchao; a C++ compiler

A backend that cannot be made is a line that says why, never a missing one.

The ceilings, by turns with them: matrix products of `GEMM` in float32 and in int8 (uint8 x int8, as a QLinearConv multiplies), and a copy of memory.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from actlet.statistics import latency_summary
from benchmarks.arithmetic import count_bundle
from quantize.condition import INSTRUCTION, graph_of, network_files, network_of
from quantize.frames import Frames
from quantize.graph import Graph
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel, SessionConfig

__all__ = ["BACKENDS", "Backend", "Run", "ceilings", "make_backends", "measure_backends", "time_by_turns"]

Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""Inputs of the whole graph by name -> actions float32 (1, H, A)."""
IN_A_ROW = 4
GEMM = (256, 1024, 1024)
COPY_BYTES = 64 << 20
_INTEGERS = ("int8", "int4-int8", "int8-dynamic")


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to run the student."""

    name: str
    precision: str
    run: Run
    size_bytes: int | None
    """Of the file or the weights in memory; None where that is not to be seen."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """What backends are made from."""

    bundle: Path
    checkpoint: Path | None
    model: onnx.ModelProto
    """The float policy's whole graph."""
    calibrate: Frames
    instruction: NDArray[np.float32]
    """float32 (1, E), the one that all are measured with."""
    threads: int

    @property
    def fixed(self) -> onnx.ModelProto:
        """The float network for the instruction."""
        return onnx.load_from_string(network_of(self.model).fixed_content(self.instruction))

    @property
    def rows(self) -> list[dict[str, NDArray[Any]]]:
        """Inputs of `fixed` to calibrate with."""
        return [_without_instruction(self.calibrate.feeds(row)) for row in range(len(self.calibrate))]


def _without_instruction(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: values for name, values in feeds.items() if name != INSTRUCTION}


def _ours(precision: str, *, whole: bool = False, **settings: Any) -> Callable[[_Task], Backend]:
    def make(task: _Task) -> Backend:
        model = task.model if precision == "float32" else scheme(precision, **settings).quantize(task.model, task.calibrate)
        config, size = SessionConfig(threads=task.threads), sum(len(content) for content in network_files(model).values())
        if whole:
            network = OrtModel(model.SerializeToString(), config=config)
            return Backend("ours, whole", precision, lambda feeds: network.run(feeds)["actions"], size)
        fixed = network_of(model, config).fixed(task.instruction)
        return Backend("ours", precision, lambda feeds: fixed.run(_without_instruction(feeds))["actions"], size)

    return make


def _onnx(model: bytes, name: str, threads: int) -> Backend:
    network = OrtModel(model, config=SessionConfig(threads=threads))
    return Backend(name, "int8", lambda feeds: network.run(_without_instruction(feeds))["actions"], len(model))


def _ort_static(task: _Task) -> Backend:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # It has no types.
        rows = iter(task.rows)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.rows, None)

    fixed = task.fixed
    stacks = [node.name for node in Graph(fixed).weight_nodes() if Graph(fixed).constant(node.input[1]).ndim == 3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "static.onnx"
        quantize_static(
            _plain(fixed),
            str(path),
            Reader(),
            nodes_to_exclude=stacks,  # The head is a stack of matrices, over which its kernel fails as it runs.
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return _onnx(path.read_bytes(), "onnxruntime quantize_static", task.threads)


def _ort_dynamic(task: _Task) -> Backend:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dynamic.onnx"
        # Without the head again.
        fixed = task.fixed
        nodes = [node.name for node in fixed.graph.node if node.op_type in ("Gemm", "Conv")]
        quantize_dynamic(_plain(fixed), str(path), weight_type=QuantType.QInt8, per_channel=True, nodes_to_quantize=nodes)
        return _onnx(path.read_bytes(), "onnxruntime quantize_dynamic", task.threads)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the shapes of inner values, over which its own tools stumble."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def _openvino(task: _Task, *, int8: bool, whole: bool = False) -> Backend:
    import openvino

    core = openvino.Core()
    model = core.read_model((task.model if whole else task.fixed).SerializeToString())
    if int8:
        import nncf

        rows = [task.calibrate.feeds(row) for row in range(len(task.calibrate))] if whole else task.rows
        # Products of stacks stay float, as in ours: rounded, NNCF 3.4 takes a number behind one for its bias, or OpenVINO 2026.4 does not compile them.
        products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
        stacks = [node.get_friendly_name() for node in products if any(len(value.get_partial_shape()) != 2 for value in node.inputs())]
        model = nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows), ignored_scope=nncf.IgnoredScope(names=stacks))
    # Its own choice of precision would be bfloat16 on a processor that has it.
    settings = {"INFERENCE_NUM_THREADS": task.threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/model.xml", compress_to_fp16=False)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    names = [output.get_any_name() for output in model.outputs]
    place = names.index("actions")

    def run(feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        request.infer(dict(feeds) if whole else _without_instruction(feeds))
        return np.array(request.get_output_tensor(place).data)

    name = "openvino + nncf" if int8 else "openvino"
    return Backend(f"{name}, whole" if whole else name, "int8" if int8 else "float32", run, size)


def _torch(task: _Task, *, compiled: bool, int8: bool = False) -> Backend:
    import torch

    from distill.student import load_student

    if task.checkpoint is None:
        raise FileNotFoundError("no checkpoint was given (--checkpoint)")
    module: Any = load_student(task.checkpoint).exportable().eval()
    if int8:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(module, Int8DynamicActivationInt8WeightConfig())
    if compiled:
        module = torch.compile(module)
    order = [value.name for value in task.model.graph.input]

    def run(feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(*(torch.from_numpy(feeds[name]) for name in order))[0].numpy()

    name = "torchao" if int8 else "torch compiled" if compiled else "torch eager"
    return Backend(name, "int8" if int8 else "float32", run, None)


BACKENDS: dict[str, Callable[[_Task], Backend]] = {
    "ours float32": _ours("float32"),
    "ours int8": _ours("int8"),
    "ours int8, weights to 127": _ours("int8", weight_levels=127),
    "ours int4-int8": _ours("int4-int8"),
    "ours int4": _ours("int4"),
    "ours float32, whole": _ours("float32", whole=True),
    "ours int8, whole": _ours("int8", whole=True),
    "ours int8-weights": _ours("int8-weights"),
    "ours int8-dynamic": _ours("int8-dynamic"),
    "onnxruntime quantize_static": _ort_static,
    "onnxruntime quantize_dynamic": _ort_dynamic,
    "openvino": lambda task: _openvino(task, int8=False),
    "openvino + nncf": lambda task: _openvino(task, int8=True),
    "openvino + nncf, whole": lambda task: _openvino(task, int8=True, whole=True),
    "torch eager": lambda task: _torch(task, compiled=False),
    "torch compiled": lambda task: _torch(task, compiled=True),
    "torchao int8, compiled": lambda task: _torch(task, compiled=True, int8=True),
}
"""Name -> how it is made."""


def make_backends(
    bundle: Path,
    calibrate: Frames,
    instruction: NDArray[np.float32],
    *,
    checkpoint: Path | None,
    threads: int,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Backend], dict[str, str]]:
    """Make all that can be made here.

    Args:
        bundle: A float bundle.
        calibrate: Recorded frames.
        instruction: float32 (1, E), the vector of the one instruction that they will be asked with.
        checkpoint: The student that the bundle was exported from, for torch; None leaves torch out.
        threads: Threads of one operator.
        names: Of `BACKENDS`; all when None.

    Returns:
        Name -> backend, and name -> why there is none.
    """
    task = _Task(bundle, checkpoint, graph_of(load_bundle(bundle)), calibrate, instruction, threads)
    made, missing = {}, {}
    for name in BACKENDS if names is None else names:
        print(f"{name}, {threads} threads ...", file=sys.stderr, flush=True)
        try:
            backend = BACKENDS[name](task)
            backend.run({**calibrate.feeds(0), INSTRUCTION: instruction})
            made[name] = backend
        except Exception as error:  # Whatever a foreign library says, it is said in the table.
            missing[name] = f"{type(error).__name__}: {' / '.join(str(error).split(chr(10)))[:300].strip(' /')}"
    return made, missing


def time_by_turns(
    runs: Mapping[str, Callable[[int], object]], *, rounds: int, warm_up: int = 10, seed: int = 0, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """`IN_A_ROW` calls of each in every round, in an order that is drawn anew.

    Args:
        runs: Name -> a call that is told the number of the round.
        rounds: How many.
        warm_up: Rounds before the clock starts.
        seed: Of the orders.
        progress: Show a bar.

    Returns:
        Name -> ``wall_ms, cpu_ms`` (warm) and ``cold_wall_ms, cold_cpu_ms``, each as `actlet.statistics.latency_summary` says.
    """
    rng, names = np.random.default_rng(seed), list(runs)
    kinds = ("cold_wall_ms", "cold_cpu_ms", "wall_ms", "cpu_ms")
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in names}
    for turn in tqdm(range(-warm_up, rounds), desc="by turns", unit="round", disable=not progress, file=sys.stderr):
        for name in rng.permutation(names):
            marks = []
            for call in range(IN_A_ROW + 1):
                marks.append((time.perf_counter(), time.process_time()))
                if call < IN_A_ROW:
                    runs[name](turn)
            if turn >= 0:
                (wall, cpu), (wall_1, cpu_1), (wall_n, cpu_n) = marks[0], marks[1], marks[-1]
                found = (wall_1 - wall, cpu_1 - cpu, (wall_n - wall_1) / (IN_A_ROW - 1), (cpu_n - cpu_1) / (IN_A_ROW - 1))
                for kind, value in zip(kinds, found, strict=True):
                    seconds[name][kind].append(value)
    return {name: {kind: latency_summary(values) for kind, values in found.items()} for name, found in seconds.items()}


def ceilings(threads: int) -> dict[str, tuple[Callable[[int], object], float]]:
    """Name -> a call, and how much it does: multiply-accumulates of a product, bytes of a copy (read and written)."""
    config = SessionConfig(threads=threads)
    rows, inner, columns = GEMM
    macs = float(rows * inner * columns)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, inner)).astype(np.float32), rng.normal(size=(inner, columns)).astype(np.float32)
    whole = rng.integers(0, 255, (rows, inner)).astype(np.uint8)
    products = {
        "float32": (_product("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, b), a),
        "int8": (_product("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, rng.integers(-63, 63, b.shape).astype(np.int8)), whole),
    }
    found: dict[str, tuple[Callable[[int], object], float]] = {}
    for name, (model, x) in products.items():
        # Ints do not pass `OrtModel`'s check of what a policy may have, so this one is opened as it is.
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), config.options(), providers=["CPUExecutionProvider"])
        found[name] = (lambda turn, session=session, x=x: session.run(None, {"x": x}), macs)
    source, target = np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)
    found["copy"] = (lambda turn: np.copyto(target, source), 2.0 * COPY_BYTES)
    return found


def _product(op: str, takes: int, gives: int, weight: NDArray[Any]) -> onnx.ModelProto:
    rows, inner, columns = GEMM
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", takes, [rows, inner])],
        [helper.make_tensor_value_info("y", gives, [rows, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def measure_backends(
    bundle: Path,
    calibrate: Frames,
    judge: Frames,
    *,
    checkpoint: Path | None,
    threads: int,
    rounds: int,
    unit: NDArray[np.float32],
    flags: NDArray[np.bool_],
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """A row for every backend.

    Args:
        bundle: A float bundle.
        calibrate: Recorded frames.
        judge: Others, of which each round has one; their first instruction is that of all.
        checkpoint: The student that the bundle was exported from.
        threads: Threads of one operator.
        rounds: Calls of each.
        unit: float32 (A,), the range of every action dimension.
        flags: (A,), which of them are binary.
        names: Of `BACKENDS`, "ours float32" among them; all when None.

    Returns:
        JSON types: ``backend, precision, threads, size_bytes, mean_error`` (of continuous actions, share of their range, against the float bundle),
        ``p50_ms, p99_ms, cpu_ms, cpu_p99_ms, ratio_to_float`` (CPU medians), ``share_of_ceiling`` (of the product's rate in its precision, by
        wall p50), all warm, and ``cold_p50_ms, cold_p99_ms, cold_cpu_ms, cold_ratio_to_float``, or ``backend, threads, missing``; and the ceilings as rows with ``ceiling`` and ``rate`` (multiply-accumulates or bytes a second).
    """
    instruction = judge.instruction[:1]
    made, missing = make_backends(bundle, calibrate, instruction, checkpoint=checkpoint, threads=threads, names=names)
    fed = [{**judge.feeds(row), INSTRUCTION: instruction} for row in range(len(judge))]
    tops = ceilings(threads)
    calls: dict[str, Callable[[int], object]] = {
        **{name: lambda turn, run=backend.run: run(fed[turn % len(fed)]) for name, backend in made.items()},
        **{f"ceiling {name}": call for name, (call, _) in tops.items()},
    }
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timing = time_by_turns(calls, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    rates = {name: work / (timing[f"ceiling {name}"]["wall_ms"]["p50"] / 1e3) for name, (_, work) in tops.items()}
    macs = count_bundle(bundle).macs
    reference = np.concatenate([made["ours float32"].run(feeds) for feeds in fed[:32]])
    rows: list[dict[str, Any]] = []
    for name, backend in made.items():
        t = timing[name]
        got = np.concatenate([backend.run(feeds) for feeds in fed[:32]])
        error = np.abs(got - reference)[..., ~flags] / unit[~flags]
        rows.append(
            {
                "backend": name,
                "precision": backend.precision,
                "threads": threads,
                "p50_ms": t["wall_ms"]["p50"],
                "p99_ms": t["wall_ms"]["p99"],
                "cpu_ms": t["cpu_ms"]["p50"],
                "cpu_p99_ms": t["cpu_ms"]["p99"],
                "ratio_to_float": timing["ours float32"]["cpu_ms"]["p50"] / t["cpu_ms"]["p50"],
                "cold_p50_ms": t["cold_wall_ms"]["p50"],
                "cold_p99_ms": t["cold_wall_ms"]["p99"],
                "cold_cpu_ms": t["cold_cpu_ms"]["p50"],
                "cold_ratio_to_float": timing["ours float32"]["cold_cpu_ms"]["p50"] / t["cold_cpu_ms"]["p50"],
                "size_bytes": backend.size_bytes,
                "share_of_ceiling": macs / (t["wall_ms"]["p50"] / 1e3) / rates["int8" if backend.precision in _INTEGERS else "float32"],
                "mean_error": float(error.mean()),
            }
        )
    rows += [{"backend": name, "threads": threads, "missing": why} for name, why in missing.items()]
    return rows + [{"ceiling": name, "threads": threads, "rate": rate} for name, rate in rates.items()]
