"""Draws sample.png: a quay at dusk, 320 by 200."""

from pathlib import Path

from PIL import Image, ImageDraw

picture = Image.new("RGB", (320, 200))
draw = ImageDraw.Draw(picture)
for y in range(200):
    draw.line([(0, y), (320, y)], fill=(230 - y, 150 - y // 3, 110 + y // 3))
draw.rectangle([0, 150, 320, 200], fill=(40, 60, 90))
draw.rectangle([0, 140, 120, 160], fill=(90, 80, 75))
draw.polygon([(150, 150), (290, 150), (270, 175), (170, 175)], fill=(170, 50, 40))
for place, colour in enumerate([(220, 170, 60), (70, 130, 160), (120, 160, 90)]):
    draw.rectangle([175 + place * 32, 128, 203 + place * 32, 149], fill=colour)
picture.quantize(64).save(Path(__file__).parent / "sample.png", optimize=True)
