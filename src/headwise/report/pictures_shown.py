"""Pictures of users: opened, and as a page holds them."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.errors import FileError, HeadwiseError

if TYPE_CHECKING:
    import torch


def opened_picture(file: Path) -> Any:
    """The picture in a file, in colours. FileError for what is none."""
    if find_spec("PIL") is None:
        raise HeadwiseError("--image needs Pillow, which is not installed; pip install 'headwise[lens]'")
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(f"{file} is no picture that can be read ({error}); give a PNG or JPEG file") from None


def as_shown(seen: torch.Tensor) -> str:
    """A picture of bytes [height, width, 3] as a page holds it."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(seen.numpy()).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
