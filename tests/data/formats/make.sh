#!/bin/sh
# Writes the files in this folder again, by programs that people have. Needs ImageMagick, GraphicsMagick, the tools of
# libtiff and libvips, and a Python with tifffile, SimpleITK and rasterio, none of which but tifffile Maskwell needs:
# sh tests/data/formats/make.sh
set -eu
out=$(cd "$(dirname "$0")" && pwd)
cd "$(mktemp -d)"

python3 - <<'PYTHON'
import numpy as np
import tifffile

grey = (np.add.outer(np.arange(24), np.arange(40)) * 4).astype(np.uint8)
rgb = np.dstack([grey, grey[::-1], grey[:, ::-1]])
tifffile.imwrite("grey.tif", grey, photometric="minisblack", metadata=None)
tifffile.imwrite("grey16.tif", grey.astype(np.uint16) * 200 + 7, photometric="minisblack", metadata=None)
tifffile.imwrite("rgb.tif", rgb, photometric="rgb", metadata=None)
tifffile.imwrite("bits.tif", grey > 60, photometric="minisblack", metadata=None)
PYTHON

convert rgb.tif -interlace PNG -strip "$out/imagemagick-interlaced.png"
convert grey16.tif -interlace PNG -strip "$out/imagemagick-interlaced-16.png"
convert grey.tif -depth 4 -strip "$out/imagemagick-4-bit.png"
convert grey.tif -compress RLE -colors 256 "$out/imagemagick-rle.bmp"
convert grey16.tif -compress Zip "$out/imagemagick-zip.tif"
convert bits.tif -monochrome -compress Fax "$out/imagemagick-fax.tif"
convert grey16.tif \( grey16.tif -flip \) -compress Zip "$out/imagemagick-two-pages.tif"
convert rgb.tif -colorspace CMYK -compress Zip "$out/imagemagick-cmyk.tif"
gm convert rgb.tif -compress LZW "$out/graphicsmagick-lzw.tif"

tiffcp -c lzw:2 -t -w 16 -l 16 grey16.tif "$out/libtiff-tiles.tif"
tiffcp -8 -B -c zip grey16.tif "$out/libtiff-big.tif"
tiffcp -p separate -c packbits rgb.tif "$out/libtiff-separate.tif"
tiffcp -c g3:2d bits.tif "$out/libtiff-g3.tif"

tiles="--tile --tile-width 16 --tile-height 16 --pyramid --compression deflate --region-shrink nearest"
vips tiffsave grey16.tif "$out/vips.tif" --compression deflate --xres 2000 --yres 2000 --resunit cm
vips tiffsave grey16.tif "$out/vips-pyramid.tif" $tiles
vips tiffsave grey16.tif "$out/vips-pyramid-below.tif" $tiles --subifd
vips pngsave rgb.tif "$out/vips.png" --interlace

OUT=$out python3 - <<'PYTHON'
import os

import numpy as np
import rasterio
import SimpleITK
import tifffile
from rasterio.enums import Resampling
from rasterio.transform import from_origin

out = os.environ["OUT"]
grey = tifffile.imread("grey16.tif")
stack = np.stack([grey, grey[::-1], grey[:, ::-1]])

SimpleITK.WriteImage(SimpleITK.GetImageFromArray(grey), f"{out}/simpleitk.png")
SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stack), f"{out}/simpleitk-volume.tif", True, compressor="Deflate")
floats = SimpleITK.GetImageFromArray(grey.astype(np.float32))
SimpleITK.WriteImage(floats, f"{out}/simpleitk-float.tif", True, compressor="Deflate")

where = {"driver": "GTiff", "height": 24, "width": 40, "transform": from_origin(5, 5, 1, 1)}
for layout in ("pixel", "band"):
    channels = {"count": 3, "dtype": "uint16", "interleave": layout, "photometric": "minisblack"}
    with rasterio.open(f"{out}/gdal-{layout}.tif", "w", compress="deflate", predictor=2, **channels, **where) as file:
        file.write(stack)
tiles = {"compress": "zstd", "tiled": True, "blockxsize": 16, "blockysize": 16}
with rasterio.open(f"{out}/gdal-overview.tif", "w", count=1, dtype="int16", nodata=-1, **tiles, **where) as file:
    file.write(grey.astype(np.int16), 1)
    file.build_overviews([2], Resampling.nearest)
PYTHON
