"""plots.py: what is drawn is where, and as large as, the numbers say."""
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import plots


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, colour, tolerance=40):
    """The rows and columns of the pixels that have about this colour."""
    away = np.abs(pixels(picture) - ImageColor.getrgb(colour)).max(2)
    return np.nonzero(away <= tolerance)


def inside(picture):
    """The (left, top, right, bottom) of the frame of a chart."""
    frame = (np.abs(pixels(picture) - ImageColor.getrgb(plots.FRAME)) < 8).all(2)
    rows, columns = (np.flatnonzero(frame.mean(axis) > 0.4) for axis in (1, 0))
    return columns[0] + 1, rows[0] + 1, columns[-1], rows[-1]


def curve(picture, colour=plots.COLOURS[0], tolerance=40):
    """The pixels of this colour below the legend: x and y from 0 to 1 between the axes."""
    left, top, right, bottom = inside(picture)
    rows, columns = where(picture, colour, tolerance)
    rows, columns = rows[rows > top], columns[rows > top]
    return (columns + 0.5 - left) / (right - left), (bottom - rows - 0.5) / (bottom - top)


# ---- lines ----

def test_a_line_lies_where_the_numbers_are():
    x, y = curve(plots.line_chart({"a": (range(11), range(11))}, "title", "x", "y", size=(400, 300)))
    assert np.abs((x * 1.03 - 0.015) - (y * 1.08 - 0.04)).max() < 0.012 and x.min() < 0.02 and x.max() > 0.98
    exponential = plots.line_chart({"": (np.linspace(0, 4, 99), 100 ** -np.linspace(0, 4, 99))}, log_y=True)
    x, y = curve(exponential)
    assert np.abs(np.polyval(np.polyfit(x, y, 1), x) - y).max() < 0.01
    x, y = curve(plots.line_chart({"": ([0, 4], [0, 4])}, x_range=(0, 8), y_range=(0, 16)))
    assert x.max() == pytest.approx(0.5, abs=0.01) and y.max() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("gap, log_y", [
    (None, False), (float("nan"), False), (float("inf"), False), (0, True), (-1, True)])
def test_what_is_no_number_is_a_gap_and_a_lone_point_a_dot(gap, log_y):
    x, _ = curve(plots.line_chart({"": ([0, 1, 2, 3, 4], [1, 2, gap, 2, gap])}, log_y=log_y))
    x = np.unique(x)
    assert np.diff(x).max() == pytest.approx(0.5 / 1.03, abs=0.02)  # from 1 to 3
    assert 5 <= (x > 0.6).sum() <= 8


def test_a_single_measurement_does_not_stretch_an_axis():
    x, y = curve(plots.line_chart({"": ([1000], [3.2])}, x_range=(0, 2000)))
    assert np.median(x) == pytest.approx(0.5, abs=0.01) and np.median(y) == pytest.approx(0.5, abs=0.02)


def test_raw_values_are_pale_and_their_extremes_do_not_stretch_the_axis():
    xs = np.arange(1000)
    ys = np.sin(xs / 50)
    raw = np.where(xs == 3, 1e6, ys)
    picture = plots.line_chart({"a": (xs, ys)}, pale={"a": (xs, raw)}, colours={"a": "#FF0000"})
    assert np.ptp(curve(picture, "#FF0000")[1]) > 0.8
    assert len(curve(picture, "#FFAAAA", 25)[0]) > 50
    above = pixels(picture)[:inside(picture)[1] - 3]
    assert (np.abs(above - ImageColor.getrgb(plots.PALE)) < 3).all(2).sum() > 15  # "pale: raw" in the legend


def test_a_band_is_between_its_edges_and_belongs_to_the_range():
    picture = plots.line_chart({"a": ([0, 1], [5, 5])}, band={"a": ([0, 1], [0, 0], [10, 10])})
    _, y = curve(picture, "#CCE1EF", 12)
    assert y.min() == pytest.approx(0.04 / 1.08, abs=0.02) and y.max() == pytest.approx(1.04 / 1.08, abs=0.02)


def test_a_legend_wraps_and_stays_in_the_picture():
    lines = {f"a long label, number {i}": ([0, 1], [0, i]) for i in range(6)}
    one, six = plots.line_chart(dict([*lines.items()][:1])), plots.line_chart(lines)
    assert inside(six)[1] - inside(one)[1] == 15  # one more row
    for colour in plots.COLOURS[:6]:
        assert (where(six, colour)[0] < inside(six)[1]).sum() > 15
    ink = (pixels(six) < 128).all(2)
    assert not ink[:, -1].any() and not ink[:, 0].any()


@pytest.mark.parametrize("low, high, log, labels", [
    (0, 200_000, False, "0 50000 100000 150000 200000"), (0, 2e7, False, "0 5000000 1e7 1.5e7 2e7"),
    (-1, 1, False, "-1 -0.5 0 0.5 1"), (100_000, 100_020, False, "100000 100005 100010 100015 100020"),
    (1.00001, 1.00002, False, "1.00001 1.000012 1.000014 1.000016 1.000018 1.00002"),
    (0, 5e-5, False, "0 1e-5 2e-5 3e-5 4e-5 5e-5"), (-8, 2, True, "1e-8 1e-6 1e-4 1e-2 1e0 1e2"),
    (0, 1, True, "2 4 6 8 10")])
def test_ticks(low, high, log, labels):
    positions, texts = zip(*plots.ticks(low, high, 5, log))
    assert list(texts) == labels.split()
    values = 10 ** np.array(positions, float) if log else positions
    assert np.allclose(values, [float(text) for text in texts], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("lines", [
    {}, {"a": ([], [])}, {"a": ([1, 2], [None, None])}, {"a": ([1, 2, 3], [0, 0, 0])}, {"a": ([1, 2], [-5.0, -4.0])},
    {"a": ([0, 1e15], [-1e-9, 1e30])}, {"a": (torch.arange(3), torch.rand(3, requires_grad=True))},
    {"": ([3, 1, 2], [1, 2, 3])}])
@pytest.mark.parametrize("log_y, y_range", [
    (False, None), (True, None), (False, (1, 2)), (True, (None, 1)), (False, (9, None))])
def test_any_numbers_make_a_chart_without_a_warning(lines, log_y, y_range, recwarn):
    picture = plots.line_chart(lines, "t" * 99, "x", "y", log_y=log_y, y_range=y_range, pale=lines)
    assert picture.size == (560, 360) and picture.mode == "RGB" and not list(recwarn)


def test_smooth_against_brute_force():
    random = np.random.default_rng(0)
    for n, window in [(0, 3), (1, 5), (7, 2), (50, 1), (50, 3), (50, 10), (50, 1000)]:
        ys = random.normal(size=n)
        ys[random.random(n) < 0.3] = np.nan
        near = [ys[max(0, i - window // 2):i - window // 2 + window] for i in range(n)]
        expected = [np.mean(some[np.isfinite(some)]) if np.isfinite(some).any() else np.nan for some in near]
        np.testing.assert_allclose(plots.smooth(ys, window), expected, atol=1e-12)


# ---- histograms and surfaces ----

def test_bars_are_as_high_as_their_shares(recwarn):
    values = torch.tensor([0.5] * 1 + [1.5] * 4 + [2.5] * 2 + [3.5] * 3 + [float("nan")] * 5)
    x, y = curve(plots.histogram(values, 4, x_range=(0, 4)))
    for i, share in enumerate((0.1, 0.4, 0.2, 0.3)):
        bar = np.abs((x * 1.03 - 0.015) * 4 - i - 0.5) < 0.4
        assert y[bar].max() == pytest.approx(share / 0.4 / 1.04, abs=0.01)
    for some in ([], [np.nan], [0.01] * 5, np.arange(9.0)):
        assert plots.histogram(some).size == (560, 360)
    assert not list(recwarn)


def test_a_surface_gets_lighter_upwards_with_lines_at_equal_steps():
    ramp = np.linspace(5, 9, 50)[:, None].repeat(30, 1)
    column = pixels(plots.surface(ramp, (0, 1, 0, 1), size=(100, 300), levels=3))[::-1, 50].sum(1)
    assert (np.diff(column[[37, 112, 187, 262]]) > 20).all()
    dips = [y for y in range(2, 298) if column[y] < min(column[y - 2], column[y + 2]) - 10]
    assert {min((75, 150, 225), key=lambda level: abs(y - level)) for y in dips} == {75, 150, 225}
    assert all(min(abs(y - level) for level in (75, 150, 225)) <= 2 for y in dips)
    assert plots.surface(np.zeros((5, 5)), (0, 1, 0, 1)).size == (300, 300)


@pytest.mark.parametrize("x, y", [(0, 0), (-1.5, 0.5), (1.9, 0.9)])
@pytest.mark.parametrize("kind, colour", [("points", "#F0602A"), ("fake", "#B9D7F0")])
def test_points_are_where_they_are(x, y, kind, colour):
    dots = {kind: torch.tensor([[x, y], [9, 9]])}
    picture = plots.surface(torch.zeros(9, 9), (-2, 2, -1, 1), size=(400, 200), **dots)
    rows, columns = where(picture, colour)
    assert columns.mean() + 0.5 == pytest.approx((x + 2) * 100, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx((1 - y) * 100, abs=0.6) and 4 <= len(rows) <= 12


# ---- pictures side by side ----

@pytest.mark.parametrize("count, columns, gap, channels", [(1, None, 2, 3), (10, None, 0, 1), (10, 3, 5, 3)])
def test_image_grid_puts_every_pixel_in_its_cell(count, columns, gap, channels):
    images = torch.randint(0, 256, (count, channels, 5, 7), dtype=torch.uint8)
    picture = pixels(plots.image_grid(images, columns, gap))
    columns = columns or int(np.ceil(np.sqrt(count)))
    assert picture.shape == (-(-count // columns) * (5 + gap) - gap, columns * (7 + gap) - gap, 3)
    for i, image in enumerate(images.numpy()):
        y, x = i // columns * (5 + gap), i % columns * (7 + gap)
        assert (picture[y:y + 5, x:x + 7] == image.transpose(1, 2, 0)).all()
        picture[y:y + 5, x:x + 7] = 255
    assert (picture == 255).all()


def test_beside_keeps_pictures_whole_and_in_order():
    colours = [["#FF0000", "#00FF00"], ["#0000FF", None], ["#FF00FF"]]
    rows = [[c and Image.new("RGB", (60, 40), c) for c in row] for row in colours]
    picture = plots.beside(rows, [["a caption that is longer than the picture", None], ["1e-3"]],
                           ["first row", "second", "third"], ["left", "right"], "A title")
    places = {}
    for c in ("#FF0000", "#00FF00", "#0000FF", "#FF00FF"):
        ys, xs = where(picture, c, 0)
        assert len(ys) == 60 * 40 and np.ptp(ys) == 39 and np.ptp(xs) == 59
        places[c] = xs.min(), ys.min()
    assert places["#FF0000"][0] == places["#0000FF"][0] == places["#FF00FF"][0] < places["#00FF00"][0]
    assert places["#FF0000"][1] == places["#00FF00"][1] < places["#0000FF"][1] < places["#FF00FF"][1]
    not_run = pixels(picture)[places["#0000FF"][1]:, places["#00FF00"][0]:][:40, :60]
    assert (not_run[5, 30] == ImageColor.getrgb(plots.GRID)).all() and (not_run < 0x80).any(2).sum() > 40
    ink = (pixels(picture) < 255).any(2)
    assert not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())
    assert (pixels(plots.beside([[rows[0][0]]], gap=0)) == pixels(rows[0][0])).all()
