"""Small networks in the ONNX format: the one file that imports ``onnxruntime``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.local.errors import ModelUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

try:
    import onnxruntime
except ImportError as error:
    raise ModelUnusable("onnxruntime is not installed: pip install 'omi-rt[local]'") from error

_ERRORS_ONLY = 3


class Network:
    """A network that runs on one thread: a worker is one stream's, and streams share the cores."""

    def __init__(self, path: Path) -> None:
        """Load it, which takes about 50 ms for 12 MB.

        Raises:
            ModelUnusable: the file is missing or is no such network.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        # Its exceptions have no common class, and some come from the C++ side as RuntimeError.
        except Exception as error:
            raise ModelUnusable(f"{path.name} cannot be loaded") from error

    @property
    def input_names(self) -> list[str]:
        """The names that `run` takes."""
        return [each.name for each in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the outputs in the network's order."""
        outputs: list[NDArray[np.float32]] = self._session.run(None, dict(inputs))
        return outputs
