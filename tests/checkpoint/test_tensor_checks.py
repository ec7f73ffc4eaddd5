from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from compressjax.checkpoint.tensor_checks import check_finite, check_names, check_shape

PATH = Path("model.file")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_bad_value_anywhere_is_found(bad, dtype):
    values = np.ones((7, 9), dtype)
    check_finite(values, path=PATH, name="w")
    values[6, 8] = bad
    with pytest.raises(ValueError, match=r"model\.file: tensor w holds 1 NaN or infinite values out of 63"):
        check_finite(values, path=PATH, name="w")


def test_extreme_but_finite_values_pass():
    check_finite(np.array([np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32), path=PATH, name="w")
    check_finite(np.zeros((0, 3), np.float32), path=PATH, name="w")


def test_shapes_name_wanted_and_got():
    check_shape((2, 3), (2, 3), path=PATH, name="w")
    with pytest.raises(ValueError, match=r"tensor w should have shape \(2, 3\) .*got \(3, 2\)"):
        check_shape((3, 2), (2, 3), path=PATH, name="w")


def test_missing_and_unknown_names():
    check_names(["a", "b", "c"], ["a", "b"], path=PATH, ignored=["c", "d"])
    with pytest.raises(ValueError, match="2 tensors are missing: b, c"):
        check_names(["a"], ["a", "b", "c"], path=PATH)
    with pytest.raises(ValueError, match="1 tensors have no place in the model: z"):
        check_names(["a", "z"], ["a"], path=PATH)
    with pytest.raises(ValueError, match="and 14 more"):
        check_names([], [str(index) for index in range(20)], path=PATH)
