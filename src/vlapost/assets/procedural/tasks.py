"""Bodies and pictures of SimplerEnv's four WidowX tasks and of ManiSkill's StackCube, drawn here.

Boxes and densities are SimplerEnv's (`info_bridge_custom_v0.json` of its BridgeData assets) and StackCube's. The sink
and its basket are one body; the basket's floor, on which the eggplant has to lie, is another, as in SimplerEnv.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vlapost.assets.procedural import food, receptacles
from vlapost.assets.procedural.catalogue import Entry
from vlapost.assets.procedural.looks import LOOKS as BENCHMARK
from vlapost.assets.procedural.noise import canvas, clouds, mix
from vlapost.assets.procedural.patterns import marble, mottle
from vlapost.assets.procedural.shapes import Colour, Part, block, lathe, lying, paint, plate, straight, tube
from vlapost.assets.procedural.tables import SINK, Look

YELLOW = (228, 186, 40)
STEEL = (172, 176, 182)
# cm, in the sink's frame: the basket's middle and half its inner length and width; heights of floors and rims (the
# sink's is lower towards the robot, or the camera would not see the eggplant)
BASKET, INSIDE = (3.5, -10.5), (7.2, 6.0)
FLOOR, BASKET_FLOOR, BASKET_RIM, FRONT_RIM, RIM = 1.0, 1.5, 4.5, 6.0, 11.5


def cube(colour: Colour) -> Callable[[], list[Part]]:
    """A cube with slightly darker edges."""

    def draw() -> list[Part]:
        picture = canvas(64, 64, colour)
        edge = (int(colour[0] * 0.8), int(colour[1] * 0.8), int(colour[2] * 0.8))
        cv2.rectangle(picture, (0, 0), (63, 63), edge, 2)
        return [paint(block(3, 3, 0, 3), picture)]

    return draw


def spoon() -> list[Part]:
    """Green spoon along x, its bowl towards -x; the handle arches and is thick enough for fingers 8 mm apart."""
    green = (104, 178, 108)
    bowl = lathe([(0, 0), (1.0, 0.05), (1.5, 0.4), (1.73, 1.1), (1.6, 1.1), (1.0, 0.5), (0, 0.4)]).scale(x=1.45)
    t = np.linspace(0, 1, 16)
    handle = tube(np.stack([-2.6 + 9.2 * t, 0 * t, 0.75 + 1.1 * np.sin(np.pi * t)], -1), 0.55 + 0.2 * t)
    return [paint(bowl.move(x=-4.5), green, shine=0.4), paint(handle, green, piece=1, shine=0.4)]


def eggplant() -> list[Part]:
    """Dark purple along x, thickest towards +x, with a green cap at -x; it lies flat along its whole length."""
    t = np.linspace(-1, 1, 24)
    radius = (1.42 + 0.5 * t) * np.sqrt(1 - 0.97 * np.abs(t) ** 5)
    skin = mix((62, 22, 74), (92, 44, 104), clouds((128, 128), (40, 40), 51))
    cap = np.array([0.3, 0.8, 1.05, 1.2, 1.27, 1.32])
    return [
        paint(tube(lying(straight(7.4), radius), radius), skin, shine=0.5),
        paint(tube(lying(straight(2.2, 6), cap), cap).move(x=-3.1), (70, 122, 48)),
    ]


def towel() -> list[Part]:
    """A folded blue towel with a white stripe along two edges."""
    picture = mix((58, 96, 168), (86, 124, 190), clouds((256, 256), (5, 5), 52))
    picture[:, 24:36] = picture[:, -36:-24] = (226, 228, 232)
    picture[::3] = (picture[::3] * 0.94).astype(np.uint8)
    return [paint(block(10, 10, 0, 1), (70, 108, 176)), paint(plate(10, 10, 1.002), picture)]


def basket_floor() -> list[Part]:
    """The ground of the basket that counts, with the grooves of a dish rack."""
    picture = canvas(128, 128, YELLOW)
    picture[:, ::16] = picture[:, 1::16] = (176, 140, 26)
    return [paint(block(13, 8, 0, 0.2), YELLOW), paint(plate(13, 8, 0.201), picture)]


def sink() -> list[Part]:
    """A steel sink with a yellow basket standing in it; each wall is a convex piece."""
    steel = mix((150, 154, 160), STEEL, clouds((128, 256), (3, 200), 53))
    walls = [paint(block(26.9, 39.3, 0, FLOOR), steel, shine=0.4)]
    walls.append(paint(block(1, 39.3, FLOOR, FRONT_RIM).move(12.95), steel, 1, shine=0.4))
    for x, y, width, depth in ((-12.95, 0, 1, 39.3), (0, 19.15, 26.9, 1), (0, -19.15, 26.9, 1)):
        walls.append(paint(block(width, depth, FLOOR, RIM).move(x, y), steel, len(walls), shine=0.4))
    (x, y), (half, wide) = BASKET, INSIDE
    walls.append(paint(block(2 * half, 2 * wide, FLOOR, BASKET_FLOOR).move(x, y), YELLOW, len(walls)))
    for across in (-1, 1):
        for side in (
            block(0.5, 2 * wide + 1, FLOOR, BASKET_RIM).move(x + across * (half + 0.25), y),
            block(2 * half, 0.5, FLOOR, BASKET_RIM).move(x, y + across * (wide + 0.25)),
        ):
            walls.append(paint(side, YELLOW, len(walls)))
    return walls


# fmt: off
OBJECTS = (
    Entry("carrot", "carrot", 700, food.carrot, (-0.0575, -0.016, -0.019), (0.0575, 0.016, 0.019)),
    Entry("spoon", "spoon", 1200, spoon, (-0.07, -0.0173, -0.013021), (0.07, 0.0173, 0.013021)),
    Entry("green_block", "green block", 1000, cube((60, 160, 70)), (-0.015, -0.015, -0.015), (0.015, 0.015, 0.015)),
    Entry("eggplant", "eggplant", 400, eggplant, (-0.03915, -0.0187, -0.019), (0.03915, 0.0187, 0.019)),
    Entry("red_cube", "red cube", 1000, cube((210, 40, 40)), (-0.02, -0.02, -0.02), (0.02, 0.02, 0.02)),
)
RECEPTACLES = (
    Entry("plate", "plate", 1000, receptacles.yellow_plate, (-0.055, -0.055, -0.003), (0.055, 0.055, 0.003)),
    Entry("towel", "towel", 330, towel, (-0.05, -0.05, -0.005), (0.05, 0.05, 0.005)),
    Entry("yellow_block", "yellow block", 1000, cube((232, 200, 50)), (-0.015, -0.015, -0.015), (0.015, 0.015, 0.015)),
    Entry("basket", "yellow basket", 100000, basket_floor, (-0.065, -0.04, -0.001), (0.065, 0.04, 0.001)),
    Entry("green_cube", "green cube", 1000, cube((50, 170, 60)), (-0.02, -0.02, -0.02), (0.02, 0.02, 0.02)),
    Entry("sink", "sink", 100000, sink, (-0.1345, -0.1965, 0.0), (0.1345, 0.1965, 0.115)),
)
# fmt: on
LOOKS: dict[str, Callable[[], Look]] = {
    "001_table_simpler": BENCHMARK["001_table_simpler"],
    "002_counter": lambda: Look(
        marble((540, 1275), (212, 208, 200), (150, 146, 140), 341),
        (190, 186, 178),
        mottle((700, 900), (120, 104, 90), (96, 82, 70), 441, 60),
        back=mottle((900, 900), (226, 222, 210), (206, 200, 186), 541, 300),
        legs=None,
        thick=0.04,
        view=SINK,
    ),
}
