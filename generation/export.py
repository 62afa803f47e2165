"""Export of a trained generator to ONNX or TorchScript, compared with PyTorch before it is written."""

import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.trained import choose_generator, load_trained
from options.commands import ExportOptions
from system.files import check_new_file, write_bytes
from utils import LOG, UserError

EXPORT_TOLERANCE = 1e-4  # largest difference between an exported network and PyTorch, on a scale of [-1, 1]


def export_onnx(layers: nn.Module, example: Tensor, axes: dict[int, str], metadata: dict[str, str]) -> bytes:
    """Return the network as ONNX, with input "input", output "output" and the named axes free."""
    dimensions = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    program = torch.onnx.export(
        layers, (example,), dynamo=True, input_names=["input"], output_names=["output"],
        dynamic_shapes=(dimensions,), verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # they quote the source code, with the folders of this computer
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the network of an ONNX file, run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def export_torchscript(layers: nn.Module, example: Tensor, axes: dict[int, str], metadata: dict[str, str]) -> bytes:
    """Return the network as TorchScript, with its metadata in the extra file metadata.json. All axes are free."""
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, indent=2)}
    torch.jit.save(torch.jit.trace(layers, example, check_trace=False), file, _extra_files=extra)
    return file.getvalue()


def run_torchscript(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the network of a TorchScript file."""
    return torch.jit.load(io.BytesIO(content))


# Format -> its writer, a function that runs the written file, its extension, and the packages that it needs.
EXPORTS = {
    "onnx": (export_onnx, run_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": (export_torchscript, run_torchscript, ".pt", ()),
}


def check_packages(format_: str, flag: str) -> None:
    """Raise UserError if a package that a format needs is not installed; `flag` says in the message who needs it."""
    packages = EXPORTS[format_][3]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{flag}: needs {', '.join(missing)}; pip install {' '.join(packages)}")


def export_compared(G: Any, format_: str, metadata: dict[str, str]) -> bytes | None:
    """Return a generator in a format of EXPORTS, compared with PyTorch at several sizes; log the largest difference.

    The batch size stays free; height and width of a translator, too.

    Returns:
        None if the results differ by more than EXPORT_TOLERANCE.
    """
    write, run = EXPORTS[format_][:2]
    if hasattr(G, "noise_size"):
        axes, network = {0: "batch"}, G
        shapes: list[tuple[int, ...]] = [(count, G.noise_size, 1, 1) for count in (2, 1, 5)]
    else:
        axes, network = {0: "batch", 2: "height", 3: "width"}, G.layers  # not G itself, which checks sizes
        sides = ((2, 8, 12), (1, 8, 8), (3, 16, 6), (1, 5, 7))
        shapes = [(count, 3, height * G.stride, width * G.stride) for count, height, width in sides]

    # Export with an example of the first shape, and compare at all shapes.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TorchScript, which is deprecated, and about sizes that might be fixed
        content = write(network, torch.rand(shapes[0]) * 2 - 1, axes, metadata)
        exported = run(content)
        inputs = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1 for shape in shapes]
        difference = max((exported(x) - G(x)).abs().max().item() for x in inputs)
    compared = ", ".join("x".join(map(str, shape)) for shape in shapes)
    LOG.info("largest difference from PyTorch, at %s: %.2g", compared, difference)
    return content if difference <= EXPORT_TOLERANCE else None


def report_difference(script: str, remedy: str) -> int:
    """Say that no file was written because its results differ from PyTorch; return the exit code."""
    sys.stderr.write(
        f"{script}: the file was not written: its results differ from PyTorch by more than {EXPORT_TOLERANCE:g}; "
        f"{remedy}\n"
    )
    return 1


def export(options: ExportOptions) -> int:
    """Write the network to one file, if its results equal PyTorch's; return the exit code."""
    # Check the output and the packages, then load the network.
    path = Path(options.out)
    check_new_file(path, (EXPORTS[options.format][2],), options.overwrite)
    check_packages(options.format, f"--format {options.format}")
    trained = load_trained(Path(options.run), options.checkpoint)
    G = choose_generator(trained, options.direction)

    # Describe input and output, and export.
    metadata = {
        "script": trained.script,
        "step": str(trained.step),
        "options": json.dumps(trained.options.to_dict()),
        "input_range": "[-1, 1]",
        "output_range": "[-1, 1]",
        "output_layout": "NCHW, RGB",
    }
    if not trained.is_translator:
        metadata |= {"direction": "z to image", "input_layout": f"z (N, {G.noise_size}, 1, 1), uniform"}
    else:
        direction = options.direction or next(iter(trained.generators))  # a file of another program may have only one
        metadata |= {"direction": direction, "input_layout": "NCHW, RGB", "pad_multiple": str(G.stride)}
    content = export_compared(G, options.format, metadata)
    if content is None:
        return report_difference(options.SCRIPT, "try another --format")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    LOG.info("exported G of iteration %d to %s", trained.step, path)
    return 0
