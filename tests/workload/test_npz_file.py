"""Arrays as people save them: converted where no value changes, else named with what is wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import UsageError
from hwprune.workload.npz_file import Declared, read_npz

X = np.random.default_rng(0).standard_normal((40, 3, 8, 6)).astype(np.float32)
FLOAT = [Declared("x", torch.float32, (None, 3, 8, 6))]
IDS = np.arange(280).reshape(40, 7) % 30


def read(folder, declared, name="d.npz", **arrays):
    if name.endswith(".npy"):
        np.save(folder / name, next(iter(arrays.values())))
    else:
        np.savez(folder / name, **arrays)
    return read_npz(folder / name, [one.name for one in declared], declared=declared)


def whole(data):
    return torch.cat([inputs[0] for split in ("calibration", "validation") for inputs, _ in data[split]])


@pytest.mark.parametrize(
    "array",
    [X, X.astype(np.float64), X.astype(">f4"), X.astype(">f8"), np.asfortranarray(X), X[:, :, ::-1][:, :, ::-1]],
    ids=range(6),
)
@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_the_same_numbers_in_other_clothes(tmp_path, array, name):
    found = whole(read(tmp_path, FLOAT, name, x=array))
    assert found.dtype == torch.float32 and found.shape == (40, 3, 8, 6)
    assert sorted(found.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(X.sum((1, 2, 3)).tolist()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.uint16, np.float64])
def test_ids_of_any_type(tmp_path, kind):
    found = whole(read(tmp_path, [Declared("ids", torch.int64, (None, 7))], ids=IDS.astype(kind)))
    assert found.dtype == torch.int64 and sorted(found.reshape(-1).tolist()) == sorted(IDS.reshape(-1).tolist())


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (
            (X * 50).astype(np.uint8),
            r"array x is uint8 of shape 40x3x8x6; the model's input takes float32 of shape Nx3x8x6.*scaled",
        ),
        (X.transpose(0, 2, 3, 1), r"of shape 40x8x6x3; .*array.transpose\(0, 3, 1, 2\)"),
        (X[:, :, :, :5], r"of shape 40x3x8x5; .* of shape Nx3x8x6"),
        (X[0], r"of shape 3x8x6; .*array\[None\]"),
        (X.reshape(40, -1), r"of shape 40x144; .*array.reshape\(-1, 3, 8, 6\)"),
        (X.astype(np.complex64), "complex64"),
        (np.full((40, 3, 8, 6), "a"), "<U1"),
        (X.astype(np.float64) * 1e300, "float64.*would change values"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, array, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, FLOAT, x=array)


def test_each_split_is_looked_at(tmp_path):
    with pytest.raises(UsageError, match="array x is float32 of shape 40x8x6x3"):
        read(tmp_path, FLOAT, **{"validation.x": X, "test.x": X.transpose(0, 2, 3, 1)})
    found = read(tmp_path, FLOAT, **{"validation.x": X, "test.x": X.astype(np.float64)})
    assert {inputs[0].dtype for split in found for inputs, _ in found[split]} == {torch.float32}


@pytest.mark.parametrize("size", [1, 8])
def test_a_fixed_batch_gives_batches_of_that_size(tmp_path, size):
    found = read(tmp_path, [Declared("x", torch.float32, (size, 3, 8, 6))], x=X)
    assert {len(inputs[0]) for split in found for inputs, _ in found[split]} == {size}
    assert len(found["calibration"]) == 10 // size and len(found["validation"]) == 30 // size


def test_too_few_for_a_fixed_batch(tmp_path):
    with pytest.raises(UsageError, match="10 examples to a split, and the model computes with 16 at a time"):
        read(tmp_path, [Declared("x", torch.float32, (16, 3, 8, 6))], x=X)


def test_free_sizes_and_nothing_declared(tmp_path):
    assert whole(read(tmp_path, [Declared("x", torch.float32, (None, 3, None, None))], x=X)).shape[2:] == (8, 6)
    assert whole(read(tmp_path, [Declared("x", torch.float32)], x=X.reshape(40, -1))).shape == (40, 144)


def test_targets_as_people_save_them(tmp_path):
    labels = np.arange(40) % 5
    for kind in (labels.astype(np.uint16), labels.astype(np.int32), labels.astype(">i8")):
        found = read(tmp_path, FLOAT, x=X, targets=kind)
        told = torch.cat([target for split in found for _, target in found[split]])
        assert told.dtype == torch.int64 and sorted(told.tolist()) == sorted(labels.tolist())
    with pytest.raises(UsageError, match="numbers of the classes"):
        try:
            read(tmp_path, FLOAT, x=X, targets=np.array(["cat"] * 40))
        except Exception as error:
            raise UsageError(str(error)) from error


def test_labels_by_another_name_are_not_passed_over(tmp_path):
    """They would be left out silently, and the model judged by agreement with itself."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((8, 3), np.float32), lables=np.zeros(8, np.int64))
    with pytest.raises(UsageError, match="holds lables: if those are the answers, call the array targets, labels or y"):
        read_npz(path, ["x"])
