"""Screenshots of a report, light and dark, as README shows them: two columns of one page.

    for algo in stlrq lrq clrq; do python train.py --algo $algo --out runs/$algo; done
    python evaluate.py runs/stlrq runs/lrq runs/clrq --report out
    python docs/report_pictures.py out/index.html

They go to docs/images.
"""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1020, 4000
COLUMN, START = 1400, 1820
"""Height of a column; the first is from the top of the page, the second from what was learnt."""


def screenshot(page: Path, theme: str) -> Image.Image:
    """The page as a browser shows it, without its empty end."""
    target = page.with_suffix(f".{theme}.png")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=8000", f"--screenshot={target}"]
    subprocess.run([*command, *size, f"file://{page.resolve()}#{theme}"], check=True, capture_output=True)
    image = Image.open(io.BytesIO(target.read_bytes())).convert("RGB")
    target.unlink()
    return image


def main() -> None:
    """Write docs/images/report-light.png and report-dark.png."""
    page = Path(sys.argv[1])
    for theme in ("light", "dark"):
        image = screenshot(page, theme)
        both = Image.new("RGB", (2 * WIDTH, COLUMN))
        both.paste(image.crop((0, 0, WIDTH, COLUMN)), (0, 0))
        both.paste(image.crop((0, START, WIDTH, START + COLUMN)), (WIDTH, 0))
        small = both.resize((1400, round(1400 * COLUMN / (2 * WIDTH))), Image.Resampling.LANCZOS)
        small.quantize(256, dither=Image.Dither.NONE).save(
            Path(__file__).parent / "images" / f"report-{theme}.png", optimize=True
        )


if __name__ == "__main__":
    main()
