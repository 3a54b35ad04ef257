"""Values in tiles: what the document's picture says of every byte, and back again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq_deploy.model.tiles import tile_codes, tile_floats, tile_patches, untile_codes, untile_floats, untile_patches

SIZES = st.integers(1, 70)


@given(batch=st.integers(1, 3), tokens=SIZES, width=SIZES)
def test_every_code_lies_where_the_picture_says(batch: int, tokens: int, width: int) -> None:
    codes = np.random.default_rng(tokens).integers(0, 256, (batch, tokens, width)).astype(np.uint8)
    tiled = tile_codes(codes)
    t, k = np.meshgrid(np.arange(tokens), np.arange(width), indexing="ij")

    assert tiled.shape == (batch, -(-tokens // 16), 16 * -(-width // 64), 64)
    np.testing.assert_array_equal(tiled[:, t // 16, k // 4, 4 * (t % 16) + k % 4], codes)
    np.testing.assert_array_equal(untile_codes(tiled, tokens, width), codes)


@given(batch=st.integers(1, 3), tokens=SIZES, channels=SIZES)
def test_every_float_lies_where_the_picture_says(batch: int, tokens: int, channels: int) -> None:
    values = np.random.default_rng(tokens).standard_normal((batch, tokens, channels)).astype(np.float32)
    tiled = tile_floats(values)
    t, c = np.meshgrid(np.arange(tokens), np.arange(channels), indexing="ij")

    assert tiled.shape == (batch, -(-tokens // 16), 16 * -(-channels // 16), 16)
    np.testing.assert_array_equal(tiled[:, t // 16, c, t % 16], values)
    np.testing.assert_array_equal(untile_floats(tiled, tokens, channels), values)


@pytest.mark.parametrize(
    ("channels", "patch", "first", "parts"), [(3, 4, 2, 3), (3, 4, 0, 1), (1, 8, 1, 1), (4, 2, 5, 2)]
)
def test_patches_begin_at_their_token_and_parts_at_whole_blocks(
    channels: int, patch: int, first: int, parts: int
) -> None:
    size, side = 16, 16 // patch
    codes = np.random.default_rng(0).integers(0, 256, (2, channels, size, size)).astype(np.uint8)
    tiled = tile_patches(codes, patch, first, parts, zero=7)
    width = channels // parts * patch**2
    rows = untile_codes(tiled, first + side**2, parts * 64 * -(-width // 64))

    assert (rows[:, :first] == 7).all()
    for token in (0, side, side**2 - 1):
        y, x = token // side * patch, token % side * patch
        pixels = codes[:, :, y : y + patch, x : x + patch].reshape(2, parts, width)
        for part in range(parts):
            begin = part * 64 * -(-width // 64)
            np.testing.assert_array_equal(rows[:, first + token, begin : begin + width], pixels[:, part])
    np.testing.assert_array_equal(untile_patches(tiled, (channels, size, size), patch, first, parts), codes)
