"""Blender script: single-object scenes in the manner of CLEVR, with exact masks.

Follows the generator of Johnson et al., CVPR 2017 (grey plane; key, fill and back lamp; jitter;
rubber and metal; colours and shapes by the same names), with one object per scene and primitives
only. Writes DIR/scenes.jsonl, DIR/images/<id>.png and DIR/masks/<id>.png; packs nothing (pack.py).

    blender -b --factory-startup -noaudio --python render.py -- --output DIR --seed 0 --count 1000
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import bpy
from mathutils import Matrix, Vector
from mathutils.geometry import convex_hull_2d

WIDTH, HEIGHT = 320, 240
SAMPLES = 32
FOCAL, SENSOR = 35.0, 36.0  # millimetres
COLORS = {"blue": (42, 75, 215), "green": (29, 105, 20), "red": (173, 35, 35)}
SHAPES = ("cube", "cylinder", "sphere")
MATERIALS = ("metal", "rubber")
SIZES = {"small": 0.6, "medium": 0.8, "large": 1.05}  # radius of the sphere, in scene units
CAMERA = (6.2, -5.6, 4.6)
CAMERA_JITTER, LAMP_JITTER = 0.5, 1.0
LAMPS = {  # position, edge length, watts
    "key": ((6.4, -2.9, 5.2), 1.2, 420.0),
    "fill": ((-4.7, -4.6, 4.0), 2.5, 150.0),
    "back": ((-1.5, 4.2, 6.0), 2.0, 260.0),
}
MARGIN = 4  # pixels between the object and the frame
SMALLEST = 0.011  # of the image's area
METAL_GAIN = 1.8  # metal reflects a grey room; unlifted, CLEVR's dark green would look black


@dataclass(frozen=True)
class Scene:
    """Everything that decides one picture; lengths in scene units, angles in radians."""

    id: str
    color: str
    shape: str
    material: str
    size: str
    seed: int
    position: tuple[float, float]
    angle: float
    camera: tuple[float, float, float]
    target: tuple[float, float, float]
    lamps: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Stage:
    """The Blender objects that scenes share; `materials` by (color, material)."""

    shapes: dict[str, bpy.types.Object]
    materials: dict[tuple[str, str], bpy.types.Material]
    lamps: dict[str, bpy.types.Object]
    camera: bpy.types.Object


def arguments() -> argparse.Namespace:
    """The options after `--` on Blender's command line."""
    parser = argparse.ArgumentParser(prog="render.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    return parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])


def combinations(seed: int, count: int) -> list[tuple[str, str]]:
    """`count` (color, shape) pairs in seeded order; no two pairs differ by more than one in number."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    drawn = [pairs[index % len(pairs)] for index in range(count)]
    random.Random(f"order:{seed}").shuffle(drawn)  # noqa: S311 - pictures, not secrets
    return drawn


def jittered(rng: random.Random, place: tuple[float, ...], by: float) -> tuple[float, ...]:
    """`place` moved by up to `by` along each axis."""
    return tuple(round(value + rng.uniform(-by, by), 4) for value in place)


def view(camera: tuple[float, ...], target: tuple[float, ...]) -> Matrix:
    """The camera's world matrix when it stands at `camera` and looks at `target`."""
    turn = (Vector(target) - Vector(camera)).to_track_quat("-Z", "Y")
    return Matrix.Translation(camera) @ turn.to_matrix().to_4x4()


def radius_of(shape: str, size: str) -> float:
    """Half the object's height: a cube's edge is its size's radius x sqrt 2, as in CLEVR."""
    return SIZES[size] / (math.sqrt(2) if shape == "cube" else 1)


def under_pixel(x: float, y: float, height: float, camera: Matrix) -> tuple[float, float]:
    """The place at `height` above the ground that pixel (x, y) sees."""
    scale = WIDTH * FOCAL / SENSOR
    ray = camera.to_3x3() @ Vector(((x - WIDTH / 2) / scale, (HEIGHT / 2 - y) / scale, -1.0))
    place = camera.translation + ray * ((height - camera.translation.z) / ray.z)
    return round(place.x, 4), round(place.y, 4)


def placement(shape: str, size: str, position: tuple[float, float], angle: float) -> Matrix:
    """The object's world matrix: it rests on the plane z = 0."""
    radius = radius_of(shape, size)
    rest = Matrix.Translation((*position, radius)) @ Matrix.Rotation(angle, 4, "Z")
    return rest @ Matrix.Scale(radius, 4)


def outline(vertices: list[Vector], world: Matrix, camera: Matrix) -> list[tuple[float, float]]:
    """The silhouette in pixels: a convex object's is the convex hull of its projected vertices."""
    into = camera.inverted() @ world
    seen = [into @ vertex for vertex in vertices]
    scale = WIDTH * FOCAL / SENSOR
    flat = [(WIDTH / 2 - scale * p.x / p.z, HEIGHT / 2 + scale * p.y / p.z) for p in seen]
    return [flat[index] for index in convex_hull_2d(flat)]


def acceptable(hull: list[tuple[float, float]]) -> bool:
    """Whether a silhouette lies wholly in the frame and is not tiny."""
    inside = all(MARGIN <= x <= WIDTH - MARGIN and MARGIN <= y <= HEIGHT - MARGIN for x, y in hull)
    ring = zip(hull, hull[1:] + hull[:1], strict=True)
    area = abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in ring)) / 2
    return inside and area >= SMALLEST * WIDTH * HEIGHT


def draw_scene(seed: int, index: int, pair: tuple[str, str], vertices: list[Vector]) -> Scene:
    """Scene number `index`; depends on nothing but its arguments.

    The object's centre is uniform over the pixels, given that the whole object is acceptable.
    """
    rng = random.Random(f"scene:{seed}:{index}")  # noqa: S311 - pictures, not secrets
    color, shape = pair
    material, size = rng.choice(MATERIALS), rng.choice(tuple(SIZES))
    camera = jittered(rng, CAMERA, CAMERA_JITTER)
    target = jittered(rng, (0.0, 0.0, 0.0), CAMERA_JITTER)
    lamps = {name: jittered(rng, place, LAMP_JITTER) for name, (place, _, _) in LAMPS.items()}
    eye = view(camera, target)
    while True:
        pixel = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        position = under_pixel(*pixel, radius_of(shape, size), eye)
        angle = round(rng.uniform(0, 2 * math.pi), 4)
        world = placement(shape, size, position, angle)
        if acceptable(outline(vertices, world, eye)):
            break
    name = f"clevr-{index:06d}"
    draw = rng.randrange(2**31)
    return Scene(name, color, shape, material, size, draw, position, angle, camera, target, lamps)


def add_shapes() -> dict[str, bpy.types.Object]:
    """The three primitives, of half-height 1, hidden; a cube's edges are bevelled as in CLEVR."""
    bpy.ops.mesh.primitive_cube_add(size=2)
    cube = bpy.context.object
    bevel = cube.modifiers.new("bevel", "BEVEL")
    bevel.width, bevel.segments = 0.08, 4
    bpy.ops.mesh.primitive_cylinder_add(vertices=96, radius=1, depth=2)
    cylinder = bpy.context.object
    edge = cylinder.modifiers.new("bevel", "BEVEL")
    edge.width, edge.segments = 0.05, 4
    bpy.ops.mesh.primitive_uv_sphere_add(segments=96, ring_count=48, radius=1)
    shapes = {"cube": cube, "cylinder": cylinder, "sphere": bpy.context.object}
    for shape in shapes.values():
        shape.data.polygons.foreach_set("use_smooth", [True] * len(shape.data.polygons))
        shape.data.use_auto_smooth = True
        shape.pass_index = 1
        shape.hide_render = True
    return shapes


def surface(name: str, color: tuple[float, ...], rough: float, metal: float) -> bpy.types.Material:
    """A Principled material; `color` is linear RGB in [0, 1]."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"].inputs
    shader["Base Color"].default_value = (*color, 1.0)
    shader["Roughness"].default_value = rough
    shader["Metallic"].default_value = metal
    shader["Specular"].default_value = 0.3
    return material


def linear(channel: int) -> float:
    """An 8-bit sRGB channel as linear light."""
    value = channel / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def add_materials() -> dict[tuple[str, str], bpy.types.Material]:
    """(color, material) -> Blender material."""
    made = {}
    for color, rgb in COLORS.items():
        light = tuple(linear(channel) for channel in rgb)
        bright = tuple(min(1.0, METAL_GAIN * channel) for channel in light)
        made[color, "rubber"] = surface(f"{color} rubber", light, 0.7, 0.0)
        made[color, "metal"] = surface(f"{color} metal", bright, 0.22, 1.0)
    return made


def add_lamps() -> dict[str, bpy.types.Object]:
    """The area lamps: the metal reflects them, the camera does not see them."""
    lamps = {}
    for name, (_, edge, watts) in LAMPS.items():
        light = bpy.data.lights.new(name, "AREA")
        light.size, light.energy = edge, watts
        lamps[name] = bpy.data.objects.new(name, light)
        lamps[name].visible_camera = False
        bpy.context.collection.objects.link(lamps[name])
    return lamps


def add_camera() -> bpy.types.Object:
    """The scene's camera."""
    lens = bpy.data.cameras.new("camera")
    lens.lens, lens.sensor_width = FOCAL, SENSOR
    camera = bpy.data.objects.new("camera", lens)
    bpy.context.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def build_stage() -> Stage:
    """Shapes, ground, lamps, camera, and a grey sky for the metal to reflect."""
    shapes, materials = add_shapes(), add_materials()
    bpy.ops.mesh.primitive_plane_add(size=400)
    bpy.context.object.data.materials.append(surface("ground", (0.34, 0.34, 0.34), 0.9, 0.0))
    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.42, 0.42, 0.42, 1.0)
    bpy.context.scene.world = world
    return Stage(shapes, materials, add_lamps(), add_camera())


def set_renderer(threads: int) -> None:
    """Cycles on the CPU, 8-bit PNG, sRGB as is."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = SAMPLES
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.use_denoising = False  # Debian builds Blender without a denoiser
    scene.cycles.sample_clamp_indirect = 4.0
    scene.cycles.max_bounces = 4
    scene.cycles.caustics_reflective = scene.cycles.caustics_refractive = False
    scene.render.use_persistent_data = True
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGB"
    scene.view_settings.view_transform = "Standard"
    if threads:
        scene.render.threads_mode, scene.render.threads = "FIXED", threads


def add_mask_output(folder: Path) -> None:
    """Also write object pass index 1 as folder/mask<frame>.png."""
    scene = bpy.context.scene
    scene.view_layers[0].use_pass_object_index = True
    scene.use_nodes = True
    nodes, links = scene.node_tree.nodes, scene.node_tree.links
    select = nodes.new("CompositorNodeIDMask")
    select.index, select.use_antialiasing = 1, False
    out = nodes.new("CompositorNodeOutputFile")
    out.base_path = str(folder)
    out.file_slots[0].path = "mask"
    out.format.file_format, out.format.color_mode = "PNG", "BW"
    links.new(nodes["Render Layers"].outputs["IndexOB"], select.inputs["ID value"])
    links.new(select.outputs["Alpha"], out.inputs[0])


def write_scenes(path: Path, scenes: list[Scene]) -> None:
    """One JSON line a scene: what pack.py reads."""
    keys = ("id", "color", "shape", "size", "material")
    rows = [json.dumps({key: getattr(scene, key) for key in keys}) + "\n" for scene in scenes]
    path.write_text("".join(rows), encoding="utf-8")


def pose(scene: Scene, stage: Stage) -> None:
    """Set the stage for one scene; the lamps face the middle of the plane."""
    shape = stage.shapes[scene.shape]
    for other in stage.shapes.values():
        other.hide_render = other is not shape
    shape.matrix_world = placement(scene.shape, scene.size, scene.position, scene.angle)
    shape.data.materials.clear()
    shape.data.materials.append(stage.materials[scene.color, scene.material])
    stage.camera.matrix_world = view(scene.camera, scene.target)
    for name, lamp in stage.lamps.items():
        lamp.matrix_world = view(scene.lamps[name], (0.0, 0.0, 0.0))
    bpy.context.scene.cycles.seed = scene.seed


def render(scene: Scene, stage: Stage, output: Path) -> None:
    """Write the scene's image and mask, unless both are there: an interrupted run goes on where it stopped."""
    image, mask = (output / kind / f"{scene.id}.png" for kind in ("images", "masks"))
    if image.exists() and mask.exists():
        return
    pose(scene, stage)
    scratch = output / "scratch"
    bpy.context.scene.render.filepath = str(scratch / "image.png")
    bpy.ops.render.render(write_still=True)
    (scratch / "image.png").replace(image)
    next(scratch.glob("mask*.png")).replace(mask)


def main() -> None:
    """Draw all scenes, write scenes.jsonl, render."""
    options = arguments()
    output = options.output.resolve()
    for kind in ("images", "masks", "scratch"):
        (output / kind).mkdir(parents=True, exist_ok=True)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    set_renderer(options.threads)
    add_mask_output(output / "scratch")
    stage = build_stage()
    vertices = {name: [v.co.copy() for v in shape.data.vertices] for name, shape in stage.shapes.items()}
    pairs = combinations(options.seed, options.count)
    scenes = [draw_scene(options.seed, index, pair, vertices[pair[1]]) for index, pair in enumerate(pairs)]
    write_scenes(output / "scenes.jsonl", scenes)
    for number, scene in enumerate(scenes, start=1):
        render(scene, stage, output)
        sys.stderr.write(f"{number}/{len(scenes)} {scene.id}\n")
    (output / "scratch").rmdir()


if __name__ == "__main__":
    main()
