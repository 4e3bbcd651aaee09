"""Predictions that are interrupted, and go on."""

import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from PIL import Image

import hggep_sc as hggep
from helpers import CPU, LEARNING, TINY, assert_same
from hggep_sc import settings
from hggep_sc.features import describe, slide, store

HOW = {"device": "cpu", "progress": False}
CHUNKS = {"chunk_spots": 16}  # of 40 spots: eight chunks, of five predicted spots each


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Of 40 spots: eight, of five each."""
    monkeypatch.setattr(slide, "PART_SPOTS", 5)


@pytest.fixture
def looked_at(monkeypatch):
    """How many spots were to be seen, part by part."""
    numbers, windows = [], store.describe_windows

    def noted(image, parts, *args, **more):
        numbers.extend(map(len, parts))
        return windows(image, parts, *args, **more)

    monkeypatch.setattr(store, "describe_windows", noted)
    return numbers


@pytest.fixture
def interrupted(monkeypatch):
    """Call a function; Ctrl-C when the so-many-th file is about to be put in its place."""
    put = Path.replace

    def run(times, function, *given, **keywords):
        done = []

        def stopped(self, target):
            done.append(target)
            if len(done) == times:
                raise KeyboardInterrupt
            return put(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopped)
            with pytest.raises(KeyboardInterrupt, match="prediction was interrupted: the same call goes on"):
                function(*given, **keywords)

    return run


def files_of(folder, kind):
    return sorted(folder.rglob(f"{kind}/*.safetensors"))


@pytest.mark.parametrize("times", [1, 2, 3, 5, 9, 10, 13, 17])
def test_goes_on_to_the_same_result(sections, trained, tmp_path, interrupted, looked_at, times):
    """Bit for bit; what was done is not done again. The first file says whose the folder is."""
    expected = hggep.tl.predict(sections["S3"], trained, copy=True, **CHUNKS, **HOW)
    assert looked_at == 8 * [5]
    before, keywords = sections["S3"].copy(), {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    interrupted(times, hggep.tl.predict, sections["S3"], trained, **keywords)
    assert_same(sections["S3"], before)
    described, predicted = (len(files_of(tmp_path, kind)) for kind in ("features", "predicted"))
    assert described == min(max(times - 2, 0), 8)
    assert predicted == max(times - 10, 0)
    looked_at.clear()
    hggep.tl.predict(sections["S3"], trained, **keywords)
    assert looked_at == (8 - described) * [5]
    assert_same(sections["S3"], expected)


def test_chunks_that_are_predicted_are_not_predicted_again(sections, trained, tmp_path, monkeypatch, interrupted):
    sizes, decode = [], trained.network.decode
    monkeypatch.setattr(trained.network, "decode", lambda seen, xy: sizes.append(len(seen)) or decode(seen, xy))
    keywords = {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    interrupted(14, hggep.tl.predict, sections["S3"], trained, **keywords)
    assert len(files_of(tmp_path, "predicted")) == 4
    sizes.clear()
    hggep.tl.predict(sections["S3"], trained, **keywords)
    assert sizes == 4 * [16]


def test_several_sections_in_one_object(sections, trained, tmp_path, interrupted, looked_at):
    both = ad.concat([sections["S2"], sections["S3"]], label="library", index_unique="-", uns_merge="unique")
    keywords = {"library_key": "library", **CHUNKS, **HOW}
    both.obs["library"] = both.obs["library"].map({"0": "S2", "1": "S3"})
    expected = hggep.tl.predict(both, trained, copy=True, **keywords)
    interrupted(22, hggep.tl.predict, both, trained, checkpoint_dir=tmp_path / "run", **keywords)
    assert len(list(tmp_path.rglob("section_*"))) == 2
    looked_at.clear()
    hggep.tl.predict(both, trained, checkpoint_dir=tmp_path / "run", **keywords)
    assert looked_at == 4 * [5]  # of the second
    assert_same(both, expected)


@pytest.mark.parametrize("method", ["low_rank_ridge", "nearest_patches", "gene_mean"])
def test_baselines(sections, tmp_path, interrupted, looked_at, method):
    model = hggep.tl.fit(sections["S1"], method=method, genes=20, weights=None, progress=False)
    expected = hggep.tl.predict(sections["S3"], model, copy=True, **HOW)
    keywords = {"checkpoint_dir": tmp_path / "run", **HOW}
    interrupted(1 if method == "gene_mean" else 4, hggep.tl.predict, sections["S3"], model, **keywords)
    looked_at.clear()
    hggep.tl.predict(sections["S3"], model, **keywords)
    assert sum(looked_at) == (0 if method == "gene_mean" else 30)
    assert_same(sections["S3"], expected)


def test_an_encoder_that_learns(sections, tmp_path, monkeypatch, interrupted):
    """Which sees bare patches."""
    model = hggep.tl.fit(sections["S1"], genes=10, config={**TINY, **LEARNING, "epochs": 1}, **CPU)
    expected = hggep.tl.predict(sections["S3"], model, copy=True, **CHUNKS, **HOW)
    keywords = {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    interrupted(6, hggep.tl.predict, sections["S3"], model, **keywords)
    assert len(files_of(tmp_path, "features")) == 4
    read, numbers = describe.read_patches, []
    monkeypatch.setattr(
        describe, "read_patches", lambda image, xy, *how: numbers.append(len(xy)) or read(image, xy, *how)
    )
    hggep.tl.predict(sections["S3"], model, **keywords)
    assert numbers == 4 * [5]
    assert_same(sections["S3"], expected)


def test_without_a_folder_the_message_names_it(sections, trained, monkeypatch):
    monkeypatch.setattr(trained.network, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="the same call begins anew; with checkpoint_dir= it would go on"):
        hggep.tl.predict(sections["S3"], trained, **HOW)


@pytest.mark.parametrize(
    "change",
    [
        *("model", "mpp of the model", "places", "scale", "image"),
        *("chunk_spots", "feature_route", "encoder_precision"),
    ],
)
def test_another_prediction_is_refused(sections, trained, tmp_path, monkeypatch, change):
    section, model, how = sections["S3"], trained, {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    hggep.tl.predict(section, model, copy=True, **how)
    named = change
    if change == "model":
        model = hggep.tl.fit(sections["S1"], method="gene_mean", genes=10)
        how["chunk_spots"] = None
    elif change == "mpp of the model":
        model = hggep.HGGEP(model.network, model.config, model.genes, mpp=0.9, fingerprint=model.fingerprint)
    elif change == "chunk_spots":
        how[change] = 20
    elif hasattr(settings, change):
        monkeypatch.setattr(settings, change, {"feature_route": "maps", "encoder_precision": "bfloat16"}[change])
        named = "config"
    else:
        named = "data"
        if change == "places":
            section.obsm["spatial"][3] += 1
        elif change == "scale":
            how["mpp"] = 1.1
        else:
            library = section.uns["spatial"]["S3"]
            library["images"]["full"] = 255 - library["images"]["hires"]
            library["scalefactors"]["tissue_full_scalef"] = library["scalefactors"]["tissue_hires_scalef"]
            how["image_key"] = "full"
    before = section.copy()
    with pytest.raises(ValueError, match=rf"run' belongs to another prediction \(different .*{named}.*\)"):
        hggep.tl.predict(section, model, **how)
    assert_same(section, before)


def test_counts_have_no_part_in_it(sections, trained, tmp_path):
    """Prediction does not see them, and they are large."""
    how = {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    first = hggep.tl.predict(sections["S3"], trained, copy=True, **how)
    sections["S3"].X[0, 0] += 1
    again = hggep.tl.predict(sections["S3"], trained, copy=True, **how)
    np.testing.assert_array_equal(again.layers["hggep"], first.layers["hggep"])


def test_memory_that_is_free_later_does_not_begin_it_anew(sections, trained, tmp_path, monkeypatch, interrupted):
    expected = hggep.tl.predict(sections["S3"], trained, copy=True, **CHUNKS, **HOW)
    free = [2 * 4 * trained.config.vit_heads * n**2 for n in (15, 16)]
    monkeypatch.setattr("hggep_sc.prediction.chunks._free_memory", lambda _: free[-1])
    interrupted(7, hggep.tl.predict, sections["S3"], trained, checkpoint_dir=tmp_path / "run", **HOW)
    free.pop()
    hggep.tl.predict(sections["S3"], trained, checkpoint_dir=tmp_path / "run", **HOW)
    np.testing.assert_array_equal(sections["S3"].layers["hggep"], expected.layers["hggep"])


@pytest.mark.parametrize("kind", ["features", "predicted"])
@pytest.mark.parametrize("times", [14, 100])
def test_what_is_lost_is_computed_anew(sections, trained, tmp_path, interrupted, kind, times):
    """A damaged file is named, and may be removed, in the middle and after all is done."""
    expected = hggep.tl.predict(sections["S3"], trained, copy=True, **CHUNKS, **HOW)
    how = {"checkpoint_dir": tmp_path / "run", **CHUNKS, **HOW}
    if times < 100:
        interrupted(times, hggep.tl.predict, sections["S3"], trained, **how)
    else:
        hggep.tl.predict(sections["S3"], trained, copy=True, **how)
    file = files_of(tmp_path, kind)[0]
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        hggep.tl.predict(sections["S3"], trained, **how)
    file.unlink()
    hggep.tl.predict(sections["S3"], trained, **how)
    assert_same(sections["S3"], expected)


def test_a_full_disk_is_named_and_the_object_is_unchanged(sections, trained, tmp_path, monkeypatch):
    before = sections["S3"].copy()

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"run/section_0/.*safetensors could not be written.*No space left"):
            hggep.tl.predict(sections["S3"], trained, checkpoint_dir=tmp_path / "run", **HOW)
    assert_same(sections["S3"], before)
    hggep.tl.predict(sections["S3"], trained, checkpoint_dir=tmp_path / "run", **HOW)


def test_a_full_temporary_disk_is_named_and_the_object_is_unchanged(sections, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sections["S3"].copy()

    def full(self, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hggep_sc.storage.arrays._reserve", full)
    with monkeypatch.context() as patch:
        patch.setattr(settings, "patch_memory", 0)
        with pytest.raises(OSError, match=rf"No space left.*: patches or their features .* in {tmp_path}; set TMPDIR"):
            hggep.tl.predict(sections["S3"], trained, **CHUNKS, **HOW)
    assert_same(sections["S3"], before)
    assert list(tmp_path.iterdir()) == []
    hggep.tl.predict(sections["S3"], trained, **HOW)  # what memory holds needs no disk
    assert len(sections["S3"].layers) == len(before.layers) + 1


def test_nothing_is_put_away_without_a_folder(sections, trained, monkeypatch):
    expected = hggep.tl.predict(sections["S3"], trained, copy=True, **CHUNKS, **HOW)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: 1 / 0)
    hggep.tl.predict(sections["S3"], trained, **CHUNKS, **HOW)
    assert_same(sections["S3"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("times", [5, 12])
def test_a_slide_goes_on_after_a_kill(sections, trained, tmp_path, looked_at, times):
    out = tmp_path / "out"
    trained.save(tmp_path / "model")
    sections["S3"].write_h5ad(tmp_path / "slide.h5ad")
    script = Path(__file__).with_name("killed_prediction.py")
    arguments = [str(given) for given in (script, tmp_path / "model", tmp_path / "slide.h5ad", out, times)]
    killed = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (unfinished,) = out.iterdir()
    assert unfinished.name == "slide.h5ad.unfinished"
    known = len(files_of(out, "features"))
    assert known == min(times - 2, 8)
    table = hggep.tl.predict_slides({"slide": tmp_path / "slide.h5ad"}, trained, out, **CHUNKS, **HOW)
    assert table["error"].tolist() == [""]
    assert sum(looked_at) == 40 - 5 * known
    assert [file.name for file in out.iterdir()] == ["slide.h5ad"]
    result = ad.read_h5ad(out / "slide.h5ad")
    expected = hggep.tl.predict(ad.read_h5ad(tmp_path / "slide.h5ad"), trained, copy=True, **CHUNKS, **HOW)
    np.testing.assert_allclose(result.layers["hggep"], expected.layers["hggep"], rtol=1e-4, atol=1e-5)


def test_what_is_known_of_a_slide_goes_with_its_settings(sections, trained, tmp_path, interrupted, looked_at):
    """A rerun with others leaves nothing of the earlier; what other slides and the user have there stays."""
    out, slides = tmp_path / "out", {"S3": sections["S3"]}
    kept = [out / "S3.h5ad.mine.unfinished", out / "S3.h5ad.old", out / "S3.h5ad.x.h5ad"]
    interrupted(6, hggep.tl.predict_slides, slides, trained, out, **CHUNKS, **HOW)
    for folder in kept:
        folder.mkdir()
    (first,) = set(out.iterdir()) - set(kept)
    interrupted(6, hggep.tl.predict_slides, slides, trained, out, chunk_spots=20, **HOW)
    (second,) = set(out.iterdir()) - set(kept)
    assert first == second
    hggep.tl.predict_slides(slides, trained, out, chunk_spots=20, **HOW)
    assert set(out.iterdir()) == {out / "S3.h5ad", *kept}
    second.mkdir()  # as a kill between writing and tidying leaves it
    (second / "identity.json").write_text("{}")
    hggep.tl.predict_slides(slides, trained, out, chunk_spots=20, **HOW)
    assert set(out.iterdir()) == {out / "S3.h5ad", *kept}


def test_an_image_that_has_changed_begins_its_slide_anew(sections, trained, tmp_path, interrupted, caplog):
    """Of a slide that is a file the image beside it is not looked at before."""
    slide, out = sections["S3"], tmp_path / "out"
    pixels = np.array(Image.open(slide.uns["spatial"]["S3"]["metadata"]["source_image_path"]).convert("RGB"))
    slide.uns["spatial"]["S3"]["metadata"]["source_image_path"] = str(tmp_path / "image.png")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    slide.write_h5ad(tmp_path / "S3.h5ad")
    slides = {"S3": tmp_path / "S3.h5ad"}
    interrupted(8, hggep.tl.predict_slides, slides, trained, out, **CHUNKS, **HOW)
    Image.fromarray(255 - pixels).save(tmp_path / "image.png")
    expected = hggep.tl.predict(slide, trained, copy=True, **CHUNKS, **HOW)
    table = hggep.tl.predict_slides(slides, trained, out, **CHUNKS, **HOW)
    assert table["error"].tolist() == [""]
    assert "slide 'S3' is begun anew" in caplog.text
    np.testing.assert_array_equal(ad.read_h5ad(out / "S3.h5ad").layers["hggep"], expected.layers["hggep"])
