"""What Liger's kernels find when they are compiled, and not under Triton's interpreter."""

import importlib

import numpy as np
import pytest

triton, tl = pytest.importorskip("triton"), pytest.importorskip("triton.language")


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


def help_the_interpreter() -> None:
    """Give kernels scalars that have ``.to``, and an rsqrt that is not CUDA's, in this process."""
    importlib.import_module("liger_kernel.ops.rms_norm").rsqrt = rsqrt
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._implicit_cvt
    if convert.__module__ == __name__:
        return

    def converted(argument):
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = converted
