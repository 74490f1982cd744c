"""What an export reports to people."""

import pytest

from spectacles.core.config import ExportConfig
from spectacles.core.errors import UserError
from spectacles.core.results import ExportedFile
from spectacles.export import summary


def file(name: str, precision: str, milliseconds: float) -> ExportedFile:
    return ExportedFile(
        format=name, precision=precision, file=f"{name}-{precision}", megabytes=13.46, images=100, difference=2.3e-6,
        same_labels=1.0, accuracy=0.985, accuracy_interval=(0.97, 0.995), model_accuracy=0.985, p_worse=1.0,
        images_per_second=81.0, milliseconds=milliseconds, objection="",
    )  # fmt: skip


FILES = [file("onnx", "fp32", 12.0), file("openvino", "fp32", 9.5), file("openvino", "int8", 4.25)]


def test_the_table_has_a_line_for_each_file() -> None:
    header, *rows = summary.table(FILES)
    assert len({len(line) for line in (header, *rows)}) == 1 and header.startswith("format    precision")
    assert rows[0].split() == ["onnx", "fp32", "13.5", "2e-06", "100.0", "%", "98.5", "%", "(97.0", "to", "99.5)",
                               "81", "12"]  # fmt: skip


@pytest.mark.parametrize(
    ("milliseconds", "start"),
    [
        (20.0, "--latency 20ms: openvino-fp32, with 9.5 ms the fastest of the most exact ones here"),
        (9.5, "--latency 9.5ms: openvino-fp32,"),
        (5.0, "--latency 5ms: openvino-int8, with 4.25 ms"),
        (1.0, "--latency 1ms: no file is that fast here; openvino-int8 comes nearest with 4.25 ms: try --precision"),
    ],
)
def test_the_best_file_for_a_time_is_the_most_exact_that_is_fast_enough(milliseconds: float, start: str) -> None:
    assert summary.best_within(milliseconds, FILES).startswith(start)


def test_a_latency_is_a_time() -> None:
    assert ExportConfig(latency="5ms").latency == "5ms"
    for text in ("fast", "0ms", "5 s"):
        with pytest.raises(UserError, match=f"--latency '{text}' is not a time for one photo: use, for example, 5ms"):
            ExportConfig(latency=text)
