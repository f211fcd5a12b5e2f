"""Contact sheet of an asset pack, for a person to look at.

    python -m vlapost.assets.gallery OUT.png [procedural|paper|world|tasks]

Objects and receptacles stand on grey ground as SAPIEN renders them; table pictures and textures follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import sapien
from numpy.typing import NDArray

import vlapost.drivers  # noqa: F401  (chooses the Vulkan driver)
from vlapost.assets.pack import Model, Pack, open_pack
from vlapost.config import UserError

COLUMNS = 7
TILE = (180, 240)  # height, width in pixels
TURN = np.radians(-25)  # of every body about z
Picture = NDArray[np.uint8]


def photograph(models: tuple[Model, ...]) -> list[Picture]:
    """One picture `[180, 240, 3]` RGB per body, from above at an angle, all at the same scale."""
    scene = sapien.Scene()
    scene.set_ambient_light([0.3, 0.3, 0.3])
    scene.add_directional_light([0, 0, -1], [2.2, 2.2, 2.2])
    scene.add_directional_light([-1, -0.5, -1], [0.7, 0.7, 0.7])
    scene.add_directional_light([1, 1, -1], [0.7, 0.7, 0.7])
    camera = scene.add_camera("camera", TILE[1], TILE[0], fovy=0.36, near=0.01, far=10)
    # 0.45 m away along -x, looking down by 50 degrees
    tilt = np.radians(50)
    camera.entity.set_pose(
        sapien.Pose([-0.45 * np.cos(tilt), 0, 0.45 * np.sin(tilt)], [np.cos(tilt / 2), 0, np.sin(tilt / 2), 0])
    )
    pictures = []
    for model in models:
        builder = scene.create_actor_builder()
        builder.add_visual_from_file(str(model.visual))
        actor = builder.build_kinematic(name=model.id)
        turned = sapien.Pose(q=[np.cos(TURN / 2), 0, 0, np.sin(TURN / 2)])
        middle = (np.array(model.bbox_min) + np.array(model.bbox_max)) / 2
        actor.set_pose(turned * sapien.Pose(-middle))
        scene.update_render()
        camera.take_picture()
        colour = camera.get_picture("Color")[..., :3]
        pictures.append(np.clip(colour * 255, 0, 255).astype(np.uint8))
        scene.remove_actor(actor)
    return pictures


def contact_sheet(pack: Pack) -> Picture:
    """All bodies, table pictures and textures of a pack with their ids, `[H, W, 3]` RGB."""
    models = pack.objects + pack.receptacles
    tiles = list(zip([model.id for model in models], photograph(models)))
    tiles += [(table.id, _load(table.image)) for table in pack.tables]
    tiles += [(f"texture {table.texture.name}", _load(table.texture)) for table in pack.tables]
    height, width = TILE
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for number, (label, picture) in enumerate(tiles):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        tile = np.ascontiguousarray(picture)
        cv2.putText(tile, label, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 0, 0), 1, cv2.LINE_AA)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _load(path: Path) -> Picture:
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(picture, TILE[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)


def main(words: list[str]) -> None:
    """Entry point."""
    if len(words) not in (1, 2):
        raise UserError("Usage: python -m vlapost.assets.gallery OUT.png [procedural|paper|world|tasks].")
    pack = open_pack(words[1] if len(words) == 2 else "procedural")
    sheet = contact_sheet(pack)
    if not cv2.imwrite(words[0], cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise UserError(f"Cannot write the picture {words[0]}.")
    print(f"Wrote {words[0]}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
