"""The equations written as plainly as possible: pure Python and NumPy, float64, explicit loops, nothing of smalti."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Mapping[str, NDArray[Any]]


# Distributions


def log_softmax(scores: Sequence[float] | Array) -> list[float]:
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [s - top - math.log(total) for s in scores]


def softmax(scores: Sequence[float] | Array) -> list[float]:
    return [math.exp(value) for value in log_softmax(scores)]


def distribution_entropy(probabilities: Sequence[float]) -> float:
    """-Σ p ln p, in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def kl_to_uniform(scores: Sequence[float] | Array) -> float:
    """Σ q ln(q / (1/V))."""
    q = softmax(scores)
    return sum(p * math.log(p * len(q)) for p in q if p > 0)


def marginal_entropy(rows: Array) -> float:
    """Entropy of the mean of the rows' distributions."""
    all_q = [softmax(row) for row in rows]
    mean = [sum(q[v] for q in all_q) / len(all_q) for v in range(rows.shape[1])]
    return distribution_entropy(mean)


def gumbel_softmax(scores: Array, gumbel: Array, temperature: float) -> list[float]:
    return softmax([(s + g) / temperature for s, g in zip(scores, gumbel, strict=True)])


def straight_through_gradient(scores: Array, gumbel: Array, temperature: float, direction: Array) -> list[float]:
    """Gradient of direction · softmax((s + g) / τ) with respect to the scores."""
    p = gumbel_softmax(scores, gumbel, temperature)
    mean = sum(a * b for a, b in zip(p, direction, strict=True))
    return [a * (b - mean) / temperature for a, b in zip(p, direction, strict=True)]


# Losses and metrics


def between_points_on_a_log_scale(places: Sequence[float], heights: Sequence[float], place: float) -> float:
    """The straight line over ln(place) between the two points around it."""
    for k in range(len(places) - 1):
        if places[k] <= place <= places[k + 1]:
            way = (math.log(place) - math.log(places[k])) / (math.log(places[k + 1]) - math.log(places[k]))
            return heights[k] + way * (heights[k + 1] - heights[k])
    raise ValueError(place)


def masked_token_loss(logits: Array, target: NDArray[np.int64], weight: Array) -> tuple[float, float]:
    """-Σ_b Σ_{i∈M} ln p(z_i), and the number of masked patches."""
    nats = count = 0.0
    for b in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            if weight[b, k]:
                nats -= log_softmax(logits[b, k])[int(target[b, k])]
                count += 1
    return nats, count


def soft_cross_entropy(scores_p: Array, scores_q: Array) -> tuple[float, float]:
    """-Σ q ln p, and -Σ q ln q."""
    q, log_p = softmax(scores_q), log_softmax(scores_p)
    return -sum(a * b for a, b in zip(q, log_p, strict=True)), distribution_entropy(q)


def normalised_patch(patch: Array) -> Array:
    """MAE: (x - mean) / √(var + 1e-6), with the unbiased variance."""
    mean = sum(patch) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
    return np.array([(value - mean) / math.sqrt(variance + 1e-6) for value in patch])


def patch_error(predicted: Array, patch: Array, kind: str) -> float:
    errors = [(a - b) ** 2 if kind == "mse" else abs(a - b) for a, b in zip(predicted, patch, strict=True)]
    return sum(errors) / len(errors)


def rank(scores: Sequence[float], target: int) -> int:
    """Place of the target when classes are sorted by falling score."""
    return sorted(range(len(scores)), key=lambda c: -scores[c]).index(target)


def nearest_visible(mask: NDArray[np.bool_], patch: int, width: int) -> int:
    """The visible patch the fewest steps away, the first of several."""
    visible = [n for n in range(len(mask)) if not mask[n]]
    return min(visible, key=lambda n: abs(n // width - patch // width) + abs(n % width - patch % width))


def copying_nats(tokens: Sequence[int], neighbours: Sequence[int], weight: float) -> float:
    """Mean of -ln(λ·1[z = n] + (1-λ) u(z)), u counted on the tokens themselves."""
    nats = 0.0
    for z, n in zip(tokens, neighbours, strict=True):
        nats -= math.log(weight * (z == n) + (1 - weight) * tokens.count(z) / len(tokens))
    return nats / len(tokens)


def logit_laplace_nll(pixel: float, mu: float, log_scale: float, epsilon: float = 0.1) -> float:
    """-ln f(x | μ, b) with f = 1 / (2 b x (1-x)) · exp(-|logit x - μ| / b)."""
    x = (1 - 2 * epsilon) * pixel + epsilon
    b = math.exp(log_scale)
    density = 1 / (2 * b * x * (1 - x)) * math.exp(-abs(math.log(x / (1 - x)) - mu) / b)
    return -math.log(density)


def grey_level_nll(pixel: float, mu: float, log_scale: float, epsilon: float = 0.1) -> float:
    """-ln (F(pixel + half a grey level) - F(pixel - half of one)), F the distribution function of the logit-Laplace."""

    def cumulative(value: float) -> float:
        x = (1 - 2 * epsilon) * value + epsilon
        distance = (math.log(x / (1 - x)) - mu) / math.exp(log_scale)
        return 0.5 * math.exp(distance) if distance < 0 else 1 - 0.5 * math.exp(-distance)

    return -math.log(cumulative(pixel + 0.5 / 255) - cumulative(pixel - 0.5 / 255))


def most_likely_pixel(mu: float, epsilon: float = 0.1) -> float:
    return (1 / (1 + math.exp(-mu)) - epsilon) / (1 - 2 * epsilon)


def reconstruction_loss(likelihood: str, pixel: float, mu: float, log_scale: float) -> float:
    if likelihood == "logit_laplace":
        return logit_laplace_nll(pixel, mu, log_scale)
    error = pixel - most_likely_pixel(mu)
    return error * error if likelihood == "mse" else abs(error)


def entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return distribution_entropy([c / total for c in counts])


def mutual_information_bits(x: Sequence[int], y: Sequence[int]) -> float:
    """Σ p(a, b) log2(p(a, b) / p(a) p(b)) over the pairs that occur."""
    pairs, total = list(zip(x, y, strict=True)), 0.0
    for a, b in set(pairs):
        both, one, other = pairs.count((a, b)), list(x).count(a), list(y).count(b)
        total += both / len(pairs) * math.log2(both * len(pairs) / (one * other))
    return total


def unigram_nats(counts: Sequence[int]) -> list[float]:
    """-ln of each token's share, one added to every count."""
    return [-math.log((count + 1) / (sum(counts) + len(counts))) for count in counts]


def token_rates(
    ids: Sequence[int], mask: Sequence[bool], counts: Sequence[int], *scores: Sequence[float]
) -> list[float]:
    """-ln p of an image's tokens: uniform, unigram, and for each row of scores its softmax where they are masked."""
    prices = unigram_nats(counts)
    rates = [sum(math.log(len(counts)) for _ in ids), sum(prices[z] for z in ids)]
    for row in scores:
        log_p = log_softmax(row)
        rates.append(sum(-log_p[z] if masked else prices[z] for z, masked in zip(ids, mask, strict=True)))
    return rates


def psnr(image: Array, reconstruction: Array) -> float:
    """10 log10(1 / MSE), at most 100."""
    squares = [(a - b) ** 2 for a, b in zip(image.reshape(-1), reconstruction.reshape(-1), strict=True)]
    return 10 * math.log10(1 / max(sum(squares) / len(squares), 1e-10))


# Codebooks


def follow_codebook(
    codes: Array,
    sizes: Array,
    sums: Array,
    unused: NDArray[np.int64],
    points: Array,
    ids: NDArray[np.int64],
    decay: float,
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Codes, sizes, sums and steps without use after one step of moving averages."""
    codes, sizes, sums, unused = codes.copy(), sizes.copy(), sums.copy(), unused.copy()
    for k in range(len(sizes)):
        mine = [point for point, code in zip(points, ids, strict=True) if code == k]
        sizes[k] = decay * sizes[k] + (1 - decay) * len(mine)
        for d in range(sums.shape[1]):
            sums[k, d] = decay * sums[k, d] + (1 - decay) * sum(point[d] for point in mine)
        if mine:
            codes[k] = sums[k] / math.sqrt(sum(value * value for value in sums[k]))
        unused[k] = 0 if mine else unused[k] + 1
    return codes, sizes, sums, unused


def ema_update_means(means: Array, sizes: Array, values: Array, ids: NDArray[np.int64], decay: float) -> Array:
    """The mean of what was assigned to each code: a weighted mean of the old mean and the new values."""
    means = means.copy()
    for k in range(len(sizes)):
        mine = [value for value, code in zip(values, ids, strict=True) if code == k]
        old = decay * sizes[k]
        if mine:
            means[k] = (old * means[k] + (1 - decay) * sum(mine)) / (old + (1 - decay) * len(mine))
    return means


def cosine(one: Array, other: Array) -> float:
    """The cosine of the angle between two vectors."""
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return float(sum(x * y for x, y in zip(one, other, strict=True)) / lengths)


def scalar_codes(levels: Sequence[int]) -> list[tuple[float, ...]]:
    """Every code of finite scalar quantisation, the first number turning fastest."""
    codes: list[tuple[float, ...]] = [()]
    for count in levels:
        values = [(digit - count // 2) / (count // 2) for digit in range(count)]
        codes = [(*code, value) for value in values for code in codes]
    return codes


def feature_points(features: Array, mean: Array, directions: Array) -> Array:
    """Features (positions x D) normalised, without the mean of their position, projected, at unit length."""
    width = features.shape[1]
    points = []
    for position, feature in enumerate(features):
        rest = layer_norm(feature[None], np.ones(width), np.zeros(width), 1e-5)[0] - mean[position]
        point = [sum(float(a) * float(b) for a, b in zip(rest, direction, strict=True)) for direction in directions]
        length = math.sqrt(sum(value**2 for value in point))
        points.append([value / length for value in point])
    return np.array(points)


def feature_projection(images: Array, count: int) -> tuple[Array, Array]:
    """Of the features of images (images x positions x D): the mean of each position once they are normalised, and the
    first `count` principal directions, as rows, of what is left without these means."""
    width = images.shape[2]
    normal = np.stack([layer_norm(features, np.ones(width), np.zeros(width), 1e-5) for features in images])
    mean = np.stack([np.mean([image[position] for image in normal], axis=0) for position in range(normal.shape[1])])
    rest = (normal - mean).reshape(-1, width)
    _, _, directions = np.linalg.svd(rest, full_matrices=False)
    return mean, directions[:count]


def ssim(image: Array, reconstruction: Array) -> float:
    """Wang et al. 2004, eq. 13: mean over channels and positions of an 11 x 11 Gaussian window, σ = 1.5."""
    size = min(11, *image.shape[1:])
    size -= 1 - size % 2
    middle = size // 2
    window = np.array(
        [[math.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * 1.5**2)) for j in range(size)] for i in range(size)]
    )
    window /= window.sum()
    values = []
    for x, y in zip(image, reconstruction, strict=True):
        for top in range(x.shape[0] - size + 1):
            for left in range(x.shape[1] - size + 1):
                a, b = (part[top : top + size, left : left + size] for part in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                above = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
                values.append(above / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return sum(values) / len(values)


# Patches and schedules


def patchify(image: Array, size: int) -> Array:
    """C H W -> N x C·size²: patches row by row; inside a patch channel first, then row, then column."""
    channels, height, width = image.shape
    rows = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            rows.append(
                [image[c, top + y, left + x] for c in range(channels) for y in range(size) for x in range(size)]
            )
    return np.array(rows)


def cosine_schedule(step: int, peak: float, end: float, steps: int, warmup: int) -> float:
    if step < warmup:
        return peak * step / warmup
    if step >= steps:
        return end
    return end + (peak - end) * math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) ** 2


# The Transformer


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    out = np.empty_like(x)
    for i, row in enumerate(x):
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        out[i] = [(value - mean) / math.sqrt(variance + eps) for value in row]
    return out * weight + bias


def gelu(x: Array) -> Array:
    """x Φ(x), exact."""
    return np.array([[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in x])


def attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """softmax(q kᵀ / √d + bias) v of one head, position by position."""
    out = np.zeros((len(q), v.shape[1]))
    bias = np.zeros((len(q), len(k))) if bias is None else bias
    for i in range(len(q)):
        share = softmax([float(q[i] @ k[j]) / math.sqrt(q.shape[1]) + bias[i, j] for j in range(len(k))])
        for j in range(len(k)):
            out[i] += share[j] * v[j]
    return out


def rollout(blocks: Sequence[Array]) -> Array:
    """Attention rollout (Abnar & Zuidema 2020, eq. 1) of blocks of heads x S x S: the residual counts for a half."""
    length = blocks[0].shape[-1]
    joint = np.eye(length)
    for heads in blocks:
        mixed = np.zeros((length, length))
        for row, column in np.ndindex(length, length):
            mean = sum(float(head[row, column]) for head in heads) / len(heads)
            mixed[row, column] = 0.5 * mean + 0.5 * (row == column)
        after = np.zeros((length, length))
        for row, column in np.ndindex(length, length):
            share = [mixed[row, between] / sum(mixed[row]) for between in range(length)]
            after[row, column] = sum(share[between] * joint[between, column] for between in range(length))
        joint = after
    return joint


def principal_components(rows: Array, k: int) -> tuple[Array, Array]:
    """Scores of the first k components by singular vectors, each with its largest loading positive; variance shares."""
    centred = rows - rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    scores = []
    for direction in directions[:k]:
        sign = -1.0 if direction[int(np.argmax(np.abs(direction)))] < 0 else 1.0
        scores.append([sign * float(row @ direction) for row in centred])
    return np.array(scores).T, singular[:k] ** 2 / sum(singular**2)


def patch_mask(masked: NDArray[np.bool_], grid: tuple[int, int], fine: int = 60) -> NDArray[np.bool_]:
    """Which patches are masked by half or more: counted at fine x fine points of each patch."""
    result = np.zeros(grid, np.bool_)
    for row, column in np.ndindex(*grid):
        inside = 0
        for down, right in np.ndindex(fine, fine):
            y = (row + (down + 0.5) / fine) / grid[0] * masked.shape[0]
            x = (column + (right + 0.5) / fine) / grid[1] * masked.shape[1]
            inside += int(masked[int(y), int(x)])
        result[row, column] = 2 * inside >= fine * fine
    return result.reshape(-1)


def multi_head_attention(
    x: Array, weights: Weights, prefix: str, heads: int, grid: tuple[int, int] = (0, 0), table: Array | None = None
) -> Array:
    """A table of the layer's own goes before one that it is given; without a joint bias, keys have none."""
    width = x.shape[1]
    size = width // heads
    bias = weights.get(f"{prefix}.qkv.bias")
    if bias is None:
        bias = np.concatenate([weights[f"{prefix}.q_bias"], np.zeros(width), weights[f"{prefix}.v_bias"]])
    joint = x @ weights[f"{prefix}.qkv.weight"].T + bias
    q, k, v = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
    columns = [slice(h * size, (h + 1) * size) for h in range(heads)]
    table = weights.get(f"{prefix}.relative_position_bias_table", table)
    biases = [None] * heads if table is None else [relative_bias(table[:, h], grid, len(x)) for h in range(heads)]
    mixed = np.concatenate(
        [attention(q[:, c], k[:, c], v[:, c], b) for c, b in zip(columns, biases, strict=True)], axis=1
    )
    return mixed @ weights[f"{prefix}.proj.weight"].T + weights[f"{prefix}.proj.bias"]


def relative_bias(rows: Array, grid: tuple[int, int], length: int) -> Array:
    return np.array([[rows[relative_row(grid, i, j)] for j in range(length)] for i in range(length)])


def feed_forward(x: Array, weights: Weights, prefix: str) -> Array:
    hidden = gelu(x @ weights[f"{prefix}.fc1.weight"].T + weights[f"{prefix}.fc1.bias"])
    return hidden @ weights[f"{prefix}.fc2.weight"].T + weights[f"{prefix}.fc2.bias"]


def embed(weights: Weights, image: Array, size: int, mean: float = 0.5, std: float = 0.5) -> Array:
    """One image in [0, 1], C H W -> N x D."""
    kernel = weights["patch_embed.proj.weight"]
    flat = kernel.reshape(len(kernel), -1)
    return patchify((image - mean) / std, size) @ flat.T + weights["patch_embed.proj.bias"]


def transformer_block(
    x: Array,
    weights: Weights,
    block: str,
    heads: int,
    keep: Sequence[float] | Array = (1.0, 1.0),
    grid: tuple[int, int] = (0, 0),
    table: Array | None = None,
) -> Array:
    """One block of the backbone, its branches scaled by `keep`."""
    first, second = keep[0] * weights.get(f"{block}.gamma_1", 1.0), keep[1] * weights.get(f"{block}.gamma_2", 1.0)
    normed = layer_norm(x, weights[f"{block}.norm1.weight"], weights[f"{block}.norm1.bias"])
    x = x + first * multi_head_attention(normed, weights, f"{block}.attn", heads, grid, table)
    normed = layer_norm(x, weights[f"{block}.norm2.weight"], weights[f"{block}.norm2.bias"])
    return x + second * feed_forward(normed, weights, f"{block}.mlp")


def encode(
    weights: Weights,
    tokens: Array,
    *,
    heads: int,
    depth: int,
    keep: Array | None = None,
    grid: tuple[int, int] = (0, 0),
) -> tuple[Array, Array, list[Array]]:
    """N x D -> [S], patches (both normed), and the output of every block (not normed)."""
    x = np.concatenate([weights["cls_token"][0], tokens])
    if "pos_embed" in weights:
        x = x + weights["pos_embed"][0]
    table = weights.get("rel_pos_bias.relative_position_bias_table")
    layers = []
    for i in range(depth):
        x = transformer_block(x, weights, f"blocks.{i}", heads, (1.0, 1.0) if keep is None else keep[i], grid, table)
        layers.append(x)
    x = layer_norm(x, weights["norm.weight"], weights["norm.bias"])
    return x[0], x[1:], layers


def mim_logits(weights: Weights, image: Array, mask: NDArray[np.bool_], *, size: int, heads: int, depth: int) -> Array:
    """Scores of every visual token at every patch (N x V) of an image whose `mask` patches are masked."""
    backbone = {name.removeprefix("backbone."): value for name, value in weights.items()}
    tokens = embed(backbone, image, size)
    for i in range(len(tokens)):
        if mask[i]:
            tokens[i] = weights["mask_token"][0, 0]
    _, patches, _ = encode(backbone, tokens, heads=heads, depth=depth)
    return patches @ weights["head.weight"].T + weights["head.bias"]


def aggregated_logits(
    weights: Weights,
    image: Array,
    mask: NDArray[np.bool_],
    *,
    heads: int,
    depth: int,
    layer: int,
    keep: Sequence[Array],
    shallow_keep: Sequence[Array],
    grid: tuple[int, int],
) -> Array:
    """Scores at every patch of 4 pixels (N x V), as shallow blocks predict them from [S] and the patches of `layer`."""
    backbone = {name.removeprefix("backbone."): value for name, value in weights.items()}
    table = backbone.get("rel_pos_bias.relative_position_bias_table")
    tokens = embed(backbone, image, 4)
    tokens[mask] = weights["mask_token"][0, 0]
    _, _, layers = encode(backbone, tokens, heads=heads, depth=depth, keep=np.stack(keep), grid=grid)
    x = np.concatenate([layers[-1][:1], layers[layer - 1][1:]])
    for i, factors in enumerate(shallow_keep):
        x = transformer_block(x, weights, f"aggregation.blocks.{i}", heads, factors, grid, table)
    normed = layer_norm(x, backbone["norm.weight"], backbone["norm.bias"])
    return normed[1:] @ weights["head.weight"].T + weights["head.bias"]


def mim_loss(
    weights: Weights,
    images: Array,
    masks: NDArray[np.bool_],
    ids: NDArray[np.int64],
    *,
    size: int,
    heads: int,
    depth: int,
) -> float:
    """-1/Σ|M| Σ_x Σ_{i∈M} ln p(z_i | x^M)."""
    nats = count = 0.0
    for image, mask, tokens in zip(images, masks, ids, strict=True):
        logits = mim_logits(weights, image, mask, size=size, heads=heads, depth=depth)
        for i in np.flatnonzero(mask):
            nats -= log_softmax(logits[i])[int(tokens[i])]
            count += 1
    return nats / count


# Positions


def relative_row(grid: tuple[int, int], query: int, key: int) -> int:
    """Row of the bias table: the rank of the offset among all offsets in reading order, then the rows of [S]."""
    offsets = [(y, x) for y in range(1 - grid[0], grid[0]) for x in range(1 - grid[1], grid[1])]
    if query == 0 or key == 0:
        return len(offsets) + (2 if query == key else 0 if query == 0 else 1)
    (y, x), (v, u) = (divmod(place - 1, grid[1]) for place in (query, key))
    return offsets.index((y - v, x - u))


def geometric_places(num: int, reach: int) -> list[float]:
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q**k for k in range(num)) > reach:
            high = q
        else:
            low = q
    return [sum(((low + high) / 2) ** k for k in range(i + 1)) for i in range(num)]


def cubic_spline(places: Sequence[float], values: Array, x: float) -> Array:
    """Not-a-knot spline by its coefficients: n-1 cubics, one equation for every condition."""
    n = len(places)
    x = min(max(x, places[0]), places[-1])
    if n <= 3:  # the polynomial through all points, by Lagrange
        return sum(
            values[i] * math.prod((x - places[j]) / (places[i] - places[j]) for j in range(n) if j != i)
            for i in range(n)
        )
    rows: list[Array] = []
    right: list[Array] = []

    def derivative(piece: int, at: float, order: int) -> Array:
        row = np.zeros(4 * (n - 1))
        for power in range(order, 4):
            row[4 * piece + power] = math.perm(power, order) * (at - places[piece]) ** (power - order)
        return row

    for piece in range(n - 1):
        rows += [derivative(piece, places[piece], 0), derivative(piece, places[piece + 1], 0)]
        right += [values[piece], values[piece + 1]]
    for piece in range(n - 2):
        orders = (1, 2, 3) if piece in (0, n - 3) else (1, 2)
        for order in orders:
            rows.append(derivative(piece, places[piece + 1], order) - derivative(piece + 1, places[piece + 1], order))
            right.append(np.zeros_like(values[0]))
    coefficients = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    piece = max(i for i in range(n - 1) if places[i] <= x or i == 0)
    return derivative(piece, x, 0) @ coefficients


def resize_table(table: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """Columns first, then rows, one number at a time."""
    body = table[:-3].reshape(2 * old[0] - 1, 2 * old[1] - 1, -1)
    for axis in (1, 0):
        if old[axis] != new[axis]:
            half = geometric_places(old[axis] - 1, new[axis] - 1)
            places = [-place for place in reversed(half)] + [0.0, *half]
            lines = np.moveaxis(body, axis, 0)
            flat = lines.reshape(len(lines), -1)
            stretched = np.array([cubic_spline(places, flat, float(x)) for x in range(1 - new[axis], new[axis])])
            body = np.moveaxis(stretched.reshape(-1, *lines.shape[1:]), 0, axis)
    return np.concatenate([body.reshape(-1, table.shape[1]), table[-3:]])


def bicubic(table: Array, size: tuple[int, int]) -> Array:
    """h w D -> size: cubic convolution (a = -3/4) at the centres of the new cells, borders repeated (Keys 1981)."""

    def weight(distance: float) -> float:
        a, d = -0.75, abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    for axis in (0, 1):
        lines = np.moveaxis(table, axis, 0)
        stretched = []
        for i in range(size[axis]):
            x = (i + 0.5) * len(lines) / size[axis] - 0.5
            near = range(math.floor(x) - 1, math.floor(x) + 3)
            stretched.append(sum(weight(x - j) * lines[min(max(j, 0), len(lines) - 1)] for j in near))
        table = np.moveaxis(np.array(stretched), 0, axis)
    return table


# Random numbers, in Python's unbounded integers


def splitmix64(*counters: int) -> int:
    """The key that names the counters."""
    key = 0
    for counter in counters:
        x = ((key ^ (counter % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        key = x ^ (x >> 31)
    return key


def lowbias32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def uniform_noise(key: int, num: int, stream: int = 0) -> list[float]:
    start, stride = key % 2**32 + 0x9E3779B9 * stream, (key >> 32) % 2**32 | 1
    return [((lowbias32((n + start) * stride % 2**32) >> 9) + 0.5) / 2**23 for n in range(num)]


# Blocks of patches


def blockwise_mask(
    draw: Callable[[int], Sequence[float]],
    grid: tuple[int, int],
    count: int,
    least: int,
    min_aspect: float,
    by_column: bool,
) -> NDArray[np.bool_]:
    """Blockwise masking of one image; `draw(n)` gives the four uniform draws of the n-th block."""
    height, width = grid
    mask = np.zeros(grid, dtype=np.bool_)
    for number in range(100):
        u = draw(number)
        missing = count - int(mask.sum())
        if missing == 0:
            break
        area = least + u[0] * max(missing - least, 0)
        aspect = math.exp((1 - 2 * u[1]) * math.log(min_aspect))
        a, b = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
        if (a >= height and height > 1) or (b >= width and width > 1) or a > height or b > width:
            continue
        top, left = math.floor(u[2] * (height - a + 1)), math.floor(u[3] * (width - b + 1))
        _hide_cells(mask, [(i, j) for i in range(top, top + a) for j in range(left, left + b)], missing, by_column)
    _hide_cells(mask, list(np.ndindex(grid)), count - int(mask.sum()), by_column)
    return mask.reshape(-1)


def _hide_cells(mask: NDArray[np.bool_], cells: list[tuple[int, ...]], most: int, by_column: bool) -> None:
    new = [cell for cell in cells if not mask[cell]]
    if by_column:
        new.sort(key=lambda cell: (cell[1], cell[0]))
    for cell in new[:most]:
        mask[cell] = True


def release_mask(
    draw: Callable[[int], Sequence[float]],
    grid: tuple[int, int],
    count: int,
    least: int,
    min_aspect: float,
    spare: tuple[int, int],
) -> NDArray[np.bool_]:
    """The released code's mask of one image; `draw(n)` gives the four uniform draws of the n-th try.

    `spare` is the patch to mask where all else has failed.
    """
    mask = np.zeros(grid, dtype=np.bool_)
    tries, number = 0, 0
    while tries < 10 and mask.sum() < count:
        u, left = draw(number), count - int(mask.sum())
        number, tries = number + 1, tries + 1
        area = least + u[0] * (left - least)
        aspect = math.exp((1 - 2 * u[1]) * math.log(min_aspect))
        cells = _cells(grid, area, aspect, u[2], u[3])
        spans = any(len({cell[axis] for cell in cells}) == grid[axis] > 1 for axis in (0, 1))
        new = [cell for cell in cells if not mask[cell]]
        if not spans and 1 <= len(new) <= left:
            _hide_cells(mask, new, len(new), False)
            tries = 0
    if not mask.any():
        mask[spare] = True
    return mask.reshape(-1)


def algorithm1_mask(
    draw: Callable[[int], Sequence[float]],
    grid: tuple[int, int],
    target: float,
    fewest: int,
    least: int,
    min_aspect: float,
) -> NDArray[np.bool_]:
    """Algorithm 1 for one image, until at least `fewest` are masked; `draw(n)` gives the draws of the n-th block."""
    mask = np.zeros(grid, dtype=np.bool_)
    for number in range(100):
        if mask.sum() >= fewest:
            break
        u = draw(number)
        area = least + u[0] * (target - int(mask.sum()) - least)
        aspect = min_aspect + u[1] * (1 / min_aspect - min_aspect)
        new = [cell for cell in _cells(grid, area, aspect, u[2], u[3]) if not mask[cell]]
        if mask.sum() + len(new) < mask.size:
            _hide_cells(mask, new, len(new), False)
    _hide_cells(mask, list(np.ndindex(grid)), max(fewest - int(mask.sum()), 0), False)
    return mask.reshape(-1)


def _cells(grid: tuple[int, int], area: float, aspect: float, down: float, right: float) -> list[tuple[int, ...]]:
    """The patches of a block, none where it is larger than the grid; `down` and `right` in [0, 1) place it."""
    a, b = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
    if a > grid[0] or b > grid[1]:
        return []
    top, left = math.floor(down * (grid[0] - a + 1)), math.floor(right * (grid[1] - b + 1))
    return [(i, j) for i in range(top, top + a) for j in range(left, left + b)]


def component_sizes(mask: NDArray[np.bool_], grid: tuple[int, int]) -> list[int]:
    """Sizes of the pieces of one mask, by walking through each from its first patch."""
    left = {(n // grid[1], n % grid[1]) for n in np.flatnonzero(mask).tolist()}
    sizes = []
    while left:
        walk, size = [min(left)], 0
        left.discard(walk[0])
        while walk:
            i, j = walk.pop()
            size += 1
            near = {(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)} & left
            walk.extend(near)
            left -= near
        sizes.append(size)
    return sizes


def block_sides(grid: tuple[int, int], least: int, most: int, min_aspect: float, steps: int = 400) -> Array:
    """P(height, width) of a block that fits, its area uniform from `least` to `most`, its log aspect uniform."""
    share = np.zeros(grid)
    for i in range(steps):
        area = least + (i + 0.5) / steps * (most - least)
        for j in range(steps):
            aspect = min_aspect ** (1 - 2 * (j + 0.5) / steps)
            a, b = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if a < grid[0] and b < grid[1]:
                share[a, b] += 1
    return share / share.sum()


# Classifiers


def knn_class(train: Array, labels: NDArray[np.int64], query: Array, k: int = 20, temperature: float = 0.07) -> int:
    """The class with most votes among the k training rows of highest cosine, features standardised."""
    mean = train.mean(axis=0)
    std = np.sqrt(((train - mean) ** 2).sum(axis=0) / (len(train) - 1))

    def unit(row: Array) -> Array:
        scaled: Array = (row - mean) / std
        return scaled / np.linalg.norm(scaled)

    cosines = sorted(((float(unit(row) @ unit(query)), int(label)) for row, label in zip(train, labels, strict=True)))
    votes: dict[int, float] = {}
    for cosine, label in cosines[::-1][:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
    return max(votes, key=lambda label: votes[label])


def regression_gradient(
    x: Array, labels: NDArray[np.int64], weight: Array, bias: Array, l2: float
) -> tuple[Array, Array]:
    """Gradient of mean cross-entropy + l2/2 ‖W‖² of multinomial logistic regression."""
    d_weight, d_bias = l2 * weight, np.zeros_like(bias)
    for row, label in zip(x, labels, strict=True):
        error = np.array(softmax(row @ weight + bias))
        error[label] -= 1
        d_weight = d_weight + np.outer(row, error) / len(x)
        d_bias = d_bias + error / len(x)
    return d_weight, d_bias


def class_loss(scores: Array, shares: Array, smoothing: float) -> float:
    """Mean cross-entropy of images against smoothed shares of the classes, in nats."""
    total = 0.0
    for row, share in zip(scores, shares, strict=True):
        log_p = row - np.log(np.exp(row).sum())
        total -= sum(((1 - smoothing) * s + smoothing / len(row)) * p for s, p in zip(share, log_p, strict=True))
    return total / len(scores)


def mixed_pair(image: Array, other: Array, kept: Array) -> Array:
    """Pixel by pixel, so much of the image as `kept` says and the rest of the other one: C H W, and H W."""
    result = np.empty_like(image)
    for row, column in np.ndindex(*image.shape[1:]):
        share = kept[row, column]
        result[:, row, column] = share * image[:, row, column] + (1 - share) * other[:, row, column]
    return result


def label_loss(scores: Array, target: Array, smoothing: float) -> float:
    """Mean binary cross-entropy over images and labels, in nats."""
    total = 0.0
    for row, column in np.ndindex(*scores.shape):
        p, t = 1 / (1 + math.exp(-scores[row, column])), (1 - smoothing) * float(target[row, column]) + smoothing / 2
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total / scores.size


def average_precision(scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """The mean over relevant images of the precision among all that score at least as high."""
    precisions = []
    for score, is_relevant in zip(scores, relevant, strict=True):
        if is_relevant:
            among = [r for s, r in zip(scores, relevant, strict=True) if s >= score]
            precisions.append(sum(among) / len(among))
    return sum(precisions) / len(precisions)


def student_mass(freedom: int, end: float | None, steps: int = 200_000) -> float:
    """Integral of (1 + t²/ν)^(-(ν+1)/2) from 0 to `end`, or to infinity, by the midpoint rule with t = √ν tan θ."""
    last = math.pi / 2 if end is None else math.atan(end / math.sqrt(freedom))
    angles = (np.arange(steps) + 0.5) * last / steps
    return float(np.sum(np.cos(angles) ** (freedom - 1)) * last / steps)


# Segmentation


def pixel_loss(scores: Array, label_map: NDArray[np.integer], void: int) -> tuple[float, int]:
    """-Σ ln p(class of pixel) over B classes H W and B H W, and over how many pixels."""
    total, count = 0.0, 0
    for b, row, column in np.ndindex(*label_map.shape):
        if label_map[b, row, column] != void:
            total -= log_softmax(scores[b, :, row, column])[label_map[b, row, column]]
            count += 1
    return total, count


def class_overlap(predicted: Sequence[int], truth: Sequence[int], number: int, void: int) -> float | None:
    """Pixels that are of a class and are said to be, by pixels of which either is so; None where there are none."""
    pairs = [(p, t) for p, t in zip(predicted, truth, strict=True) if t != void]
    both = sum(p == number and t == number for p, t in pairs)
    either = sum(number in (p, t) for p, t in pairs)
    return both / either if either else None


def nearest(label_map: NDArray[np.integer], box: Sequence[float], flip: bool, size: tuple[int, int]) -> NDArray[Any]:
    """The value of the pixel that the centre of each pixel of a crop lies in."""
    height, width = label_map.shape
    result = np.empty(size, label_map.dtype)
    for row, column in np.ndindex(*size):
        across = size[1] - 1 - column if flip else column
        y = (box[0] + (row + 0.5) / size[0] * box[2]) * height
        x = (box[1] + (across + 0.5) / size[1] * box[3]) * width
        result[row, column] = label_map[min(int(y), height - 1), min(int(x), width - 1)]
    return result


def sincos(grid: tuple[int, int], dim: int) -> Array:
    """sin and cos of row, then of column, at dim/4 frequencies from 2 radians a patch down to 1/50 (N x dim)."""
    frequencies = [2.0 * 100.0 ** (-i / (dim // 4)) for i in range(dim // 4)]
    rows = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            waves = [[wave(place * f) for f in frequencies] for place in (row, column) for wave in (math.sin, math.cos)]
            rows.append([value for pair in waves for value in pair])
    return np.array(rows)


def cross_attention_logits(
    weights: Weights,
    image: Array,
    mask: NDArray[np.bool_],
    *,
    size: int,
    heads: int,
    depth: int,
    grid: tuple[int, int],
    decoder_heads: int,
    decoder_depth: int,
) -> Array:
    """Scores at every masked patch, in rising order (K x V): the encoder sees [S] and the visible patches alone."""
    backbone = {name.removeprefix("backbone."): value for name, value in weights.items()}
    if "pos_embed" in backbone:  # without what is not seen
        seen = np.concatenate([[True], ~mask])
        backbone["pos_embed"] = backbone["pos_embed"][:, seen]
    cls, patches, layers = encode(backbone, embed(backbone, image, size)[~mask], heads=heads, depth=depth)
    own = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
    width = own["mask_token"].shape[-1]
    positions = sincos(grid, width)
    where = np.concatenate([np.zeros((1, width)), positions[~mask]])
    x = own["mask_token"][0] + positions[mask]
    for i in range(decoder_depth):
        source = np.concatenate([cls[None], patches])
        if "layer_weights" in own:
            source = sum(w * layer for w, layer in zip(own["layer_weights"][i], layers, strict=True))
        projected = source @ own["proj.weight"].T + own["proj.bias"] + where
        memory = layer_norm(projected, own["memory_norm.weight"], own["memory_norm.bias"])
        block = f"blocks.{i}"
        normed = layer_norm(x, own[f"{block}.norm1.weight"], own[f"{block}.norm1.bias"])
        q = normed @ own[f"{block}.attn.q.weight"].T + own[f"{block}.attn.q.bias"]
        k, v = np.split(memory @ own[f"{block}.attn.kv.weight"].T + own[f"{block}.attn.kv.bias"], 2, axis=1)
        columns = [slice(h * width // decoder_heads, (h + 1) * width // decoder_heads) for h in range(decoder_heads)]
        mixed = np.concatenate([attention(q[:, c], k[:, c], v[:, c]) for c in columns], axis=1)
        x = x + mixed @ own[f"{block}.attn.proj.weight"].T + own[f"{block}.attn.proj.bias"]
        normed = layer_norm(x, own[f"{block}.norm2.weight"], own[f"{block}.norm2.bias"])
        x = x + feed_forward(normed, own, f"{block}.mlp")
    x = layer_norm(x, own["norm.weight"], own["norm.bias"])
    return x @ weights["head.weight"].T + weights["head.bias"]
