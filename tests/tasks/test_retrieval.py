"""Recall at k and mAP of an embedding, and `zoo retrieval`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from zoo.cli.app import main
from zoo.errors import ZooError
from zoo.tasks.retrieval import chance, neighbours, retrieval_outcome


def test_scores_by_hand():
    angle = np.deg2rad([0, 5, 40, 44, 90])
    features = np.stack([np.cos(angle), np.sin(angle)], 1) * [[3], [1], [1], [2], [1]]
    labels = ["a", "a", "b", "a", "c"]
    assert neighbours(features, 10)[0].tolist() == [1, 2, 3, 4]
    assert neighbours(features, 2).tolist() == [row[:2] for row in neighbours(features, 10).tolist()]
    found = retrieval_outcome(features, labels, (1, 2))
    assert found.values["recall@1"][[0, 1, 3]].tolist() == [1, 1, 0]
    assert np.isnan(found.values["recall@1"][[2, 4]]).all()  # nobody else has their label
    # Query 0: right, then wrong, R is 2. Query 3: 2 (b), then 1 (a).
    assert found.values["mAP@R"][[0, 3]].tolist() == [0.5, 0.25]
    assert found.scores(np.arange(5))["recall@2"] == pytest.approx(1)
    assert chance(labels) == pytest.approx(2 / 4)
    with pytest.raises(ZooError, match="No label has two"):
        retrieval_outcome(features[:2], ["a", "b"])


def test_many_neighbours_are_those_of_a_full_sort():
    features = np.random.default_rng(0).normal(size=(700, 6))
    unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    mine = neighbours(features, 5)
    best = -np.sort(-similarity, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(similarity, mine, 1), best, atol=1e-6)


def test_the_command_writes_a_report(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for label, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n in range(5):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / label / f"{n}.png")
    (tmp_path / "data/loose.txt").write_text("not a picture")
    arguments = ["retrieval", "droppos-vit-digits", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "-k", "1"]
    main(arguments)
    assert "recall@1" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert found["metrics"]["recall@1"]["value"] == 1
    assert found["chance"] == pytest.approx(4 / 9)
    assert "<img" in (tmp_path / "out/report.html").read_text()
    rows = list(csv.DictReader((tmp_path / "out/queries.csv").open()))
    assert len(rows) == 10
    assert all(row["label"] in row["nearest"] for row in rows)
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--force" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:2], str(tmp_path / "data/red"), "-o", str(tmp_path / "b")])
    assert "two subfolders" in capsys.readouterr().err
