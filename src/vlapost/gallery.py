"""Contact sheets of the benchmark: `python -m vlapost.gallery [key=value ...]`, or `make gallery`.

Writes to lightning_logs/gallery: setups-<pack>.jpg, five episodes of every setup as the policy sees them at the start
(the last two of the reposition setup after the object was moved), and assets-<pack>.jpg, every body, table and texture.
docs/img holds those of the generated packs.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlapost import cli, config
from vlapost.config import ROOT, Config
from vlapost.disk import whole

if TYPE_CHECKING:
    from vlapost.assets.gallery import Picture

EPISODES = 5
TILE = (120, 160)  # height, width in pixels
LINE, LETTERS = 12, 32  # pixels of a line of text, letters that fit into it above a picture
QUALITY = 80  # of the JPEG files


def run(words: list[str]) -> None:
    """Draw both sheets."""
    c = config.load(*cli.parse(words, "base"))
    from vlapost.assets.gallery import contact_sheet
    from vlapost.assets.pack import open_pack

    for name, sheet in (("setups", setups_sheet(c)), ("assets", contact_sheet(open_pack(c.env.assets)))):
        write(ROOT / f"lightning_logs/gallery/{name}-{c.env.assets}.jpg", sheet)


def setups_sheet(c: Config) -> Picture:
    """Rows of `EPISODES` pictures, one per setup, with the sentence above each: `[H, W, 3]` RGB."""
    import cv2
    import numpy as np
    import torch

    from vlapost.envs.episodes import held_out
    from vlapost.envs.setups import evaluated
    from vlapost.envs.vector import make_env

    rows = []
    for setup in evaluated(c.env.assets).values():
        where = replace(c.env, id=setup.env_id, obj_set=setup.obj_set, backend="cpu")
        settings = replace(where, image_size=[480, 640], shader="default")
        env = make_env(settings, 1)
        tiles = []
        for number, id_ in enumerate(held_out(setup.env_id, setup.obj_set, c.env.protocol)[:EPISODES]):
            observation = env.reset(id_[None])
            if env.scenes[0].setup.reposition and number >= EPISODES - 2:
                for _ in range(2 * env.scenes[0].setup.reposition):
                    observation = env.step(torch.tensor([[0.0] * 6 + [1.0]])).observation
            picture = cv2.resize(observation.image[0].numpy(), TILE[::-1], interpolation=cv2.INTER_AREA)
            tiles.append(np.concatenate([_text(observation.instruction[0], TILE[1], lines=2), picture]))
        env.close()
        line = np.concatenate(tiles, axis=1)
        rows += [_text(setup.title, line.shape[1], scale=0.45), line]
    return np.concatenate(rows)


def _text(words: str, width: int, lines: int = 1, scale: float = 0.28) -> Picture:
    import cv2
    import numpy as np

    paper = np.full((LINE * lines + 4, width, 3), 255, np.uint8)
    plain = words.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")  # OpenCV writes ASCII alone
    for number, line in enumerate(textwrap.wrap(plain, LETTERS)[:lines]):
        place = (2, LINE * (number + 1) - 1)
        cv2.putText(paper, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return paper


def write(path: Path, picture: Picture) -> None:
    """Write `[H, W, 3]` RGB as JPEG; the file appears under its name when it is complete."""
    from PIL import Image

    with whole(path) as partial:
        Image.fromarray(picture).save(partial, quality=QUALITY)
    cli.console.print(f"Wrote {path}.", soft_wrap=True)


if __name__ == "__main__":
    cli.main(run)
