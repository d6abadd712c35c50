"""A picture in, a thumbnail out: a service whose bodies are no JSON."""

import io

from azureml.contrib.services.aml_request import rawhttp
from azureml.contrib.services.aml_response import AMLResponse
from PIL import Image, UnidentifiedImageError

LARGEST = 1024
# A small file may claim to be a picture of gigabytes.
Image.MAX_IMAGE_PIXELS = 50_000_000


def init():
    print("ready to make thumbnails")


@rawhttp
def run(request):
    """Gets the whole request; answers with the status, headers and body it chooses."""
    try:
        size = int(request.args.get("size", 64))
    except ValueError:
        size = 0
    if not 1 <= size <= LARGEST:
        return AMLResponse(f"size is a number from 1 to {LARGEST}", 400)
    try:
        picture = Image.open(io.BytesIO(request.get_data()))
        picture.thumbnail((size, size))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return AMLResponse("the body is no picture that can be read", 415)
    thumbnail = io.BytesIO()
    picture.convert("RGB").save(thumbnail, "PNG")
    return AMLResponse(thumbnail.getvalue(), 200, {"Content-Type": "image/png", "X-Size": f"{picture.width}x{picture.height}"})
