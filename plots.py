"""Charts and picture grids, drawn with Pillow because matplotlib is not a dependency.

Functions take numbers (lists, arrays or tensors) and return RGB PIL images. Charts are drawn SCALE times
too large and reduced at the end, which smooths their edges.
"""
import functools
import itertools
import math
import textwrap

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

SCALE = 3
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC6699", "#E69F00", "#56B4E9", "#333333", "#8C6BB1"]
GRID, FRAME, PALE = "#E8E8E8", "#999999", "#BBBBBB"
SURFACE = [(62, 56, 112), (62, 104, 152), (66, 150, 154), (122, 195, 138), (243, 233, 140)]  # low to high

font = functools.cache(ImageFont.load_default)


def to_numpy(values, log=False):
    """Return a float64 array, or its log10. None becomes NaN, as does log10 of 0 and of negative numbers."""
    if torch.is_tensor(values):
        values = values.detach().cpu().double()
    values = np.asarray(values, np.float64)
    return np.log10(values, out=np.full(values.shape, np.nan), where=values > 0) if log else values


# ---- axes ----

class Chart:
    """A pair of axes. size: in pixels. x_range, y_range: in data units, exponents of ten on a log axis."""

    def __init__(self, size, x_range, y_range, title="", x_label="", y_label="", log_y=False, legend=()):
        self.x_range, self.y_range, self.width = x_range, y_range, size[0] * SCALE
        self.image = Image.new("RGB", (self.width, size[1] * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)
        y_ticks = ticks(*y_range, size[1] / 45, log_y)
        y_name = text_image(y_label, 12 * SCALE, self.image.height * 0.8).rotate(90, expand=True)
        widest = max([font(11 * SCALE).getlength(label) for _, label in y_ticks], default=0)
        self.left, self.right = 14 * SCALE + int(widest), self.width - 26 * SCALE
        self.top, self.bottom = (34 if title else 12) * SCALE, self.image.height - (43 if x_label else 26) * SCALE
        if y_label:
            self.left += y_name.width
        self.left -= self.left % SCALE  # so that the frame is not blurred
        if legend:
            self.draw_legend(legend)
        self.image.paste(y_name, (2 * SCALE, (self.top + self.bottom - y_name.height) // 2))
        self.text(self.width / 2, 7 * SCALE, title, "ma", 14)
        self.text((self.left + self.right) / 2, self.image.height - 5 * SCALE, x_label, "md", 12)
        self.inside = Image.new("RGB", (self.right - self.left, self.bottom - self.top), "white")
        self.inside_pen = ImageDraw.Draw(self.inside, "RGBA")  # RGBA: blend half-transparent colours
        for tick, label in ticks(*x_range, max(2, self.inside.width / SCALE / 80)):
            x, _ = self.place(tick, y_range[0])
            self.inside_pen.line((x, 0, x, self.inside.height), GRID, SCALE)
            self.text(self.left + x, self.bottom + 5 * SCALE, label, "ma")
        for tick, label in y_ticks:
            _, y = self.place(x_range[0], tick)
            self.inside_pen.line((0, y, self.inside.width, y), GRID, SCALE)
            self.text(self.left - 6 * SCALE, self.top + y, label, "rm")

    def draw_legend(self, colours):
        """Write {label: colour} in rows below the title. The axes begin below them."""
        x, y = self.left, self.top + 4 * SCALE
        for label, colour in colours.items():
            width = 36 * SCALE + int(font(11 * SCALE).getlength(label))
            if x > self.left and x + width > self.width:
                x, y = self.left, y + 15 * SCALE
            self.pen.line((x, y, x + 18 * SCALE, y), colour, 2 * SCALE)
            self.text(x + 23 * SCALE, y, label, "lm")
            x += width
        self.top = y + 12 * SCALE

    def text(self, x, y, text, anchor, size=11):
        """Write a line of text."""
        self.pen.text((x, y), text, "black", font(size * SCALE), anchor)

    def place(self, x, y):
        """Return the pixel of a point, counted from the upper left corner inside the axes."""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        down = (self.y_range[1] - y) / (self.y_range[1] - self.y_range[0])
        across, down = np.clip(across, -9, 9), np.clip(down, -9, 9)
        return across * (self.inside.width - 1), down * (self.inside.height - 1)

    def line(self, xs, ys, colour, width):
        """Draw a line with gaps at NaN. A point on its own becomes a dot."""
        finite = np.isfinite(xs) & np.isfinite(ys)
        for piece in np.ma.clump_unmasked(np.ma.masked_array(xs, ~finite)) if finite.any() else ():
            x, y = thin(*self.place(xs[piece], ys[piece]))
            if max(np.ptp(x), np.ptp(y)) < SCALE:
                self.inside_pen.circle((x[0], y[0]), 3 * SCALE, colour)
            points = np.stack([x, y], 1).ravel().tolist()
            self.inside_pen.line(points, colour, round(width * SCALE), "curve")

    def finish(self):
        self.image.paste(self.inside, (self.left, self.top))
        edges = self.left - SCALE, self.top - SCALE, self.right + SCALE - 1, self.bottom + SCALE - 1
        self.pen.rectangle(edges, outline=FRAME, width=SCALE)
        return self.image.reduce(SCALE)


def thin(x, y):
    """Keep the first, lowest, highest and last point in each column of pixels. The line looks the same."""
    starts = np.flatnonzero(np.diff(np.floor(x), prepend=np.inf))
    ends = np.append(starts[1:], len(x)) - 1
    by_height = np.lexsort((y, np.repeat(starts, ends - starts + 1)))
    kept = np.unique(np.concatenate([starts, ends, by_height[starts], by_height[ends]]))
    return x[kept], y[kept]


def ticks(low, high, most, log=False):
    """Return about `most` pairs (position, label) from low to high, 1, 2 or 5 times a power of 10 apart.

    On a log axis all are exponents of ten. A short one has round numbers instead.
    """
    if log and high - low < 1.5:
        return [(math.log10(tick), label) for tick, label in ticks(10 ** low, 10 ** high, most) if tick > 0]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= 0.999 * (high - low) / most)
    if log:
        step = math.ceil(step)
    positions = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    digits = max(7, math.ceil(math.log10(max(abs(low), abs(high)) / step)) + 1)
    labels = [f"1e{int(tick)}" if log else f"{tick:.{digits}g}" for tick in positions]
    return [(tick, label.replace("e+0", "e").replace("e-0", "e-")) for tick, label in zip(positions, labels)]


def limits(values, given=None, room=0.04):
    """Return the (low, high) of an axis: `given` where it is not None, else the data's and some room."""
    values, given = values[np.isfinite(values)], to_numpy(given or (None, None))
    extremes = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    low, high = np.where(np.isnan(given), extremes, given)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        low, high = min(low, high) - (size / 10 or 1), max(low, high) + (size / 10 or 1)
    low_room, high_room = room * (high - low) * np.isnan(given)
    return low - low_room, high + high_room


# ---- charts ----

def line_chart(series, title="", x_label="", y_label="", log_y=False, size=(560, 360), y_range=None, pale=None,
               band=None, colours=None, x_range=None):
    """Draw {label: (xs, ys)} as lines with gaps at None, NaN and infinity, with log_y also at and below 0.

    Label "" stays out of the legend. x_range, y_range: (low, high), None where the data decide.
    pale: raw values in the same form, thin and light. Their most extreme 0.5 % may leave the picture.
    band: {label: (xs, low, high)}, filled lightly. colours: {label: colour}, instead of COLOURS.
    """
    def prepare(some):
        return {label: (to_numpy(xs), *(to_numpy(y, log_y) for y in ys)) for label, (xs, *ys) in some.items()}

    lines, pale, band = prepare(series), prepare(pale or {}), prepare(band or {})
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(lines)} | (colours or {})
    legend = {label: colours[label] for label in lines if label}
    xs = np.concatenate([[], *(xs for xs, _ in lines.values())])
    ys = np.concatenate([[], *(y for _, *ys in [*lines.values(), *band.values()] for y in ys)])
    for _, raw in pale.values():
        legend["pale: raw"] = PALE
        raw = raw[np.isfinite(raw)]
        ys = np.append(ys, np.quantile(raw, [0.005, 0.995]) if len(raw) else [])
    y_range = limits(ys, to_numpy(y_range or (None, None), log_y).tolist())
    chart = Chart(size, limits(xs, x_range, 0.015), y_range, title, x_label, y_label, log_y, legend)
    for label, (x, low, high) in band.items():
        x, low, high = np.stack([x, low, high])[:, np.isfinite(x + low + high)]
        outline = np.stack(chart.place(np.append(x, x[::-1]), np.append(low, high[::-1])), 1)
        if len(x) > 1:
            chart.inside_pen.polygon(outline.ravel().tolist(), (*ImageColor.getrgb(colours[label]), 50))
    for label, (x, y) in pale.items():
        chart.line(x, y, tuple(255 - (255 - c) // 3 for c in ImageColor.getrgb(colours[label])), 1)
    for label, (x, y) in lines.items():
        chart.line(x, y, colours[label], 1.7)
    return chart.finish()


def histogram(values, bins=100, title="", x_label="", size=(560, 360), x_range=None):
    """Draw the share of the finite values that falls into each bin."""
    values = to_numpy(values)[np.isfinite(to_numpy(values))]
    counts, edges = np.histogram(values, bins, x_range or limits(values, room=0))
    xs, ys = np.repeat(edges, 2), np.pad(np.repeat(counts, 2), 1) / max(len(values), 1)
    return line_chart({"": (xs, ys)}, title, x_label, "share per bin", size=size, y_range=(0, None),
                      band={"": (xs, 0 * ys, ys)})


def surface(values, extent, points=None, fake=None, size=(300, 300), levels=12):
    """Draw a function of the plane as in Figure 1(a): bands of colour, dark for low, lines between them.

    values: (H, W), on a grid over extent (x0, x1, y0, y1), ends included, row 0 at y0, the bottom.
    points, fake: (N, 2), drawn as orange and light blue dots.
    """
    values, (x0, x1, y0, y1) = to_numpy(values)[::-1], extent
    width, height = size[0] * SCALE, size[1] * SCALE
    unit = (values - values.min()) / ((values.max() - values.min()) or 1)
    box = 0.5, 0.5, values.shape[1] - 0.5, values.shape[0] - 0.5  # the middles of the outermost cells
    fine = Image.fromarray(unit.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR, box)
    band = np.clip(np.floor(np.asarray(fine) * (levels + 1)), 0, levels).astype(int)
    at = band / levels * (len(SURFACE) - 1)
    pixels = np.stack([np.interp(at, range(len(SURFACE)), channel) for channel in zip(*SURFACE)], 2)
    pixels[1:, 1:][(band[1:, 1:] != band[:-1, 1:]) | (band[1:, 1:] != band[1:, :-1])] *= 0.2
    image = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for dots, colour in ((fake, "#B9D7F0"), (points, "#F0602A")):
        for x, y in to_numpy([] if dots is None else dots):
            pen.circle(((x - x0) / (x1 - x0) * width, (y1 - y) / (y1 - y0) * height), 1.7 * SCALE, colour)
    return image.reduce(SCALE)


def smooth(ys, window):
    """Return the mean of the `window` values centred on each of ys. NaN and infinity are left out."""
    ys, window = to_numpy(ys), max(1, int(window))
    finite = np.isfinite(ys)
    sums = np.append(0, np.cumsum(np.where(finite, ys, 0)))
    counts = np.append(0, np.cumsum(finite))
    first = np.maximum(np.arange(len(ys)) - window // 2, 0)
    last = np.minimum(np.arange(len(ys)) - window // 2 + window, len(ys))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


# ---- pictures side by side ----

def grid(rows, gap=0):
    """Put rows of pictures on white, `gap` pixels apart, centred in their columns. None: an empty place."""
    widths = [max([p.width for p in column if p], default=0) for column in itertools.zip_longest(*rows)]
    heights = [max([p.height for p in row if p], default=0) for row in rows]
    size = sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1)
    figure = Image.new("RGB", size, "white")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture:
                x = sum(widths[:c]) + gap * c + (widths[c] - picture.width) // 2
                figure.paste(picture, (x, sum(heights[:r]) + gap * r))
    return figure


def image_grid(images, columns=None, gap=2):
    """Put images (N, 1 or 3, H, W), uint8, in rows, by default in about as many columns as rows."""
    images = np.asarray(torch.as_tensor(images).cpu())
    images = images.repeat(3 // images.shape[1], 1).transpose(0, 2, 3, 1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = [images[i:i + columns] for i in range(0, len(images), columns)]
    return grid([[Image.fromarray(image) for image in row] for row in rows], gap)


def text_image(text, size, width=10_000):
    """Draw black text on white, wrapped at about `width` pixels."""
    text, large = textwrap.fill(text, max(6, int(1.9 * width / size))), font(size * SCALE)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, large)
    image = Image.new("RGB", (int(box[2]) + 2 * SCALE, int(box[3]) + 4 * SCALE), "white")
    ImageDraw.Draw(image).multiline_text((SCALE, 0), text, "black", large, align="center")
    return image.reduce(SCALE)


def beside(rows, captions=None, row_labels=None, column_labels=None, title="", gap=12):
    """Put rows of pictures into one figure. None is a grey place that says "not run".

    captions: rows of texts under the pictures. row_labels: at the left, turned. column_labels: above.
    """
    known = [picture for row in rows for picture in row if picture] or [Image.new("RGB", (100, 100))]
    width, height = max(p.width for p in known), max(p.height for p in known)
    missing = Image.new("RGB", (width, height), GRID)
    ImageDraw.Draw(missing).text((width / 2, height / 2), "not run", "black", font(13), "mm")
    rows = [[picture or missing for picture in row] for row in rows]
    for row, texts in zip(rows, captions or []):
        for c, text in enumerate(texts):
            if text:
                row[c] = grid([[row[c]], [text_image(text, 11, row[c].width)]], 3)
    for row, text in zip(rows, row_labels or []):
        height = max(picture.height for picture in row)
        label = text_image(text, 13, height).rotate(90, expand=True)
        row.insert(0, ImageOps.pad(label, (label.width, max(height, label.height)), color="white"))
    if column_labels:
        labels = [text_image(text, 13, width) for text in column_labels]
        rows.insert(0, [None, *labels] if row_labels else labels)
    figure = grid(rows, gap)
    if title:
        figure = grid([[text_image(title, 15, figure.width)], [figure]], gap)
    return ImageOps.expand(figure, gap, "white")
