"""The benchmark's bodies: id, name, box, density (facts of the benchmark) and the function that draws each one here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlapost.assets.procedural import food, receptacles, things, vessels
from vlapost.assets.procedural.body import Point
from vlapost.assets.procedural.shapes import Part


@dataclass(frozen=True)
class Entry:
    """One body; `low` and `high` are the corners of its box in metres, `density` is in kg/m3."""

    id: str
    name: str
    density: float
    draw: Callable[[], list[Part]]
    low: Point
    high: Point


# fmt: off
OBJECTS = (
    Entry("001_carrot_simpler", "carrot", 1044, food.carrot,
          (-0.064146, -0.016275, -0.017784), (0.054168, 0.015944, 0.02342)),
    Entry("002_kitchen shovel_1", "kitchen shovel", 557, things.kitchen_shovel,
          (-0.028514, -0.061222, -0.012314), (0.028577, 0.087642, 0.00891)),
    Entry("003_bread_1", "bread", 526, food.bread,
          (-0.022195, -0.022384, -0.014578), (0.022278, 0.022476, 0.014546)),
    Entry("004_plastic bottle_1", "plastic bottle", 1916, vessels.plastic_bottle,
          (-0.017176, -0.052353, -0.017914), (0.018893, 0.069187, 0.021117)),
    Entry("005_7up can_1", "7up can", 790, vessels.seven_up_can,
          (-0.016542, -0.031393, -0.016354), (0.016558, 0.029607, 0.016746)),
    Entry("006_zuchinni_1", "zuchinni", 715, food.zucchini,
          (-0.061465, -0.018381, -0.012294), (0.04864, 0.012328, 0.013661)),
    Entry("007_ketchup bottle_1", "ketchup bottle", 500, vessels.ketchup_bottle,
          (-0.0104, -0.03743, -0.010421), (0.010409, 0.043878, 0.010417)),
    Entry("008_watering can_1", "watering can", 1591, things.watering_can,
          (-0.044345, -0.020049, -0.019221), (0.067933, 0.020622, 0.029642)),
    Entry("009_pipe_1", "pipe", 1116, things.pipe,
          (-0.01733, -0.036932, -0.01733), (0.01733, 0.036932, 0.01733)),
    Entry("010_toy bear_1", "toy bear", 667, things.toy_bear,
          (-0.020858, -0.021149, -0.026055), (0.021693, 0.017456, 0.030326)),
    Entry("011_fast food cup_1", "fast food cup", 500, vessels.fast_food_cup,
          (-0.012405, -0.012441, -0.021972), (0.012401, 0.012368, 0.031721)),
    Entry("012_plant_1", "plant", 1051, things.plant,
          (-0.022002, -0.021402, -0.041142), (0.018943, 0.021147, 0.031418)),
    Entry("013_banana_1", "banana", 500, food.banana,
          (-0.053817, -0.026072, -0.009194), (0.053817, 0.013978, 0.009194)),
    Entry("014_hamburger_1", "hamburger", 863, food.hamburger,
          (-0.02503, -0.026089, -0.018934), (0.024251, 0.024906, 0.022287)),
    Entry("015_golf ball_1", "golf ball", 500, things.golf_ball,
          (-0.015288, -0.0153, -0.01529), (0.015288, 0.0153, 0.01529)),
    Entry("016_BBQ sauce_1", "BBQ sauce", 1057, vessels.bbq_sauce,
          (-0.026546, -0.01622, -0.02861), (0.026459, 0.016241, 0.048556)),
    Entry("017_travel cup_1", "travel cup", 1018, vessels.travel_cup,
          (-0.019803, -0.040252, -0.017219), (0.031988, 0.045575, 0.017189)),
    Entry("018_pepper_1", "pepper", 835, food.pepper,
          (-0.022081, -0.022534, -0.02278), (0.022081, 0.022534, 0.02278)),
    Entry("019_nonstop can_1", "nonstop can", 1248, vessels.nonstop_can,
          (-0.017359, -0.017381, -0.042844), (0.017399, 0.017377, 0.042476)),
    Entry("020_potato_1", "potato", 1355, food.potato,
          (-0.024426, -0.03702, -0.022543), (0.024596, 0.037041, 0.022047)),
    Entry("021_baguette_1", "baguette", 1367, food.baguette,
          (-0.017872, -0.070771, -0.012416), (0.02046, 0.068207, 0.013337)),
    Entry("022_champagne glass_1", "champagne glass", 500, vessels.champagne_glass,
          (-0.014222, -0.014222, -0.054144), (0.014222, 0.014222, 0.031337)),
    Entry("023_kitchen spoon_1", "kitchen spoon", 500, things.kitchen_spoon,
          (-0.02477, -0.076108, -0.00142), (0.024772, 0.050176, 0.015787)),
    Entry("024_onion_1", "onion", 1137, food.onion,
          (-0.025607, -0.031256, -0.025675), (0.025328, 0.030985, 0.02549)),
    Entry("025_cup_1", "cup", 1018, vessels.cup,
          (-0.02215, -0.022167, -0.001195), (0.03651, 0.022121, 0.036034)),
)

RECEPTACLES = (
    Entry("001_plate_simpler", "plate", 1003, receptacles.yellow_plate,
          (-0.055, -0.055, 0.0), (0.055, 0.055, 0.006)),
    Entry("002_cloth_1", "cloth", 6975, receptacles.cloth,
          (-0.052668, -0.054186, -0.00186), (0.057332, 0.055814, 0.007514)),
    Entry("003_carpet_1", "carpet", 2815, receptacles.carpet,
          (-0.054271, -0.047153, -0.00115), (0.055729, 0.047066, 0.002593)),
    Entry("004_newspaper_1", "newspaper", 2278, receptacles.newspaper,
          (-0.041165, -0.056247, -4.3e-05), (0.040317, 0.059925, 0.0041)),
    Entry("005_sheet metal_1", "sheet metal", 2389, receptacles.sheet_metal,
          (-0.055458, -0.047227, -0.001946), (0.055341, 0.047104, 0.001294)),
    Entry("006_drawing tablet_1", "drawing tablet", 2868, receptacles.drawing_tablet,
          (-0.056342, -0.042009, -0.002881), (0.056457, 0.042009, 0.000709)),
    Entry("007_tomato slice_1", "tomato slice", 3089, receptacles.tomato_slice,
          (-0.055, -0.055, -0.002171), (0.055, 0.055, 0.002171)),
    Entry("008_pizza_1", "pizza", 3862, receptacles.pizza,
          (-0.054532, -0.054193, -0.002682), (0.055468, 0.055807, 0.003863)),
    Entry("009_flat bowl_1", "flat bowl", 4847, receptacles.flat_bowl,
          (-0.055, -0.055, -0.004884), (0.055, 0.055, 0.007062)),
    Entry("010_gramophone disk_1", "gramophone disk", 2193, receptacles.gramophone_disk,
          (-0.055, -0.055, -0.001328), (0.055, 0.055, 0.001328)),
    Entry("011_frying pan_1", "frying pan", 5104, receptacles.frying_pan,
          (-0.054997, -0.048902, -0.002667), (0.055003, 0.061098, 0.005808)),
    Entry("012_mouse pad_1", "mouse pad", 3332, receptacles.mouse_pad,
          (-0.053899, -0.054489, 0.000196), (0.056101, 0.055511, 0.006574)),
    Entry("013_cutting board_1", "cutting board", 3107, receptacles.cutting_board,
          (-0.063114, -0.054989, -0.001338), (0.063114, 0.054989, 0.001338)),
    Entry("014_chess board_1", "chess board", 6368, receptacles.chess_board,
          (-0.055, -0.055, -0.003), (0.055, 0.055, 0.003)),
    Entry("015_manhole cover_1", "manhole cover", 3743, receptacles.manhole_cover,
          (-0.055, -0.055, -0.002247), (0.055, 0.055, 0.002247)),
    Entry("016_envelope_1", "envelope", 1824, receptacles.envelope,
          (-0.054999, -0.040242, -0.001289), (0.055001, 0.039758, 0.001691)),
    Entry("017_notepad_1", "notepad", 3087, receptacles.notepad,
          (-0.055, -0.04, -0.002), (0.055, 0.04, 0.002)),
)
# fmt: on
