"""Clusters: what they find where classes are known, medoids by brute force, the rules of their names."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from bundle.making import SLOTS, small_memory
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from analysis.clusters import can_spread, describe, find_clusters, spherical_kmeans
from analysis.graph import slot_rows


def clouds(count=300, seed=0):
    """Three groups of different sizes in 8 dimensions (unit rows) and in 5, and who belongs to which."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.choice(3, count, p=[0.5, 0.3, 0.2]))
    rows = np.eye(8)[group] + rng.normal(scale=0.1, size=(count, 8))
    spread = 10 * np.eye(5)[group] + rng.normal(size=(count, 5))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), spread, group


def test_three_clouds_are_three_clusters_the_largest_first():
    rows, spread, group = clouds()
    found, how = find_clusters(rows, spread)
    assert adjusted_rand_score(group, found) > 0.9 and found.dtype == np.int32
    sizes = np.bincount(found[found >= 0])
    assert (np.diff(sizes) <= 0).all() and "HDBSCAN on 5 dimensions" in how
    np.testing.assert_array_equal(found, find_clusters(rows, spread)[0])


def test_too_few_rows_have_no_clusters():
    for count in (1, 2, 40):
        assert find_clusters(np.ones((count, 3), np.float32), np.zeros((count, 5)))[0].tolist() == [-1] * count


def test_without_a_spread_means_are_taken():
    rows, _, group = clouds()
    found, how = find_clusters(rows, None)
    assert how.startswith("k-means") and found.min() == 0
    for number in range(found.max() + 1):
        assert len(set(group[found == number])) == 1
    assert find_clusters(rows[:1], None)[0].tolist() == [0]


def test_what_is_not_installed_is_known(monkeypatch):
    assert can_spread()
    monkeypatch.setitem(sys.modules, "fast_hdbscan", None)
    assert not can_spread()


@given(count=st.integers(1, 8), seed=st.integers(0, 20))
def test_every_row_is_nearest_to_the_mean_of_its_own(count, seed):
    rows = clouds(60, seed)[0]
    found = spherical_kmeans(rows, count, seed=seed)
    assert set(found) <= set(range(count))
    means = {number: rows[found == number].mean(0) for number in set(found.tolist())}
    means = {number: mean / np.linalg.norm(mean) for number, mean in means.items()}
    for row, number in zip(rows, found.tolist(), strict=True):
        assert row @ means[number] >= max(row @ mean for mean in means.values()) - 1e-5


def test_as_many_means_as_there_are_clouds_find_them():
    rows, _, group = clouds()
    assert adjusted_rand_score(group, spherical_kmeans(rows, 3)) == 1


# --- exemplars and names


def named(labels, words=None, **changes):
    """The clusters of a memory whose first slots form one cluster with these labels."""
    memory = small_memory()
    label = np.full(SLOTS, -1)
    label[: len(labels)] = labels
    words = words or {0: "owl", 1: "bus", 2: "fern"}
    memory = replace(memory, label=label, class_name=[words.get(int(one)) for one in label], **changes)
    slots, rows = slot_rows(memory, "memory")
    cluster = np.where(np.arange(len(slots)) < len(labels), 0, -1)
    return describe(memory, slots, rows, cluster)


@pytest.mark.parametrize(
    "labels, name, purity",
    [
        ([0, 0, 0, 1], "owl", 0.75),
        ([0, 0, 1, 1], "owl", 0.5),
        ([2, 2, 1, 1], "bus", 0.5),
        ([0, 1, 2], "mixed: owl/bus", 1 / 3),
        ([2, 1, 0, 2, 1], "mixed: bus/fern", 0.4),
        ([0, -1, -1], "mixed: owl", 1 / 3),
        ([7, 7], "class 7", 1.0),
    ],
)
def test_names_are_those_of_the_majority(labels, name, purity):
    (found,) = named(labels)
    assert (found.cluster, found.size, found.name) == (0, len(labels), name)
    assert found.purity == pytest.approx(purity)


def test_without_classes_the_exemplar_gives_the_name():
    (found,) = named([-1, -1, -1])
    assert found.name == f"drawn:7:20/{found.exemplar % 20}" and found.purity is None
    (found,) = named([-1, -1, -1], uri=[None] * SLOTS)
    assert found.name == f"picture {found.exemplar % 20}"
    (found,) = named([-1, -1, -1], uri=[None] * SLOTS, image_id=np.full(SLOTS, -2))
    assert found.name == f"slot {found.exemplar}"


def test_hostile_words_are_left_as_they_are():
    (found,) = named([0], {0: "<img src=x onerror=alert(1)>"})
    assert found.name == "<img src=x onerror=alert(1)>"


def test_exemplars_are_medoids():
    memory = small_memory()
    slots, rows = slot_rows(memory, "memory")
    slots, rows = slots[::-1][:40], rows[::-1][:40]  # points are not slots
    cluster = np.random.default_rng(3).integers(-1, 4, 40)
    found = describe(memory, slots, rows, cluster)
    assert [one.cluster for one in found] == [0, 1, 2, 3]
    for one in found:
        members = np.flatnonzero(cluster == one.cluster)
        sums = {slots[i]: sum(rows[i] @ rows[j] for j in members) for i in members}
        assert one.exemplar == max(sums, key=sums.get) and one.size == len(members)


def test_no_clusters_are_no_list():
    memory = small_memory()
    slots, rows = slot_rows(memory, "memory")
    assert describe(memory, slots, rows, np.full(len(slots), -1)) == []
