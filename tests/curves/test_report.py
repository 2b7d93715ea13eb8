"""The report: intervals, tables and figures of transfer curves."""

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from jtransfer.curves import report
from jtransfer.curves.figure import BASELINES
from jtransfer.errors import InputError
from jtransfer.figures import COLOURS

TITLE = "Digits from glyphs"
COSTS = {"zero_shot": (0, 2e6), "scratch": (12345, 6e6), "probe": (650, 2.5e6), "lora(rank=4)": (1200, 4.56e6)}


def cell(method, shots, *accuracies, first_seed=0):
    trainable, flops = COSTS.get(method, (1_000_000, 9e6))
    return [
        {"method": method, "shots": shots, "seed": seed, "hyper": {}, "val_accuracy": None, "test_accuracy": accuracy}
        | {"trainable": trainable, "flops_per_step": flops, "seconds": 1.0, "fingerprint": "ab12"}
        for seed, accuracy in enumerate(accuracies, first_seed)
    ]


SMALL = [
    *cell("zero_shot", 0, 0.62),
    *cell("scratch", 1, 0.1, 0.3),
    *cell("scratch", 5, 0.4, 0.4),
    *cell("probe", 1, 0.5, 0.5),
    *cell("probe", 5, 0.9, 0.92),
]

MANY = [
    row
    for method in ("pixels", "scratch", "probe", "finetune", "lora(rank=8, alpha=16) + bitfit", "a", "b", "c")
    for k in (1, 2, 5)
    for row in cell(method, k, 0.90, 0.91, 0.92)
]


def lines_of(figure):
    return {tuple(line.get_ydata()): line for line in figure.axes[0].lines}


def names_of(figure):
    """The names beside the axes: all texts but title and subtitle."""
    return figure.texts[:-2]


def test_interval_is_students_t_around_the_mean():
    # Two values 0.2 apart: s = 0.2 / sqrt(2), so half = t(0.975, 1) * 0.1 with t = tan(0.475 pi) = 12.7062.
    mean, half = report.interval([0.5, 0.7])
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(0.1 * math.tan(0.475 * math.pi))


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_interval_has_the_quantiles_of_the_printed_tables(n, t):
    # scipy.stats.t.ppf(0.975, n - 1) says the same, but takes a second to import.
    values = np.random.default_rng(0).uniform(size=n)
    mean, half = report.interval(values)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(t * values.std(ddof=1) / math.sqrt(n), rel=3e-4)


def test_equal_values_have_an_interval_of_width_zero():
    assert report.interval([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_one_value_has_no_interval():
    mean, half = report.interval([0.7])
    assert mean == 0.7
    assert math.isnan(half)


def test_no_values_have_no_mean():
    with pytest.raises(InputError, match="values are empty"):
        report.interval([])


def test_gather_puts_seeds_together_and_keeps_the_order_of_methods():
    points = report.gather(SMALL)
    assert list(points) == [("zero_shot", 0), ("scratch", 1), ("scratch", 5), ("probe", 1), ("probe", 5)]
    assert points["probe", 5].n == 2
    assert points["probe", 5].mean == pytest.approx(0.91)
    assert points["probe", 5].half == pytest.approx(0.01 * math.tan(0.475 * math.pi))


def test_rows_of_a_cell_need_not_stand_together():
    mixed = [*cell("probe", 1, 0.4), *cell("probe", 5, 0.9), *cell("probe", 1, 0.6, first_seed=1)]
    assert report.gather(mixed)["probe", 1].mean == pytest.approx(0.5)


def test_a_seed_that_stands_twice_is_refused():
    with pytest.raises(InputError, match="two rows for method 'probe', shots 5, seed 1"):
        report.gather([*SMALL, *cell("probe", 5, 0.9, first_seed=1)])


@pytest.mark.parametrize("accuracy", [91.2, -1.5, math.nan])
def test_an_accuracy_that_is_no_share_is_refused(accuracy):
    with pytest.raises(InputError, match=r"test_accuracy of method 'probe', shots 5, seed 0 is .*; expected -1\.\.1"):
        report.gather(cell("probe", 5, accuracy))


def test_no_results_are_refused():
    with pytest.raises(InputError, match="results are empty"):
        report.table_markdown([], [])


def test_the_table_says_methods_costs_accuracies_and_protocol():
    assert report.table_markdown(SMALL, ["The rate is chosen on validation.", "Test: 360 images."]) == (
        "| method      | trainable parameters | MFLOP / step |    0 |              1 |               5 |\n"
        "| ----------- | -------------------: | -----------: | ---: | -------------: | --------------: |\n"
        "| `zero_shot` |                    0 |         2.00 | 62.0 |              – |               – |\n"
        "| `scratch`   |               12,345 |         6.00 |    – |   20.0 ± 127.1 |      40.0 ± 0.0 |\n"
        "| `probe`     |                  650 |         2.50 |    – | **50.0 ± 0.0** | **91.0 ± 12.7** |\n"
        "\n"
        "Test accuracy in % by training labels per class (validation takes up to 4 more). "
        "Mean over 2 seeds ± half width of its 95% Student-t interval; but 1 seed at 0. One seed gives no interval. "
        "Bold: the highest mean of a column. `zero_shot` learns nothing: its cost is one forward pass.\n"
        "\n"
        "- The rate is chosen on validation.\n"
        "- Test: 360 images.\n"
    )


def rows_of(results):
    table = report.table_markdown(results, []).split("\n\n")[0]
    return [[text.strip() for text in line.strip("|").split(" | ")] for line in table.splitlines()]


def caption_of(results):
    return report.table_markdown(results, []).split("\n\n")[1]


def test_missing_cells_are_dashes():
    results = [*cell("probe", 1, 0.5), *cell("lora(rank=4)", 5, 0.8)]
    assert rows_of(results)[2:] == [
        ["`probe`", "650", "2.50", "50.0", "–"],
        ["`lora(rank=4)`", "1,200", "4.56", "–", "80.0"],
    ]


def test_a_column_of_one_cell_has_no_best():
    assert "**" not in report.table_markdown(cell("probe", 1, 0.5, 0.6), [])
    assert "Bold" not in caption_of(cell("probe", 1, 0.5, 0.6))


def test_cells_that_show_the_same_mean_are_both_best():
    results = [*cell("scratch", 1, 0.50001), *cell("probe", 1, 0.50002), *cell("lora(rank=4)", 1, 0.4)]
    assert [row[3] for row in rows_of(results)[2:]] == ["**50.0**", "**50.0**", "40.0"]


def test_single_seeds_show_no_interval_and_say_so():
    caption = caption_of(cell("probe", 1, 0.5))
    assert "Mean over 1 seed. One seed gives no interval." in caption
    assert "Student" not in caption


def test_the_caption_names_the_cells_that_have_another_number_of_seeds():
    results = [
        *(row for method in ("scratch", "probe") for k in (1, 2) for row in cell(method, k, 0.1, 0.2, 0.3)),
        *(row for method in ("scratch", "probe") for row in cell(method, 10, 0.4, 0.5)),
        *cell("scratch", 5, 0.4),
        *cell("probe", 5, 0.4, 0.5, 0.6),
    ]
    assert "Mean over 3 seeds" in caption_of(results)
    assert "; but 1 seed for `scratch` at 5, 2 seeds at 10." in caption_of(results)


def test_costs_share_one_unit_and_three_digits():
    results = [*cell("pixels", 1, 0.1), *cell("probe", 1, 0.1), *cell("big", 1, 0.1), *cell("unknown", 1, 0.1)]
    for row, flops in zip(results, (5e4, 1.234e9, 1.234e12, None), strict=True):
        row["flops_per_step"] = flops
    table = rows_of(results)
    assert table[0][2] == "GFLOP / step"
    assert [row[2] for row in table[2:]] == ["<0.001", "1.23", "1,234", "–"]


def test_a_cost_that_grows_with_the_shots_is_a_range():
    results = [*cell("probe", 1, 0.1), *cell("probe", 5, 0.1)]
    results[1]["flops_per_step"] = 5e6
    assert rows_of(results)[2][1:3] == ["650", "2.50–5.00"]


def test_a_pipe_in_a_name_does_not_split_its_cell():
    assert r"| `rates(head\|norm)` |" in report.table_markdown(cell("rates(head|norm)", 1, 0.5), [])


def test_the_terminal_table_fits_80_columns_with_every_number_whole():
    from rich.console import Console

    shots = (1, 2, 5, 10, 25)
    results = [
        *cell("zero_shot", 0, 0.62),
        *(row for k in shots for row in cell("lora(rank=8, alpha=16) + [bitfit]", k, 0.10, 0.40, 0.10 + k / 100)),
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report.terminal_table(results))
    text = capture.get()
    points = report.gather(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "1,000,000" in text
    assert "[bitfit]" in text
    for k in shots:
        assert f"{100 * points['lora(rank=8, alpha=16) + [bitfit]', k].mean:.1f}" in text
        assert f"±{100 * points['lora(rank=8, alpha=16) + [bitfit]', k].half:.1f}" in text
    assert "Mean over 3 seeds" in " ".join(text.split())


def test_points_stand_at_the_training_labels_and_ticks_tell_both():
    axes = report.figure([row for k in (1, 5, 25) for row in cell("probe", k, k / 100)], TITLE).axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 + 1", "5 + 4", "25 + 4"]
    assert axes.get_xlabel() == "labels per class (training + validation)"
    assert list(axes.lines[0].get_xdata()) == [1, 5, 25]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([1, 5, 25])


def test_close_ticks_are_told_in_two_lines():
    results = [row for k in (1, 4, 5, 100) for row in cell("probe", k, 0.5)]
    axes = report.figure(results, TITLE).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1\n+ 1", "4\n+ 4", "5\n+ 4", "100\n+ 4"]


def test_zero_shot_is_a_horizontal_dashed_line():
    line = lines_of(report.figure(SMALL, TITLE))[(62.0, 62.0)]
    assert line.is_dashed()
    assert list(line.get_xdata()) == [0, 1]  # of the width of the axes


def test_baselines_are_dashed_greys_and_the_pretrained_are_solid_colours():
    def looks(*methods):
        axes = report.figure([row for method in methods for row in cell(method, 5, 0.5)], TITLE).axes[0]
        return [(line.get_color(), line.is_dashed()) for line in axes.lines]

    (scratch, first), (pixels, second), (probe, third), (start, fourth) = looks(
        "scratch(steps=9)", "pixels", "probe", "scratchy"
    )
    assert (first, second, third, fourth) == (True, True, False, False)
    assert (scratch, pixels) == (BASELINES["scratch"], BASELINES["pixels"])
    assert (probe, start) == COLOURS[:2]


def test_the_band_is_the_interval_and_a_single_seed_has_none():
    figure = report.figure([*cell("probe", 1, 0.4, 0.41), *cell("probe", 5, 0.6, 0.61), *cell("probe", 25, 0.8)], TITLE)
    bars = figure.axes[0].collections[1].get_segments()
    half = 0.5 * math.tan(0.475 * math.pi)
    assert bars[0] == pytest.approx(np.array([[1, 40.5 - half], [1, 40.5 + half]]))
    assert bars[1] == pytest.approx(np.array([[5, 60.5 - half], [5, 60.5 + half]]))
    assert bars[2].size == 0
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 0].min(), band[:, 0].max()) == (1, 5)


def test_the_subtitle_tells_the_seeds():
    def subtitle(results):
        return report.figure(results, TITLE).texts[-1].get_text()

    assert subtitle(cell("probe", 1, 0.4)) == "1 seed, no interval"
    assert subtitle(SMALL) == "mean over 2 seeds and its 95% Student-t interval"  # of the curves: zero_shot has one
    assert subtitle([*SMALL, *cell("finetune", 1, 0.4)]) == "mean over 1 to 2 seeds and its 95% Student-t interval"


def test_names_of_curves_that_end_together_do_not_overlap_and_stay_inside():
    figure = report.figure(MANY, TITLE)
    renderer = figure.canvas.get_renderer()
    boxes = [name.get_window_extent(renderer) for name in names_of(figure)]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 > figure.axes[0].bbox.x1 and box.x1 <= figure.bbox.width for box in boxes)


def test_names_stand_beside_their_ends_where_there_is_room():
    figure = report.figure([*cell("probe", 5, 0.9), *cell("scratch", 5, 0.1), *cell("zero_shot", 0, 0.5)], TITLE)
    heights = {name.get_text(): name.get_position()[1] * figure.bbox.height for name in names_of(figure)}
    ends = {name: figure.axes[0].transData.transform((5, y))[1] for name, y in (("probe", 90), ("zero_shot", 50))}
    assert heights["probe"] == pytest.approx(ends["probe"], abs=1)
    assert heights["zero_shot"] == pytest.approx(ends["zero_shot"], abs=1)


def test_the_accuracy_axis_stays_within_0_and_100():
    wide = report.figure([*cell("probe", 1, 0.0, 0.2), *cell("probe", 5, 0.9, 1.0)], TITLE).axes[0]
    assert wide.get_ylim() == (0, 100)
    narrow = report.figure(cell("probe", 1, 0.5), TITLE).axes[0]
    assert narrow.get_ylim() == (45, 55)


def test_zero_shot_alone_can_be_drawn():
    figure = report.figure(cell("zero_shot", 0, 0.62), TITLE)
    assert list(lines_of(figure)) == [(62.0, 62.0), ()]
    assert figure.axes[0].get_xticks().size == 0


def test_a_report_is_three_whole_files_and_the_same_bytes_each_time(tmp_path):
    report.write(SMALL, tmp_path / "a", ["Sentence."], TITLE)
    report.write(SMALL, tmp_path / "b", ["Sentence."], TITLE)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert sorted(files) == ["curve.png", "curve.svg", "table.md"]
    assert files["table.md"].decode() == report.table_markdown(SMALL, ["Sentence."])
    assert ET.fromstring(files["curve.svg"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in files["curve.svg"]
    pixels = imread(io.BytesIO(files["curve.png"]), format="png")
    assert pixels.shape == (750, 1200, 4)
    blue = [int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert (np.abs(pixels[..., :3] - blue).max(-1) < 0.01).sum() > 500  # the line of the first pretrained method


def test_a_report_that_fails_leaves_the_last_one_whole(tmp_path):
    (tmp_path / "table.md").write_text("the last one")
    with pytest.raises(InputError):
        report.write([*SMALL, *cell("probe", 5, 7.0, first_seed=9)], tmp_path, [], TITLE)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the last one"]


def test_drawing_neither_reads_nor_changes_the_users_style():
    import matplotlib

    plain = report.render(report.figure(SMALL, TITLE), "png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        mine = dict(matplotlib.rcParams)
        assert report.render(report.figure(SMALL, TITLE), "png") == plain
        assert dict(matplotlib.rcParams) == mine


def test_a_report_needs_no_jax_and_no_pyplot_and_imports_its_libraries_late(tmp_path):
    code = (
        "import sys; from jtransfer.curves import report\n"
        "print(sorted({'jax', 'matplotlib', 'scipy', 'rich'} & set(sys.modules)))\n"
        f"report.write({SMALL!r}, {str(tmp_path)!r}, [], {TITLE!r})\n"
        "print(sorted({'jax', 'matplotlib.pyplot'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n[]\n"


DIVERGED = [*cell("probe", 1, 0.5, 0.7, None), *cell("probe", 5, 0.8, 0.8, 0.8), *cell("finetune", 1, None, None)]


def test_a_cell_that_diverged_has_no_mean_and_seeds_that_did_are_in_none():
    points = report.gather(DIVERGED)
    assert points["probe", 1] == report.Point(*report.interval([0.5, 0.7]), 2, 1)
    assert math.isnan(points["finetune", 1].mean) and points["finetune", 1].diverged == 2
    table = report.table_markdown(DIVERGED, [])
    assert "– (2 diverged)" in table and "60.0 ± " in table and "nan" not in table
    assert "3 seeds" in table and "2 seeds at 1" in table


@pytest.mark.parametrize("rows", [DIVERGED, cell("finetune", 1, None, None)], ids=["some", "all"])
def test_what_diverged_is_drawn_nowhere_and_breaks_no_report(rows, tmp_path):
    report.write(rows, tmp_path, [], TITLE)
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.svg", "table.md"}
    assert "nan" not in (tmp_path / "curve.svg").read_text().lower()
