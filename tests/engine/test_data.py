"""The data order as a pure function, and refusal of corpora that cannot be trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.contract import Spec
from app.engine.data import Corpus, open_corpus, permute, train_windows, validation_windows
from app.engine.errors import BadDataError
from app.records import from_dict

MakeValues = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 257, 1000, 4097, 70_000])
def test_permute_is_a_permutation(size: int) -> None:
    images = permute(np.arange(size), size=size, seed=(1, 2))
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


def test_permute_looks_random() -> None:
    size = 50_000
    order = permute(np.arange(size), size=size, seed=(0, 0))
    # Of a random permutation, ranks correlate within 1/sqrt(size) and about one element stays and one follows its
    # predecessor; 4 sigma for each.
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(size)
    assert (order == np.arange(size)).sum() <= 5
    assert (np.diff(order) == 1).sum() <= 5


def test_the_order_is_a_function_of_seed_and_sequence_alone() -> None:
    whole = train_windows(np.arange(3_000), num_windows=700, data_seed=9)
    one_by_one = np.concatenate([train_windows(np.array([s]), num_windows=700, data_seed=9) for s in range(3_000)])
    np.testing.assert_array_equal(whole, one_by_one)
    shuffled = np.random.default_rng(0).permutation(3_000)
    np.testing.assert_array_equal(train_windows(shuffled, num_windows=700, data_seed=9), whole[shuffled])


def test_no_window_repeats_inside_an_epoch_and_epochs_differ() -> None:
    order = train_windows(np.arange(1_400), num_windows=700, data_seed=9)
    np.testing.assert_array_equal(np.sort(order[:700]), np.arange(700))
    np.testing.assert_array_equal(np.sort(order[700:]), np.arange(700))
    assert (order[:700] == order[700:]).sum() < 10
    assert (order[:700] == train_windows(np.arange(700), num_windows=700, data_seed=10)).sum() < 10


def test_windows_tile_the_stream_across_files(spec_values: MakeValues, corpus_dir: Path) -> None:
    train = open_corpus(from_dict(Spec, spec_values())).train
    flat = np.concatenate([np.fromfile(corpus_dir / f"train-0000{i}.bin", dtype="<u2") for i in (0, 1)])
    windows = train.windows(np.arange(train.num_windows(32)), 32)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), flat[: windows.shape[0] * 32])
    np.testing.assert_array_equal(windows[:, 1:].ravel(), flat[1 : windows.shape[0] * 32 + 1])
    assert len(flat) - windows[:, :-1].size <= 32
    boundary = (corpus_dir / "train-00000.bin").stat().st_size // 2
    np.testing.assert_array_equal(train.read(boundary - 3, 6), flat[boundary - 3 : boundary + 3])


def test_validation_windows_are_spread_evenly() -> None:
    windows = validation_windows(num_available=1_000, num_windows=64)
    assert windows[0] == 0
    assert set(np.diff(windows)) <= {15, 16}
    assert windows[-1] == 984
    np.testing.assert_array_equal(validation_windows(num_available=8, num_windows=8), np.arange(8))


# --- corpora that cannot be trained on -----------------------------------------------------------------------


def open_changed(
    spec_values: MakeValues, corpus_dir: Path, tmp_path: Path, change: Callable[[Path], object], **overrides: Any
) -> Corpus:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_dir, folder)
    change(folder)
    return open_corpus(from_dict(Spec, spec_values(corpus_dir=str(folder), **overrides)))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "corpus.json").read_text())
    edit(values)
    (folder / "corpus.json").write_text(json.dumps(values))


def cut_file(folder: Path) -> None:
    file = folder / "train-00001.bin"
    file.write_bytes(file.read_bytes()[:-2])


def empty_split(folder: Path) -> None:
    (folder / "validation-00000.bin").write_bytes(b"")
    edit_manifest(folder, lambda values: values["splits"]["validation"].update(num_tokens=0))


def spoil_token(folder: Path) -> None:
    tokens = np.fromfile(folder / "train-00000.bin", dtype="<u2")
    tokens[1_234] = 60_000
    tokens.tofile(folder / "train-00000.bin")


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (lambda f: shutil.rmtree(f), {}, "corpus_dir is .*No such file.*prepare the corpus first"),
        (lambda f: (f / "corpus.json").write_text("{"), {}, "corpus.json is damaged .*prepare the corpus again"),
        (lambda f: edit_manifest(f, lambda v: v.pop("splits")), {}, "corpus.json is damaged .*splits"),
        (lambda f: edit_manifest(f, lambda v: v.update(version=2)), {}, "version 2.*reads version 1.*prepare"),
        (lambda f: edit_manifest(f, lambda v: v.update(dtype="int8")), {}, "'int8'.*uint16 or uint32.*prepare"),
        (lambda f: (f / "train-00001.bin").unlink(), {}, "train-00001.bin of the train split is missing.*prepare"),
        (cut_file, {}, r"train split .* has \d+ bytes .* promises \d+.*prepare"),
        (empty_split, {}, "validation split .* is empty; prepare"),
        (spoil_token, {}, "holds token id 60000, but its vocabulary has 512.*prepare"),
        (lambda f: None, {"model__vocab_size": 500}, "model.vocab_size is 500.*made with 512.*raise model.vocab_size"),
        (lambda f: None, {"evaluation__num_windows": 10**6}, r"evaluation.num_windows is 1000000.*holds \d+ windows"),
    ],
)
def test_a_bad_corpus_is_refused_with_the_mend(
    spec_values: MakeValues,
    corpus_dir: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    overrides: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(BadDataError, match=message):
        open_changed(spec_values, corpus_dir, tmp_path, change, **overrides)


def test_a_batch_larger_than_the_split_is_refused(spec_values: MakeValues) -> None:
    values = spec_values(training__batch_sequences=10**5, training__tokens=10**8, growth=None)
    with pytest.raises(BadDataError, match=r"training.batch_sequences is 100000.*train split .* lower"):
        open_corpus(from_dict(Spec, values))
