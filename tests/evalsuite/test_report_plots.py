"""The plots: which there are, the Pareto front in them, and the same bytes every time."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evalsuite.report.pareto import pareto
from evalsuite.report.plots import draw_plots, sketches, write_plots
from evalsuite.results import Results
from tests.evalsuite.made_results import around, make_results

NAMES = ["quality_size", "quality_latency", "latency", "kl_distribution", "kl_by_position", "same_until"]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [True]),
        ([(1, 2), (2, 1)], [True, True]),
        ([(1, 2), (1, 3)], [True, False]),
        ([(1, 1), (1, 1), (2, 2)], [True, True, False]),
        ([(3, 3), (2, 2), (1, 1)], [False, False, True]),
        ([(1, 5, 5), (5, 1, 5), (5, 5, 1), (5, 5, 5)], [True, True, True, False]),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, ...]], front: list[bool]) -> None:
    assert pareto(points) == front


def test_the_front_of_many_points_beats_all_others_and_not_itself() -> None:
    chance = random.Random(1)
    points = [(chance.randint(0, 9), chance.randint(0, 9), chance.randint(0, 9)) for _ in range(60)]
    front = pareto(points)

    def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    best = [point for point, on in zip(points, front, strict=True) if on]
    assert not any(beats(a, b) for a, b in itertools.permutations(best, 2))
    assert all(any(beats(a, b) for a in best) for b, on in zip(points, front, strict=True) if not on)


def test_points_of_different_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        pareto([(1, 2), (1, 2, 3)])


def on_front(results: Results, name: str) -> set[str]:
    [sketch] = [sketch for sketch in sketches(results) if sketch.name == name]
    return {part.partition(":")[0] for part in sketch.alt.split("; ") if part.endswith("on the Pareto front")}


def test_the_front_of_quality_and_cost() -> None:
    results = make_results()  # f16 and merged are as good as q8_0, and larger and slower; q4_k_m is worse and smaller
    assert on_front(results, "quality_size") == on_front(results, "quality_latency") == {"q8_0", "q4_k_m"}
    best = replace(results.rows[2], task=replace(results.rows[2].task, rougeL=around(80, 1)))
    changed = replace(results, rows=(*results.rows[:2], best, *results.rows[3:]))
    assert on_front(changed, "quality_size") == {"merged", "q8_0", "q4_k_m"}


def test_what_cannot_stand_alone_is_no_choice() -> None:
    results = make_results()
    [size] = [sketch for sketch in sketches(results) if sketch.name == "quality_size"]
    assert [part.partition(":")[0] for part in size.alt.split("; ")] == ["merged", "f16", "q8_0", "q4_k_m"]
    served = replace(results.rows[5], label="served", kind="endpoint", size_bytes=0, speed=None)
    assert sketches(replace(results, rows=(*results.rows, served)))[0].alt == size.alt


def test_svg_is_the_same_every_time_and_made_for_both_themes() -> None:
    first, again = draw_plots(make_results()), draw_plots(make_results())
    assert first == again
    assert len(first) == len(NAMES)
    for plot in first:
        assert ElementTree.fromstring(plot.light).tag.endswith("svg")
        assert plot.light != plot.dark
        assert all(label in plot.alt for label in ("merged", "q4_k_m"))


def test_png_files_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "again"):
        write_plots(make_results(), folder)
    files = sorted((tmp_path / "first").iterdir())
    assert [file.stem for file in files] == sorted(NAMES)
    for file in files:
        data = file.read_bytes()
        assert data == (tmp_path / "again" / file.name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert struct.unpack(">II", data[16:24]) == (1080, 740)


def test_a_distance_of_zero_can_be_drawn() -> None:
    good = make_results()
    row = good.rows[3]
    distances = tuple(replace(d, kl=around(0.0, 0.0), kl_by_position=(0.0,) * 60) for d in row.comparisons[0].distances)
    same = replace(row.comparisons[0], distances=distances, first_divergence=(-1,) * 5)
    assert len(draw_plots(replace(good, rows=(replace(row, comparisons=(same,)),)))) == len(NAMES)


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    good = make_results()
    bare = tuple(replace(row, comparisons=(), speed=None) for row in good.rows)
    assert [sketch.name for sketch in sketches(replace(good, rows=bare))] == ["quality_size"]
    write_plots(replace(good, rows=()), tmp_path / "plots")
    assert list((tmp_path / "plots").iterdir()) == []


def test_more_artifacts_than_colours_stay_apart() -> None:
    good = make_results()
    rows = tuple(replace(good.rows[3], label=f"quant-{index}") for index in range(12))
    [plot] = [
        p for p in draw_plots(replace(good, rows=rows)) if p.title == "How far each artifact is from its reference"
    ]
    assert b"stroke-dasharray" in plot.light
