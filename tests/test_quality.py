"""The benchmark that chooses the page's features runs, and its two ends are where they must be."""

from __future__ import annotations

from pathlib import Path


def test_the_true_place_scores_100_and_something_is_chosen(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import quality

    quality.main(quality.Setting(photos="drawn:2:4", drawn="drawn:1:16", pictures=1, draws=1, size=64, recolour=True))
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:11] for line in printed.splitlines() if line.startswith("|")}
    assert {cell.strip() for cell in rows["true place"]} == {"100.0 ±0.0"}
    assert all(float(cell.split("±")[0]) < 40 for cell in rows["chance"])
    assert "drawn pictures of one class: best " in printed and "(default)" in printed
