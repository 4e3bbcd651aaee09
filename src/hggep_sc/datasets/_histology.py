"""Draws H&E-like sections: regions, nuclei, fibres, ducts and fat, in optical density (Beer-Lambert)."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

REGIONS = ("stroma", "gland", "tumour", "fat", "immune")
SHARES = (0.30, 0.18, 0.27, 0.12, 0.13)  # of the tissue, on average over sections
STROMA, GLAND, TUMOUR, FAT, IMMUNE = range(5)

# Optical density per unit of stain (R, G, B), after Ruifrok & Johnston 2001
HAEMATOXYLIN = (0.644, 0.717, 0.267)
EOSIN = (0.085, 0.905, 0.400)  # a little redder than theirs, as slides are

ADIPOCYTE_SPACING = 54.0  # um, centre to centre


@dataclass
class Drawing:
    """One drawn section, 1 um per px.

    Attributes
    ----------
    image
        uint8 (height, width, 3).
    region
        int8 (height, width), index into `REGIONS`.
    depth
        float32 (height, width): about the distance to the tissue's outline in px, positive inside.
    maps
        What was drawn where, float32 (height, width), about 0..1 each: the cover by nuclei of each type
        ("tumour", "immune", "epithelium", "fibroblast"), "duct", "lumen", "vacuole", and "collagen", the
        eosin of fibres.
    """

    image: np.ndarray
    region: np.ndarray
    depth: np.ndarray
    maps: dict[str, np.ndarray]


@dataclass
class _Nuclei:
    """Nuclei of one type: centres, semi-axes (px), orientation, stain, how far from an ellipse."""

    x: np.ndarray
    y: np.ndarray
    major: np.ndarray
    minor: np.ndarray
    angle: np.ndarray
    stain: np.ndarray
    irregular: float = 0.0
    nucleolus: float = 0.0


@dataclass
class _Canvas:
    rng: np.random.Generator
    shape: tuple[int, int]
    haematoxylin: np.ndarray = field(init=False)
    eosin: np.ndarray = field(init=False)
    nuclei: np.ndarray = field(init=False)
    texture: np.ndarray = field(init=False)
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.haematoxylin, self.eosin, self.nuclei = (np.zeros(self.shape, np.float32) for _ in range(3))
        self.texture = self.noise(3.0)

    def noise(self, scale: float) -> np.ndarray:
        """Smooth random field of unit variance whose details are about `scale` px wide."""
        return _smooth_noise(self.rng, self.shape, scale)

    def cloud(self, scale: float) -> np.ndarray:
        """`noise` in blocks of 4 px: a tenth of the work, where `scale` is so large that none shows."""
        quarter = (-(-self.shape[0] // 4), -(-self.shape[1] // 4))
        field = _smooth_noise(self.rng, quarter, scale / 4)
        return field.repeat(4, axis=0).repeat(4, axis=1)[: self.shape[0], : self.shape[1]]

    def grain(self) -> np.ndarray:
        """Fine texture, the section's own, each time from another place."""
        return np.roll(self.texture, self.rng.integers(0, self.shape[0], 2), axis=(0, 1))

    def scatter(self, spacing: float, density: np.ndarray, jitter: float = 0.38) -> tuple[np.ndarray, np.ndarray]:
        """Points of a jittered hexagonal grid, each kept with the probability that `density` gives there."""
        height, width = self.shape
        rows = np.arange(0, height, spacing * np.sqrt(3) / 2)
        columns = np.arange(0, width, spacing)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        x = x + spacing / 2 * (np.arange(len(rows)) % 2)[:, None]
        x = (x + self.rng.uniform(-jitter, jitter, x.shape) * spacing).ravel()
        y = (y + self.rng.uniform(-jitter, jitter, y.shape) * spacing).ravel()
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x[inside], y[inside]
        kept = self.rng.random(len(x)) < density[y.astype(int), x.astype(int)]
        return x[kept], y[kept]

    def stamp(self, kind: str, nuclei: _Nuclei) -> None:
        """Draw nuclei: a soft-edged, slightly irregular ellipse each, rim darker than the inside."""
        cover = self.maps.setdefault(kind, np.zeros(self.shape, np.float32))
        height, width = self.shape
        order = np.argsort(nuclei.major)  # alike in size together: windows no larger than need be
        for start in range(0, len(order), 400):
            part = order[start : start + 400]
            reach = int(np.ceil(nuclei.major[part[-1]] * 1.2)) + 2
            offset = np.arange(-reach, reach + 1)
            each = [getattr(nuclei, name)[part] for name in ("x", "y", "major", "minor", "angle", "stain")]
            x, y, major, minor, angle, strength = (values.astype(np.float32)[:, None, None] for values in each)
            column, row = np.floor(x) + offset[None, None, :], np.floor(y) + offset[None, :, None]
            column, row = column.astype(np.int32), row.astype(np.int32)
            dx, dy = column + np.float32(0.5) - x, row + np.float32(0.5) - y
            along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            radius = np.sqrt((along / major) ** 2 + (across / minor) ** 2)
            edge = np.ones_like(radius)
            if nuclei.irregular:
                direction = np.arctan2(across, along)
                for wave in (2, 3, 5):
                    size = self._normal(x.shape) * (nuclei.irregular / wave**0.5)
                    turn = self._normal(x.shape) * 3
                    edge += size * np.cos(wave * direction + turn)
            mask = np.clip((edge - radius) * minor / 1.3 + 0.5, 0, 1)
            shade = 0.72 + 0.28 * np.clip(radius, 0, 1) ** 2
            if nuclei.nucleolus:
                left, up = 0.2 * minor * self._normal(x.shape), 0.2 * minor * self._normal(x.shape)
                seen = nuclei.nucleolus * (self._normal(x.shape) > -0.25)
                shade += seen * np.exp(-((along - left) ** 2 + (across - up) ** 2) / 1.7)
            stain = mask * shade * strength
            valid = ((column >= 0) & (column < width) & (row >= 0) & (row < height)) & (mask > 0)
            index = (row * width + column)[valid]
            np.maximum.at(cover.ravel(), index, mask[valid])
            np.maximum.at(self.nuclei.ravel(), index, stain[valid])

    def _normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    from PIL import Image

    coarse = rng.standard_normal([int(np.ceil(side / scale)) + 3 for side in shape]).astype(np.float32)
    height, width = shape
    left, top = rng.uniform(0, 1, 2)
    box = (1 + left, 1 + top, 1 + left + width / scale, 1 + top + height / scale)
    smooth = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC, box=box))
    return smooth / max(float(smooth[::5, ::5].std()), 1e-6)


def draw(rng: np.random.Generator, radius: float) -> Drawing:
    """Draw one section whose tissue is a blob of about `radius` px (um)."""
    side = 2 * int(np.ceil(1.09 * radius + 45))
    canvas = _Canvas(rng, (side, side))
    depth = _outline(canvas, radius)
    region = _regions(canvas, depth, radius)
    fibre, direction = _fibres(canvas)
    _tissue(canvas, region, fibre)
    tumour = _tumour(canvas, region)
    duct = _ducts(canvas, region)
    fat = _fat(canvas, region, depth, duct)
    _cells(canvas, depth, region, direction, tumour, free=~(duct | fat))
    return Drawing(_develop(canvas, depth), region, depth, canvas.maps)


def _outline(canvas: _Canvas, radius: float) -> np.ndarray:
    rng, (height, width) = canvas.rng, canvas.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - width / 2, y - height / 2
    angle = np.arctan2(y, x)
    edge = np.full(canvas.shape, radius, np.float32)
    for wave in (2, 3, 4, 5):
        edge += radius * rng.normal(0, 0.055 / wave**0.5) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    edge = np.clip(edge, 0.85 * radius, 1.09 * radius) + 10 * canvas.noise(60) + 3 * canvas.noise(14)
    return (edge - np.hypot(x, y)).astype(np.float32)


def _regions(canvas: _Canvas, depth: np.ndarray, radius: float) -> np.ndarray:
    """Regions with smooth borders: the largest of five random fields, offset so that each gets its share."""
    scale = float(np.clip(0.42 * radius, 90, 260))
    half = (canvas.shape[0] // 2, canvas.shape[1] // 2)  # half the resolution is plenty for borders

    def score() -> np.ndarray:
        parts = ((1.0, 2.0), (0.35, 6.0), (0.06, 24.0))
        return np.sum([weight * _smooth_noise(canvas.rng, half, scale / finer) for weight, finer in parts], axis=0)

    scores = np.stack([score() for _ in REGIONS])
    wanted = canvas.rng.dirichlet(np.array(SHARES) * 60)
    sample = scores[:, ::4, ::4][:, depth[::8, ::8] > 0]
    offset = np.zeros(len(REGIONS))
    for _ in range(60):
        share = np.bincount((sample + offset[:, None]).argmax(0), minlength=len(REGIONS)) / sample.shape[1]
        offset += 0.8 * (wanted - share)
    region = (scores + offset[:, None, None].astype(np.float32)).argmax(0).astype(np.int8)
    return region.repeat(2, axis=0).repeat(2, axis=1)


def _fibres(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Wavy fibres (unit variance) and their direction: anisotropic noise looked up along bent coordinates."""
    rng, (height, width) = canvas.rng, canvas.shape
    grain = rng.standard_normal((1200, 400), dtype=np.float32)  # wraps around; columns are 4 px wide
    fine = ndimage.gaussian_filter(grain, (1.1, 4), mode="wrap", truncate=2.5)
    texture = 4.5 * fine + 9 * ndimage.gaussian_filter(fine[::-1], (3.3, 7), mode="wrap", truncate=2.5)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))  # Python floats keep float32 as it is
    across, along = y * cos - x * sin, x * cos + y * sin
    across = across + 70 * canvas.noise(260) + 9 * canvas.noise(55)
    fibre = ndimage.map_coordinates(texture, [across, along / 4], order=1, mode="grid-wrap", prefilter=False)
    slope_y, slope_x = np.gradient(across)
    return fibre / fibre.std(), np.arctan2(slope_x, -slope_y)


def _tissue(canvas: _Canvas, region: np.ndarray, fibre: np.ndarray) -> None:
    """Ground of all regions but the fat: collagen everywhere, replaced where cells are packed."""
    cloud, grain = canvas.cloud(90), canvas.grain()
    bundles = np.clip(0.30 + 0.075 * fibre + 0.05 * cloud, 0.03, None)
    bundles *= 1 - 0.85 * np.clip(-1.2 - (fibre + 0.6 * canvas.noise(24)) / 1.3, 0, 1)  # clefts
    packed = np.isin(region, (TUMOUR, IMMUNE)).astype(np.float32)
    packed = ndimage.uniform_filter(packed, 9)
    canvas.maps["collagen"] = (bundles * (1 - packed)).astype(np.float32)
    ground = np.where(region == IMMUNE, np.float32(0.15), np.float32(0.24)) + 0.03 * grain + 0.02 * cloud
    canvas.eosin[:] = bundles * (1 - packed) + ground * packed
    canvas.haematoxylin[:] = 0.03 + packed * (0.10 + 0.02 * grain)


def _tumour(canvas: _Canvas, region: np.ndarray) -> np.ndarray:
    """Tumour nests (bool), parted by thin collagen septa."""
    septum = np.abs(canvas.noise(75) + 0.25 * canvas.noise(20))
    soft = np.clip((0.17 - septum) / 0.07, 0, 1) * (region == TUMOUR)
    collagen = np.clip(0.33 + 0.05 * canvas.grain(), 0.1, None) * soft
    canvas.eosin[:] = canvas.eosin * (1 - soft) + collagen
    canvas.haematoxylin[:] *= 1 - 0.7 * soft
    canvas.maps["collagen"] += collagen
    return (region == TUMOUR) & (soft < 0.3)


def _ducts(canvas: _Canvas, region: np.ndarray) -> np.ndarray:
    """Rings of epithelium around a lumen; returns where they lie (bool)."""
    rng, (height, width) = canvas.rng, canvas.shape
    taken = np.zeros(canvas.shape, bool)
    duct, lumen = (np.zeros(canvas.shape, np.float32) for _ in range(2))
    x, y, angle = [], [], []
    centres = np.column_stack(canvas.scatter(30.0, (region == GLAND).astype(np.float32), jitter=0.45))
    placed: list[tuple[float, float, float]] = []
    for column, row in rng.permutation(centres):
        outer = rng.uniform(26, 62)
        if any(np.hypot(column - px, row - py) < outer + size + 9 for px, py, size in placed):
            continue
        placed.append((column, row, outer))
        wall = rng.uniform(13, 19)
        squeeze, turn = rng.uniform(0.72, 1.0), rng.uniform(0, np.pi)
        waves = [(wave, rng.normal(0, 0.07 / wave**0.5), rng.uniform(0, 2 * np.pi)) for wave in (2, 3, 4)]

        def edge(theta: np.ndarray, waves: list = waves, outer: float = outer) -> np.ndarray:
            return outer * (1 + sum(size * np.cos(wave * theta + phase) for wave, size, phase in waves))

        reach = int(outer * 1.35) + 3
        top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
        window = (slice(top, min(int(row) + reach, height)), slice(left, min(int(column) + reach, width)))
        py, px = np.mgrid[window].astype(np.float32)
        dx, dy = px - column, py - row
        u = dx * np.cos(turn) + dy * np.sin(turn)
        v = (dy * np.cos(turn) - dx * np.sin(turn)) / squeeze
        inside = edge(np.arctan2(v, u)) - np.hypot(u, v)  # px inside the outer wall
        taken[window] |= inside > -3
        duct[window] = np.maximum(duct[window], np.clip(inside + 0.5, 0, 1))
        lumen[window] = np.maximum(lumen[window], np.clip((inside - wall) / 1.5 + 0.5, 0, 1))
        # nuclei stand at the foot of the cells, some in a second row
        for lift, share in ((5.0, 1.0), (10.0, 0.35)):
            count = max(int(2 * np.pi * (outer - lift) / 7.0), 5)
            theta = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count * 2 * np.pi
            theta = theta[rng.random(count) < share * 0.95]
            distance = edge(theta) - lift - rng.uniform(-1.2, 1.6, len(theta))
            u, v = distance * np.cos(theta), distance * np.sin(theta) * squeeze
            x.append(column + u * np.cos(turn) - v * np.sin(turn))
            y.append(row + u * np.sin(turn) + v * np.cos(turn))
            angle.append(theta + turn + rng.normal(0, 0.25, len(theta)))
    secretion = np.clip(0.03 + 0.06 * canvas.noise(25), 0.01, None)
    canvas.eosin[:] = canvas.eosin * (1 - duct) + duct * (0.24 + 0.03 * canvas.grain())
    canvas.eosin[:] = canvas.eosin * (1 - lumen) + lumen * secretion
    canvas.haematoxylin[:] = (canvas.haematoxylin * (1 - duct) + 0.13 * duct) * (1 - lumen)
    canvas.maps["collagen"] *= 1 - duct
    canvas.maps.update(duct=duct, lumen=lumen)
    xs, ys, angles = (np.concatenate([np.zeros(0), *part]) for part in (x, y, angle))
    n = len(xs)
    canvas.stamp(
        "epithelium",
        _Nuclei(
            xs,
            ys,
            rng.uniform(3.7, 4.9, n),
            rng.uniform(2.5, 3.3, n),
            angles,
            rng.uniform(0.5, 0.75, n),
            irregular=0.05,
            nucleolus=0.15,
        ),
    )
    return taken


def _fat(canvas: _Canvas, region: np.ndarray, depth: np.ndarray, ducts: np.ndarray) -> np.ndarray:
    """Adipocytes: empty vacuoles, thin membranes, a few flat nuclei; returns where they lie (bool)."""
    rng, (height, width) = canvas.rng, canvas.shape
    near = ndimage.binary_dilation((region == FAT)[::4, ::4], iterations=9)
    near = near.repeat(4, axis=0).repeat(4, axis=1)[:height, :width] & (depth > -2)
    vacuole, fat = (np.zeros(canvas.shape, np.float32) for _ in range(2))
    row, column = np.nonzero(near)
    if len(row):
        centres = np.column_stack(canvas.scatter(ADIPOCYTE_SPACING, np.ones(canvas.shape, np.float32), jitter=0.3))
        at = np.minimum(centres.astype(int), np.array(canvas.shape[::-1]) - 1)
        member = region[at[:, 1], at[:, 0]] == FAT
        bend = 4 * np.stack([canvas.noise(22), canvas.noise(22)])
        points = np.column_stack([column + bend[0][near], row + bend[1][near]])
        distance, owner = cKDTree(centres).query(points, k=2)
        gap = np.linalg.norm(centres[owner[:, 0]] - centres[owner[:, 1]], axis=1)
        to_edge = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * gap)  # px to the border between the two cells
        to_edge = np.minimum(to_edge, 0.63 * ADIPOCYTE_SPACING - distance[:, 0])  # round corners
        inside = member[owner[:, 0]]
        inside &= ~ducts[near]
        fat[near] = inside
        vacuole[near] = inside * np.clip(to_edge - 0.6, 0, 1)
    fat = ndimage.uniform_filter(fat, 3)
    membrane = np.clip(0.30 + 0.05 * canvas.grain(), 0.05, None)
    canvas.eosin[:] = (canvas.eosin * (1 - fat) + fat * membrane) * (1 - vacuole) + 0.008 * vacuole
    canvas.haematoxylin[:] *= 1 - vacuole
    canvas.maps["collagen"] *= 1 - fat
    canvas.maps["vacuole"] = vacuole
    rim = (fat > 0.5) & (ndimage.uniform_filter(vacuole, 5) < 0.55)
    x, y = canvas.scatter(15.0, rim * 0.5)
    slope_y, slope_x = np.gradient(ndimage.uniform_filter(vacuole[::3, ::3], 3))
    at_x, at_y = x.astype(int) // 3, y.astype(int) // 3
    n = len(x)
    canvas.stamp(
        "fibroblast",
        _Nuclei(
            x,
            y,
            rng.uniform(3.5, 5.0, n),
            rng.uniform(1.3, 1.8, n),
            np.arctan2(slope_y, slope_x)[at_y, at_x] + np.pi / 2,
            rng.uniform(0.6, 0.9, n),
        ),
    )
    return fat > 0.5


def _cells(
    canvas: _Canvas,
    depth: np.ndarray,
    region: np.ndarray,
    direction: np.ndarray,
    nests: np.ndarray,
    free: np.ndarray,
) -> None:
    """Nuclei outside ducts and fat: tumour cells, lymphocytes, fibroblasts, none upon another."""
    rng = canvas.rng
    free = free & (depth > 4)
    # densities vary inside a region too: what is drawn, not the region's name, carries the expression
    packing = np.clip(0.72 + 0.22 * canvas.cloud(110), 0.15, 1.0)
    x, y = canvas.scatter(12.5, packing * (nests & free))
    n = len(x)
    size = rng.lognormal(np.log(4.9), 0.20, n).clip(3.0, 8.5)
    ratio = rng.uniform(0.66, 0.98, n)
    canvas.stamp(
        "tumour",
        _Nuclei(
            x,
            y,
            size / ratio**0.5,
            size * ratio**0.5,
            rng.uniform(0, np.pi, n),
            rng.lognormal(np.log(0.62), 0.18, n),
            irregular=0.07,
            nucleolus=0.35,
        ),
    )
    placed = np.column_stack([x, y])

    infiltrate = 0.30 * np.clip(canvas.cloud(130) - 0.6, 0, 1.2)
    infiltrate[region == FAT] = 0
    x, y = canvas.scatter(8.2, np.where(region == IMMUNE, 0.62 + 0.2 * canvas.cloud(90), infiltrate) * free)
    x, y = _apart(x, y, placed, 7.0)
    n = len(x)
    size = rng.normal(2.9, 0.25, n).clip(2.2, 3.7)
    canvas.stamp(
        "immune",
        _Nuclei(x, y, size * 1.05, size, rng.uniform(0, np.pi, n), rng.normal(0.95, 0.1, n).clip(0.6), 0.03),
    )
    placed = np.vstack([placed, np.column_stack([x, y])])

    stroma = np.isin(region, (STROMA, GLAND)) | (region == FAT) | ((region == TUMOUR) & ~nests)
    density = np.clip(0.42 + 0.25 * canvas.cloud(80), 0.05, 1.0) * (stroma & free)
    x, y = _apart(*canvas.scatter(17.0, density, jitter=0.45), placed, 6.0)
    n = len(x)
    canvas.stamp(
        "fibroblast",
        _Nuclei(
            x,
            y,
            rng.uniform(4.5, 8.0, n),
            rng.uniform(1.3, 2.2, n),
            direction[y.astype(int), x.astype(int)] + rng.normal(0, 0.18, n),
            rng.uniform(0.5, 0.85, n),
            irregular=0.03,
        ),
    )


def _apart(x: np.ndarray, y: np.ndarray, placed: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    if not len(placed) or not len(x):
        return x, y
    nearest = cKDTree(placed).query(np.column_stack([x, y]), distance_upper_bound=distance)[0]
    alone = np.isinf(nearest)
    return x[alone], y[alone]


def _develop(canvas: _Canvas, depth: np.ndarray) -> np.ndarray:
    """From stains to pixels: this section's own stain strengths and hues, light, blur and camera noise."""
    rng = canvas.rng
    tissue = np.clip(depth / 2 + 0.5, 0, 1)
    for drawn in canvas.maps.values():
        drawn *= tissue
    chromatin = np.clip(1 + 0.13 * canvas.grain(), 0.5, 1.5)
    cover = np.clip(canvas.nuclei * 3, 0, 1)
    haematoxylin = canvas.nuclei * chromatin + canvas.haematoxylin * (1 - cover)
    eosin = canvas.eosin * (1 - 0.45 * cover)
    strength = rng.lognormal(0, 0.10, 2)
    hues = np.clip(np.array([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.02, (2, 3)), 0.02, None)
    hues = (hues * strength[:, None] * np.log(10)).astype(np.float32)
    glass = np.array([243.0, 241.0, 243.0]) + rng.normal(0, 1.5, 3)
    light = 1 + 0.005 * canvas.cloud(600)
    grain = 2.0 * rng.standard_normal(canvas.shape, dtype=np.float32)
    blur = rng.uniform(0.45, 0.75)
    haematoxylin, eosin = (
        ndimage.gaussian_filter(np.clip(stain, 0, None) * tissue, blur, truncate=3.0) for stain in (haematoxylin, eosin)
    )
    pixels = np.empty((*canvas.shape, 3), np.float32)
    for channel in range(3):
        density = haematoxylin * hues[0, channel] + eosin * hues[1, channel]
        passed = np.float32(glass[channel]) * light * np.exp(-density)
        noise = grain + 1.2 * rng.standard_normal(canvas.shape, dtype=np.float32)
        pixels[..., channel] = passed + noise
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
