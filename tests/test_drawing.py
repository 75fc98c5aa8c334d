"""The pictures of runs.py: that what is drawn is where, and as large as, the numbers say."""
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import runs


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, colour, tolerance=40):
    """The rows and columns of the pixels that have about this colour."""
    away = np.abs(pixels(picture) - ImageColor.getrgb(colour)).max(2)
    return np.nonzero(away <= tolerance)


def inside(picture):
    """The (left, top, right, bottom) of the frame of a chart."""
    rows, columns = where(picture, "#999999", 0)
    return columns.min() + 1, rows.min() + 1, columns.max(), rows.max()


# Line charts

def test_line_lies_on_the_diagonal():
    picture = runs.line_chart({"": (range(11), range(11))}, "title", "x", "y", size=(400, 300))
    left, top, right, bottom = inside(picture)
    rows, columns = where(picture, runs.COLOURS[0])
    x, y = (columns + 0.5 - left) / (right - left), (bottom - rows - 0.5) / (bottom - top)  # 0 to 1
    x, y = (x * 1.03 - 0.015) * 10, (y * 1.08 - 0.04) * 10                                  # room at the ends
    assert np.abs(x - y).max() < 0.12  # a pixel of the chart's inside is 0.03 by 0.04
    assert x.min() < 0.1 and x.max() > 9.9
    middle = [rows[columns == c].mean() for c in np.unique(columns)]
    assert (np.diff(middle) < 0).all()
    slopes = np.diff(middle[2:-2])
    assert slopes.std() < 0.3


def test_log_axis_makes_an_exponential_straight_and_leaves_gaps():
    x = np.linspace(0, 4, 400)
    picture = runs.line_chart({"": (x, 100 ** -x)}, log_y=True, size=(400, 300))
    rows, columns = where(picture, runs.COLOURS[0])
    line = np.polyfit(columns, rows, 1)
    assert np.abs(np.polyval(line, columns) - rows).max() < 2 and line[0] > 0
    picture = runs.line_chart({"": (range(5), [1, 10, 0, -3, 100])}, log_y=True, size=(400, 300))
    rows, columns = where(picture, runs.COLOURS[0])
    left, _, right, _ = inside(picture)
    third = (columns - left) / (right - left)
    assert not ((third > 0.3) & (third < 0.95)).any()      # from 10 to the lone point 100
    assert (third < 0.2).any() and (third > 0.96).any()


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_a_gap(nothing):
    xs, ys = [0, 1, 2, 3, 4], [1, 1, nothing, 1, 1]
    _, columns = where(picture := runs.line_chart({"": (xs, ys)}, size=(400, 300)), runs.COLOURS[0])
    left, _, right, _ = inside(picture)
    gap = np.diff(np.unique(columns)).max() / (right - left)
    assert gap == pytest.approx(0.5 / 1.03, abs=0.02)


def test_a_point_alone_is_a_dot():
    rows, columns = where(runs.line_chart({"": ([3], [4])}), runs.COLOURS[0])
    assert 15 < len(rows) < 60 and np.ptp(rows) <= 8 and np.ptp(columns) <= 8


def test_a_spike_among_many_points_is_seen():
    for spike in (1, 99_999, 123_456, 199_998):
        ys = np.zeros(200_000)
        ys[spike] = 1
        picture = runs.line_chart({"": (np.arange(200_000), ys)})
        left, top, right, bottom = inside(picture)
        rows, columns = where(picture, runs.COLOURS[0], 120)
        high = columns[(rows < top + 0.2 * (bottom - top)) & (columns >= left)]
        assert len(high)
        at = ((high.mean() + 0.5 - left) / (right - left) * 1.03 - 0.015) * 199_999
        assert abs(at - spike) < 800  # a column of pixels is 400 points


def test_thinning_changes_nothing_that_can_be_seen(monkeypatch):
    x = np.linspace(0, 1, 30_000)
    y = np.sin(40 * x) + 0.2 * np.sin(3000 * x)
    thin = pixels(runs.line_chart({"": (x, y)}, size=(300, 200)))
    monkeypatch.setattr(runs.np, "unique", lambda _: np.arange(len(x)))  # keeps every point
    full = pixels(runs.line_chart({"": (x, y)}, size=(300, 200)))
    assert np.abs(thin - full).max() <= 64 and np.abs(thin - full).mean() < 0.05


def test_a_start_far_away_leaves_the_picture_and_does_not_flatten_the_rest():
    """Without the axis following the lines, the curve would fill a thousandth of the height."""
    x = np.arange(1_000)
    line = np.sin(x / 100)
    raw = line.copy()
    raw[:3] = 1_000
    heights = lambda **pale: np.flatnonzero((np.asarray(runs.line_chart({"": (x, line)}, **pale)) ==
                                             ImageColor.getrgb(runs.COLOURS[0])).all(2).any(1))
    assert np.array_equal(heights(pale={"": (x, raw)}), heights()) and np.ptp(heights()) > 200


def test_pale_line_is_behind_in_the_light_colour_of_its_series():
    x = np.arange(1000)
    raw = np.where(x % 2, 1.0, -1.0)
    lines, pale = {"a": (x, 0 * x), "b": (x, 0 * x + 3)}, {"b": (x, raw + 3)}
    picture = runs.line_chart(lines, pale=pale, y_range=(-2, 5))
    light = "#%02x%02x%02x" % tuple(255 - (255 - c) // 3 for c in ImageColor.getrgb(runs.COLOURS[1]))
    rows, _ = where(picture, light, 8)
    over, columns = where(picture, runs.COLOURS[1], 8)
    _, top, _, bottom = inside(picture)
    assert np.abs((bottom - np.array([rows.max(), rows.min()])) / (bottom - top) * 7 - 2 - [2, 4]).max() < 0.1
    assert len(np.unique(columns)) > 450 and len(rows) > 10_000
    with pytest.raises(KeyError):
        runs.line_chart({"a": (x, x)}, pale={"c": (x, x)})


def test_legend_keeps_away_from_the_line():
    x = np.linspace(0, 1, 100)
    for ys, right_half, upper_half in ((x, False, True), (1 - x, True, True)):
        with_legend = pixels(runs.line_chart({"a label": (x, ys)}))
        without = pixels(runs.line_chart({"": (x, ys)}))
        rows, columns = np.nonzero((with_legend != without).any(2))
        line_rows, line_columns = where(Image.fromarray(without.astype(np.uint8)), runs.COLOURS[0])
        covered = ((line_rows >= rows.min()) & (line_rows <= rows.max())
                   & (line_columns >= columns.min()) & (line_columns <= columns.max()))
        assert not covered.any()
        assert (columns.mean() > 280) == right_half and (rows.mean() < 180) == upper_half


def test_y_range_holds_and_cuts():
    picture = runs.line_chart({"": ([0, 1, 2], [0, 1e30, 0])}, y_range=(-1, 1))
    left, top, right, bottom = inside(picture)
    rows, columns = where(picture, runs.COLOURS[0])
    assert rows.min() >= top and rows.max() < bottom and columns.min() >= left and columns.max() < right


@pytest.mark.parametrize("lines", [
    {}, {"a": ([], [])}, {"a": ([1, 2], [None, None])}, {"a": ([1, 2, 3], [7, 7, 7])}, {"a": ([0], [0])},
    {"a": ([1, 2], [-5.0, -4.0])}, {"a": ([0, 1], [1.00001, 1.00002])}, {"a": ([0, 1e15], [-1e-9, 1e30])},
    {"a": (torch.arange(3), torch.rand(3, requires_grad=True))}, {"": ([3, 1, 2], [1, 2, 3])}])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("y_range", [None, (0, None), (None, 1), (1, 2)])
def test_any_data_make_a_chart_without_a_warning(lines, log, y_range, recwarn):
    picture = runs.line_chart(lines, log_y=log, y_range=y_range, x_label="x", y_label="y")
    assert picture.size == (560, 360) and picture.mode == "RGB" and not list(recwarn)


def test_no_data_yet_is_said():
    said, plain = runs.line_chart({}), runs.line_chart({"": ([0.5], [2])}, y_range=(0, 1))
    text = (pixels(said) < 128).all(2)[150:210, 200:400]
    assert text.sum() > 100 and not (pixels(plain) < 128).all(2)[150:210, 200:400].any()


@pytest.mark.parametrize("low, high, log, labels", [
    (0, 200_000, False, "0 50k 100k 150k 200k"), (0, 2e6, False, "0 0.5M 1.0M 1.5M 2.0M"),
    (-1, 1, False, "-1.0 -0.5 0 0.5 1.0"), (0, 10, False, "0 2 4 6 8 10"),
    (0, 3e12, False, "0 1e12 2e12 3e12"), (100_000, 100_020, False, "100000 100005 100010 100015 100020"),
    (1.00001, 1.00002, False, "1.000010 1.000012 1.000014 1.000016 1.000018 1.000020"),
    (0, 5e-5, False, "0 1e-5 2e-5 3e-5 4e-5 5e-5"), (-0.1, 2.1, True, "10^0 10^1 10^2"),
    (-8, 2, True, "10^-8 10^-6 10^-4 10^-2 10^0 10^2")])
def test_ticks(low, high, log, labels):
    assert runs._ticks(low, high, 5, log)[1] == labels.split()


def test_ticks_are_few_in_range_and_1_2_or_5_apart():
    random = np.random.default_rng(0)
    for _ in range(2000):
        low = random.normal() * 10 ** random.uniform(-6, 6)
        high = low + 10 ** random.uniform(-4, 6)
        most = random.uniform(1, 12)
        ticks, labels = runs._ticks(low, high, most)
        room = 1e-6 * (high - low)
        assert len(ticks) == len(labels) <= most + 1 and len(set(labels)) == len(labels)
        assert (ticks >= low - room).all() and (ticks <= high + room).all()
        if len(ticks) > 1:
            apart = np.log10((ticks[1] - ticks[0]) / np.array([1, 2, 5]))
            assert np.abs(apart - apart.round()).min() < 1e-4


def test_tick_labels_never_touch():
    for low, high in ((0, 2e5), (1.00001, 1.00002), (-1e-7, 1e12), (-123456, -123455)):
        for width in (160, 240, 400, 800):
            picture = runs.line_chart({"": ([low, high], [0, 1])}, size=(width, 200))
            bottom = inside(picture)[3]
            ink = (pixels(picture)[bottom + 6:] < 200).all(2).any(0)
            gaps = np.diff(np.flatnonzero(ink)) - 1
            wide = gaps[gaps >= 8]  # between labels; within one there are at most a few pixels
            labels = runs._ticks(*runs._limits(np.array([low, high]), room=0.015), 10)[1]
            assert len(wide) < len(labels) and ((gaps < 6) | (gaps >= 12)).all()


# Smoothing

def test_smooth_against_brute_force():
    random = np.random.default_rng(0)
    for n in (0, 1, 2, 7, 50):
        for window in (1, 2, 3, 4, 7, 10, 49, 50, 51, 99, 100, 1000):
            ys = random.normal(size=n)
            ys[random.random(n) < 0.3] = np.nan
            if n > 20:
                ys[5], ys[10:20] = np.inf, np.nan
            wide = max(1, min(window, 2 * n))
            expected = []
            for i in range(n):
                near = ys[max(0, i - wide // 2):i - wide // 2 + wide]
                near = near[np.isfinite(near)]
                expected.append(near.mean() if len(near) else np.nan)
            np.testing.assert_allclose(runs.smooth(ys, window), expected, atol=1e-12)


# Histograms

def test_bars_are_as_high_as_their_shares():
    shares = np.array([0.1, 0.4, 0.2, 0.3])
    values = torch.tensor(np.repeat([0.5, 1.5, 2.5, 3.5], (1000 * shares).astype(int)))
    picture = runs.histogram(values, bins=4, x_range=(0, 4), size=(420, 300))
    left, top, right, bottom = inside(picture)
    rows, columns = where(picture, runs.COLOURS[0], 60)
    unit = (bottom - top) / (0.4 * 1.04)  # pixels for a share of 1
    for i, share in enumerate(shares):
        middle = left + (right - left) * (0.02 * 4 + i + 0.5) / (4 * 1.04)
        assert (columns == round(middle)).sum() / unit == pytest.approx(share, abs=1.5 / unit)


def test_shares_are_of_all_finite_values():
    some = runs.histogram([0.5] * 5 + [9] * 5 + [np.nan] * 10, bins=1, x_range=(0, 1))
    assert (pixels(some) == pixels(runs.histogram([0.5, 9], bins=1, x_range=(0, 1)))).all()
    assert (pixels(some) != pixels(runs.histogram([0.5], bins=1, x_range=(0, 1)))).any()  # other ticks


@pytest.mark.parametrize("values", [[], [np.nan], [0.01] * 5, [0], np.arange(1000.0), torch.randn(3, 4)])
def test_any_values_make_a_histogram(values, recwarn):
    assert runs.histogram(values).size == (560, 360) and not list(recwarn)


# Surfaces

def test_surface_of_a_ramp_gets_lighter_upwards_from_row_0_at_the_bottom():
    ramp = np.linspace(0, 1, 20)[:, None].repeat(30, 1)
    picture = pixels(runs.surface(ramp, (-1, 1, -1, 1), size=(200, 260), levels=12))
    column = picture[1:-1, 100].sum(1)[::-1]  # from the bottom up
    bands = [column[round(258 * (i + 0.5) / 13)] for i in range(13)]
    assert (np.diff(bands) > 0).all()
    assert (picture[1:-1, 50] == picture[1:-1, 150]).all()
    sideways = pixels(runs.surface(ramp.T, (-1, 1, -1, 1), size=(260, 200)))[100, 1:-1].sum(1)
    assert (np.diff([sideways[round(258 * (i + 0.5) / 13)] for i in range(13)]) > 0).all()


def test_contours_are_at_equally_spaced_values():
    ramp = np.linspace(5, 9, 50)[:, None].repeat(50, 1)
    column = pixels(runs.surface(ramp, (0, 1, 0, 1), size=(100, 300), levels=3))[:, 50].sum(1)
    dips = [y for y in range(2, 298) if column[y] < min(column[y - 2], column[y + 2]) - 10]
    for level in (75, 150, 225):  # a quarter, half and three quarters of the way from 5 to 9
        assert min(abs(y - level) for y in dips) <= 1
    assert all(min(abs(y - level) for level in (75, 150, 225)) <= 2 for y in dips)


@pytest.mark.parametrize("x, y", [(0, 0), (-1.5, 0.5), (1.2, -0.7), (1.9, 0.9)])
def test_points_are_where_they_are(x, y):
    extent, flat = (-2, 2, -1, 1), torch.zeros(10, 10)
    for kind, colour in (("points", "#F0602A"), ("fake", "#B9D7F0")):
        dots = {kind: torch.tensor([[x, y], [9, 9]])}  # the second is outside
        picture = runs.surface(flat, extent, size=(400, 200), **dots)
        rows, columns = where(picture, colour, 40)
        assert columns.mean() + 0.5 == pytest.approx((x + 2) * 100, abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx((1 - y) * 100, abs=0.6)
        assert 4 <= len(rows) <= 12


def test_surface_of_anything(recwarn):
    wild = np.where(np.eye(5) > 0, np.inf, 1e30 * np.arange(5))
    for values in (np.zeros((5, 5)), np.full((5, 5), np.nan), wild):
        assert runs.surface(values, (0, 1, 0, 1)).size == (300, 300)
    assert not list(recwarn)
    assert (pixels(runs.surface(np.full((5, 5), np.nan), (0, 1, 0, 1)))[150, 150] == 200).all()


# Images side by side

@pytest.mark.parametrize("count, columns, gap", [(1, None, 2), (10, None, 0), (10, 3, 5), (4, 8, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_puts_every_pixel_in_its_cell(count, columns, gap, channels):
    images = torch.randint(0, 256, (count, channels, 5, 7), dtype=torch.uint8)
    picture = pixels(runs.image_grid(images, columns, gap))
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    assert picture.shape == (rows * (5 + gap) - gap, columns * (7 + gap) - gap, 3)
    rest = picture.copy()
    for i, image in enumerate(images.numpy()):
        y, x = i // columns * (5 + gap), i % columns * (7 + gap)
        assert (picture[y:y + 5, x:x + 7] == np.broadcast_to(image.transpose(1, 2, 0), (5, 7, 3))).all()
        rest[y:y + 5, x:x + 7] = 255
    assert (rest == 255).all()


def test_image_grid_refuses_what_is_not_an_image():
    flat, two = torch.zeros(3, 4, 4, dtype=torch.uint8), np.zeros((2, 2, 4, 4), np.uint8)
    for images in (torch.zeros(2, 3, 4, 4), flat, two):
        with pytest.raises(ValueError, match="uint8"):
            runs.image_grid(images)


def test_beside_keeps_pictures_whole_and_in_order():
    colours = [["#FF0000", "#00FF00"], ["#0000FF", None], ["#FF00FF"]]
    rows = [[c and Image.new("RGB", (60, 40), c) for c in row] for row in colours]
    picture = runs.beside(rows, [["a caption that is longer than the picture", None], ["10^-3"]],
                          ["first row", "second", "third"], ["left", "right"], "A title")
    places = {}
    for c in ("#FF0000", "#00FF00", "#0000FF", "#FF00FF"):
        ys, xs = where(picture, c, 0)
        assert len(ys) == 60 * 40 and np.ptp(ys) == 39 and np.ptp(xs) == 59
        places[c] = xs.min(), ys.min()
    assert places["#FF0000"][0] == places["#0000FF"][0] == places["#FF00FF"][0] < places["#00FF00"][0]
    assert places["#FF0000"][1] == places["#00FF00"][1] < places["#0000FF"][1] < places["#FF00FF"][1]
    x, y = places["#00FF00"][0], places["#0000FF"][1]  # the empty cell
    assert (pixels(picture)[y, x:x + 60] == 0xBB).all() and (pixels(picture)[y + 10, x + 30] == 0xF4).all()
    x, y = places["#00FF00"][0], places["#FF00FF"][1]  # a row may be shorter
    assert (pixels(picture)[y:, x:] == 255).all()
    plain = runs.beside([[rows[0][0]]], gap=0)
    assert (pixels(plain) == pixels(rows[0][0])).all()


# Files

def test_save_png(tmp_path):
    picture = runs.image_grid(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    runs.save_png(picture, str(tmp_path / "a.png"))
    runs.save_png(picture, tmp_path / "a.png")
    assert (pixels(Image.open(tmp_path / "a.png")) == pixels(picture)).all()
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileNotFoundError):
        runs.save_png(picture, tmp_path / "none" / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_save_png_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch, error):
    picture = Image.new("RGB", (8, 8), "red")
    runs.save_png(picture, tmp_path / "a.png")

    def stop(*_):
        raise error

    for place, name, fails in ((Image.Image, "save", stop), (os, "fsync", stop), (os, "replace", stop)):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(place, name, fails)
            runs.save_png(Image.new("RGB", (8, 8), "blue"), tmp_path / "a.png")
        assert (pixels(Image.open(tmp_path / "a.png")) == pixels(picture)).all()
        assert os.listdir(tmp_path) == ["a.png"]
