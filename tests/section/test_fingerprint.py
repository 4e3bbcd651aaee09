from dataclasses import replace
from functools import partial, reduce

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from helpers import section_of
from hggep_sc import datasets, settings
from hggep_sc.image import SectionImage
from hggep_sc.section import open_sections
from hggep_sc.section.fingerprint import Fingerprint

GENES = [f"g{j}" for j in range(12)]
MODEL_GENES = GENES[2:10]


def section(name, seed, n=60):
    """Spots on a jittered grid of its own, with counts of its own."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (n, len(GENES))).astype(np.float32)
    table = AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    return section_of(table, 3000 * rng.random((n, 2)), name)


def part(section, rows, name="part"):
    return section_of(section.table[rows].copy(), section.xy[rows], name)


def moved(section, name="moved"):
    return section_of(section.table, section.xy + 517.3, name)


def recounted(section, name="recounted"):
    table = section.table.copy()
    table.X = sp.csr_matrix(np.random.default_rng(99).poisson(1.5, table.shape).astype(np.float32))
    return section_of(table, section.xy, name)


@pytest.fixture
def first():
    return section("A", 0)


@pytest.fixture
def fingerprint(first):
    return Fingerprint.of([first, section("B", 1)], MODEL_GENES)


def role(fingerprint, section):
    return fingerprint.role(section, MODEL_GENES)


def test_the_same_section_under_another_name(fingerprint, first):
    assert fingerprint.sections == ["A", "B"]
    assert role(fingerprint, first) == "train"
    assert role(fingerprint, section_of(first.table, first.xy, "another")) == "train"


def test_another_section_under_the_same_name(fingerprint):
    assert role(fingerprint, section("A", 2)) == "held out"


def test_shuffled(fingerprint, first):
    assert role(fingerprint, part(first, np.random.default_rng(5).permutation(60))) == "train"


def test_a_third_of_a_training_section(fingerprint, first):
    assert role(fingerprint, part(first, np.arange(20, 40))) == "train"


def mixed(first, known):
    """60 spots, some of them of a training section."""
    other = section("C", 2)
    table = AnnData(
        sp.vstack([first.table.X[:known], other.table.X[known:]], format="csr"), var=pd.DataFrame(index=GENES)
    )
    return section_of(table, np.concatenate([first.xy[:known], other.xy[known:]]), "mixed")


@pytest.mark.parametrize(("known", "expected"), [(20, "held out"), (40, "train")])
def test_a_section_with_some_training_spots(fingerprint, first, known, expected):
    assert role(fingerprint, mixed(first, known)) == expected


def test_counts_tell_where_the_image_was_moved_or_scaled(fingerprint, first):
    assert role(fingerprint, moved(first)) == "train"
    assert role(fingerprint, section_of(first.table, first.xy * 0.25, "scaled")) == "train"


def test_coordinates_tell_where_there_are_no_counts(fingerprint, first):
    for source, expected in ((first, "train"), (section("C", 2), "held out")):
        table = AnnData(shape=(60, len(MODEL_GENES)), var=pd.DataFrame(index=MODEL_GENES))
        assert role(fingerprint, section_of(table, source.xy, "no counts")) == expected
        zeros = AnnData(sp.csr_matrix((60, len(GENES)), dtype=np.float32), var=pd.DataFrame(index=GENES))
        assert role(fingerprint, section_of(zeros, source.xy, "zeros")) == expected


def test_coordinates_tell_where_genes_are_missing(fingerprint, first):
    for source, expected in ((first, "train"), (section("C", 2), "held out")):
        table = source.table[:, MODEL_GENES[1:]].copy()
        assert role(fingerprint, section_of(table, source.xy, "fewer genes")) == expected


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_coordinates_tell_where_x_holds_no_counts(fingerprint, first, value):
    for source, expected in ((first, "train"), (section("C", 2), "held out")):
        table = source.table.copy()
        values = table.X.toarray()
        values[3, 4] = value
        table.X = sp.csr_matrix(values)
        assert role(fingerprint, section_of(table, source.xy, "normalised")) == expected


def test_coordinates_bear_rounding(fingerprint, first):
    nudged = section_of(recounted(first).table, first.xy.astype(np.float32).astype(float), "float32")
    assert role(fingerprint, nudged) == "train"


@pytest.mark.parametrize("to", [0.0, 0.5])
def test_whole_and_half_pixels_bear_rounding(first, to):
    whole = section_of(first.table, np.floor(first.xy) + to, "whole")
    noise = np.random.default_rng(0).uniform(-1e-3, 1e-3, first.xy.shape)
    nudged = section_of(recounted(first).table, whole.xy + noise, "nudged")
    assert role(Fingerprint.of([whole], MODEL_GENES), nudged) == "train"


def test_the_order_of_genes_does_not_matter(fingerprint, first):
    table = first.table[:, GENES[::-1]].copy()
    assert role(fingerprint, section_of(table, moved(first).xy, "reversed")) == "train"


def test_empty_spots_are_no_evidence(fingerprint):
    other = section("C", 2)
    emptied = sp.lil_matrix(other.table.X)
    emptied[:50] = 0
    table = AnnData(sp.csr_matrix(emptied), var=pd.DataFrame(index=GENES))
    training = part(section("A", 0), np.arange(60))
    with_empty = sp.lil_matrix(training.table.X)
    with_empty[7] = 0
    training.table.X = sp.csr_matrix(with_empty)
    assert role(Fingerprint.of([training], MODEL_GENES), section_of(table, other.xy, "C")) == "held out"


def test_a_model_without_known_sections(first):
    assert role(Fingerprint.empty(), first) == "unknown"


def test_saved_and_rebuilt(fingerprint, first):
    rebuilt = Fingerprint.from_tensors(fingerprint.sections, fingerprint.tensors())
    assert rebuilt.sections == fingerprint.sections
    np.testing.assert_array_equal(rebuilt.counts, fingerprint.counts)
    np.testing.assert_array_equal(rebuilt.coordinates, fingerprint.coordinates)
    assert len(rebuilt.counts) == len(rebuilt.coordinates) == 120
    assert role(rebuilt, moved(first)) == "train"
    assert role(rebuilt, recounted(first)) == "train"
    assert role(rebuilt, section("C", 2)) == "held out"


class TestNeighbours:
    """Two parts of one image, one of them trained on."""

    PITCH = 40.0

    def on_image(self, columns, seed=0, shape=(400, 900), offset=0.0):
        """Spots in some columns of an array, on an image of its own look."""
        rng = np.random.default_rng(seed)
        x, y = np.meshgrid(np.asarray(columns), np.arange(9))
        xy = self.PITCH * (np.column_stack([x.ravel(), y.ravel()]) + 0.7) + offset
        counts = rng.poisson(1.5, (len(xy), len(GENES))).astype(np.float32)
        pixels = np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)
        section = section_of(AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=GENES)), xy, "part")
        return replace(section, opener=partial(SectionImage.from_array, pixels, name="the image"))

    @pytest.fixture
    def trained_left(self):
        return Fingerprint.of([self.on_image(range(10))], MODEL_GENES)

    @pytest.mark.parametrize(
        ("first", "field", "expected"),
        [
            (10, 10.0, "beside training"),  # next neighbours, however small the patches
            (11, 10.0, "held out"),
            (12, 10.0, "held out"),
            (11, 100.0, "beside training"),  # 80 px apart, with patches of 100 px
            (12, 100.0, "held out"),
            (12, 135.0, "beside training"),
            (15, 220.0, "held out"),
        ],
    )
    def test_the_other_half(self, trained_left, first, field, expected):
        right = recounted(self.on_image(range(first, 20)))
        right = replace(right, opener=self.on_image([0]).opener)
        assert trained_left.role(right, MODEL_GENES, field) == expected
        rebuilt = Fingerprint.from_tensors(trained_left.sections, trained_left.tensors())
        assert rebuilt.role(right, MODEL_GENES, field) == expected

    def test_another_image_there(self, trained_left):
        other = self.on_image(range(10, 20), seed=1)
        assert trained_left.role(other, MODEL_GENES, 100.0) == "held out"
        larger = replace(recounted(self.on_image(range(10, 20))), opener=self.on_image([0], shape=(400, 901)).opener)
        assert trained_left.role(larger, MODEL_GENES, 100.0) == "held out"

    def test_the_half_itself_is_training(self, trained_left):
        assert trained_left.role(self.on_image(range(10)), MODEL_GENES, 100.0) == "train"

    def test_a_whole_of_which_a_third_was_trained_on(self, trained_left):
        whole = replace(recounted(self.on_image(range(29))), opener=self.on_image([0]).opener)
        assert trained_left.role(whole, MODEL_GENES, 10.0) == "beside training"

    def test_of_several_sections_the_right_one_is_asked(self):
        """The other section fills the gap in coordinates, but on another image."""
        fingerprint = Fingerprint.of([self.on_image(range(5)), self.on_image(range(20), seed=1)], MODEL_GENES)
        far = recounted(self.on_image(range(9, 20), offset=7.0))
        far = replace(far, opener=self.on_image([0]).opener)
        assert fingerprint.role(far, MODEL_GENES, 50.0) == "held out"

    def test_models_of_before_know_no_places(self, trained_left):
        tensors = {name: trained_left.tensors()[name] for name in ("counts", "coordinates")}
        old = Fingerprint.from_tensors(["A"], tensors)
        right = replace(recounted(self.on_image(range(10, 20))), opener=self.on_image([0]).opener)
        assert old.role(right, MODEL_GENES, 100.0) == "held out"

    def test_without_an_image_there_is_no_telling(self, trained_left):
        assert trained_left.role(recounted(self.on_image(range(10, 20))), MODEL_GENES, 100.0) == "held out"

    def test_a_third_image_that_cannot_be_read(self, trained_left):
        def broken():
            raise ValueError("no image")

        right = replace(recounted(self.on_image(range(10, 20))), opener=broken)
        assert trained_left.role(right, MODEL_GENES, 100.0) == "held out"

    def test_switched_off(self, trained_left, monkeypatch):
        monkeypatch.setattr(settings, "skip_checks", {"training_neighbours"})
        right = replace(recounted(self.on_image(range(10, 20))), opener=lambda: pytest.fail("not looked at"))
        assert trained_left.role(right, MODEL_GENES, 100.0) == "held out"


class TestRealSections:
    """Sections of one patient, whose coordinates lie in the same range."""

    @pytest.fixture(scope="class")
    def of_c(self, shared):
        """C4 and the left half of C3 are trained on; with the sections, and the right half."""
        kept, settings.dataset_dir = settings.dataset_dir, shared / "data"
        try:
            data = datasets.her2st(["B4", "C2", "C3", "C4"])
        finally:
            settings.dataset_dir = kept
        names = [section.var_names for section in data.values()]
        genes = reduce(lambda one, other: one.intersection(other, sort=False), names)[:50].tolist()
        sections = {section.name: section for section in open_sections(data)}
        x = sections["C3"].xy[:, 0]
        sections["left"], sections["right"] = (sections["C3"].subset(x < 3600), sections["C3"].subset(x >= 3600))
        return Fingerprint.of([sections["C4"], sections["left"]], genes), sections, genes

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("B4", "held out"), ("C2", "held out"), ("C4", "train"), ("right", "beside training")],
    )
    def test_roles(self, of_c, name, expected):
        fingerprint, sections, genes = of_c
        section = sections[name]
        assert fingerprint.role(section, genes, 480 / section.mpp) == expected
