from dataclasses import replace

import torch

from lightning_poison.manifest.manifest import Manifest
from lightning_poison.report.page_suspects import suspect_rows, suspects_of
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.testing.tiny_images import TinyImages


def verdict_of(size=400, removed=10, estimated=0.0, judged=None):
    scores = torch.arange(size).double()
    return Verdict(
        scores,
        1 / (1 + scores) if judged is None else torch.where(judged, 1 / (1 + scores), 1),
        scores < size - removed,
        torch.zeros(size).long(),
        torch.zeros(size).long(),
        torch.zeros(1).double(),
        Evidence(True, estimated, 0.0, 1.0, 0.95, 0.003),
        "trusted",
        0.01,
        scorer="likelihood",
        fingerprint="5f0c",
        judged=judged,
    )


def test_number_of_suspects_follows_the_estimate():
    for estimated, count in ((0.0, 24), (0.1, 30), (1.0, 250)):
        found = suspects_of(verdict_of(estimated=estimated), Manifest(()))
        assert found == list(range(389, 389 - count, -1))


def test_what_is_kept_by_hand_is_no_suspect_and_what_is_removed_by_hand_is_one():
    verdict, data = verdict_of(30, 2), TinyImages(30)
    manifest = Manifest.from_verdict(
        verdict, data, kept_by_hand=torch.tensor([27, 28]), removed_by_hand=torch.tensor([0, 5])
    )
    found = suspects_of(verdict, manifest)
    assert found == [*range(26, 2, -1), 0]
    assert suspects_of(verdict.with_removed(torch.tensor([0, 5])), manifest) == [*range(26, 1, -1), 0]


def test_samples_that_were_not_judged_are_no_suspects():
    judged = torch.arange(30) != 25
    assert suspects_of(verdict_of(30, 2, judged=judged), Manifest(()))[:3] == [27, 26, 24]
    small_class = replace(verdict_of(30, 2), judged=judged)  # scored, and kept to be checked by hand
    assert suspects_of(small_class, Manifest(()))[:3] == [27, 26, 25]


def test_rows_are_those_of_a_manifest():
    verdict, data = verdict_of(30, 2), TinyImages(30)
    options = {"sample": None, "class_names": ["cat"]}
    manifest = Manifest.from_verdict(verdict, data, removed_by_hand=torch.tensor([6]), class_names=["cat"])
    rows = suspect_rows(verdict, manifest, data, [9, 6], **options)
    assert [row.sample_id for row in rows] == [9, 6]
    assert rows[1] == manifest.rows[-1]
    assert Manifest(tuple(rows)).removed_by_hand(data).tolist() == [6, 9]
    assert suspect_rows(verdict, manifest, None, [9, 6], **options) == [manifest.rows[-1]]
    assert suspect_rows(verdict, manifest, data, [], **options) == []
