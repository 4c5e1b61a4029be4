"""The page of demo.py, of Gradio's own parts: what a visitor does, and what is shown for it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from dataset.boxes import BoxTable
from dataset.crop import patch_frame
from dataset.detector import FaceDetector, yunet_path
from dataset.pictures import read_image
from dataset.views import MOST_VIEWS, is_doubtful
from demonstration.drawing import attention_html, describe_shift, describe_spread, draw_face
from demonstration.steering import ALIKE, ATTENTION, SteeredPredictor
from utils.files import UserError, write_json

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
KEPT = 900  # s; then a picture and what was made of it are deleted
TITLE = """# SepBN at work
See how attention mixes K learnt scales and shifts; change it, and watch the landmarks move."""
PRIVATE = "Your picture, on this machine only"
MODULES = """A bar for each SepBN module, **bn1** to **bn6**, one after each convolution: the first
sees edges and colours, the last the whole face."""
# detector and networks work for one thread at a time
IN_TURN: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "network"}


def build_page(predictors: list[SteeredPredictor], detector: FaceDetector | None) -> gr.Blocks:
    """The page for one network or more, side by side."""
    finder, samples = Finder(detector), [[str(path)] for path in sorted(EXAMPLES.glob("*.jpg"))]
    gr.set_static_paths([EXAMPLES])

    with gr.Blocks(title="SepBN at work", delete_cache=(60, KEPT)) as page:
        gr.Markdown(TITLE)
        scene = gr.State(time_to_live=KEPT)  # name, image, faces from the left

        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="source"):
                with gr.Column(min_width=300):
                    example = gr.Dataset(components=["image"], samples=samples, label="Examples")
                    picture = gr.Image(
                        label=PRIVATE, type="filepath", height=260, elem_id="picture"
                    )
                    said = gr.Markdown()

                with gr.Column(min_width=300, elem_id="choices"):
                    fetch = gr.Button("Fetch YuNet to find faces", size="sm", visible=not detector)
                    face = gr.Radio([1], value=1, label="Face, from the left", visible=False)
                    box = gr.Textbox(
                        label="Face box: left, top, right, bottom in px",
                        info="Click two opposite corners in the picture, or type and press Enter. "
                        "Empty: YuNet's box, else the whole picture.",
                    )

            with gr.Column(scale=5, min_width=300), gr.Row():
                for predictor in predictors:
                    build_panel(predictor, scene, face)

        found, raw = [fetch, box, scene, face, said], IN_TURN | {"preprocess": False}
        page.load(partial(finder.open_example, samples[0]), None, [picture, *found], **IN_TURN)
        example.click(finder.open_example, example, [picture, *found], **IN_TURN)
        picture.upload(finder.find, picture, found, **raw)
        picture.clear(finder.find, None, found, **raw)
        picture.select(finder.click, [picture, box], found, **raw)
        box.submit(finder.find, [picture, box], found, **raw)
        fetch.click(partial(finder.find, fetch=True), picture, found, preprocess=False)

    return page


@dataclass
class Finder:
    """Finds the faces of what a visitor shows; `picture` is as Gradio's front end describes it."""

    detector: FaceDetector | None

    def open_example(self, sample: list[str]) -> tuple:
        path = Path(sample[0])
        row, *_ = BoxTable(EXAMPLES / "boxes.csv").boxes_of(path)

        return str(path), *self.find({"path": path, "orig_name": path.name}, f"{row.box}"[1:-1])

    def click(self, picture: dict, box: str, event: gr.SelectData) -> tuple:
        corner = "{:.0f}, {:.0f}".format(*event.index)
        if box.count(",") == 1:
            return self.find(picture, f"{box}, {corner}")

        return gr.skip(), corner, gr.skip(), gr.skip(), "Now click the opposite corner."

    def find(self, picture: dict | None = None, box: str = "", fetch: bool = False) -> tuple:
        """What can be fetched, the box as typed, the scene, the choice of a face, a sentence."""
        path, name = (str(picture["path"]), picture["orig_name"]) if picture else ("", "")
        scene, said = None, "Choose a face, or a picture of your own."
        try:
            if fetch:
                self.detector = FaceDetector(yunet_path("click the face's box in the picture"))
            if picture:
                image = read_image(path)
                found, said = self._faces(image, box)
                scene, said = (name, image, found), f"{name}: {said}."
        except UserError as error:
            raise gr.Error(str(error).replace(path, name), print_exception=False) from None

        numbers = list(range(1, 1 + len(scene[2]))) if scene else [1]
        faces = gr.Radio(numbers, value=1, visible=len(numbers) > 1)

        return gr.Button(visible=not self.detector), box, scene, faces, said

    def _faces(self, image: np.ndarray, typed: str) -> tuple[list[tuple[list[int], float]], str]:
        if typed.strip():
            return [(parse_box(typed), 0.0)], "the face is where the box says"

        if self.detector:
            boxes, _, angles = self.detector(image)
            if faces := sorted(zip(boxes.tolist(), angles.tolist(), strict=True)):
                return faces, f"faces found: {len(faces)}"

        whole = [0, 0, image.shape[1] - 1, image.shape[0] - 1]
        return [(whole, 0.0)], "no face found, so the whole picture is taken for one"


def parse_box(text: str) -> list[int]:
    """Left, top, right, bottom of any two opposite corners x0, y0, x1, y1."""
    try:
        x0, y0, x1, y1 = map(int, text.split(","))
    except ValueError:
        raise UserError("a box is left, top, right, bottom: 40, 30, 200, 210") from None

    box = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
    patch_frame(box)  # refuses one without area
    return list(box)


def build_panel(predictor: SteeredPredictor, scene: gr.State, face: gr.Radio) -> None:
    """One network: a face with its landmarks, the attention, and what can be chosen there."""
    names, tau = list(predictor.layers), predictor.temperature
    controls: list[Any] = []

    with gr.Column(min_width=320), gr.Row():
        with gr.Column(min_width=320):
            shown = gr.Image(label=predictor.name, buttons=["download"], alt_text="landmarks")
            said = gr.Markdown()
            save = gr.DownloadButton("Save landmarks and weights", size="sm")

        with gr.Column(min_width=320):
            gr.Markdown(MODULES if names else predictor.config["arm"])
            bars = gr.HTML(elem_classes="attention")
            if names:
                info = f"τ of training: {tau:g}. High: all sets alike; low: one set takes all."
                sets = [(f"only set {k + 1}", k) for k in range(predictor.sets)]
                controls = [
                    gr.Slider(0.1, max(30, tau), tau, step=0.1, label="Temperature τ", info=info),
                    gr.Radio([ATTENTION, ALIKE, *sets], value=ATTENTION, label="Weights"),
                    gr.CheckboxGroup(names, value=names, label="Modules with these weights"),
                ]

    moved = [scene.change, face.input, *(control.input for control in controls)]
    inputs, outputs = [scene, face, *controls], [shown, said, bars, save]
    gr.on(moved, partial(show, predictor), inputs, outputs, trigger_mode="always_last", **IN_TURN)


def show(predictor: SteeredPredictor, scene: tuple | None, face: int, *steering: Any) -> tuple:
    """The face close up, its landmarks' shift and spread, the weights, and what can be saved."""
    if scene is None:
        return None, f"No picture is here (one is kept for {KEPT // 60} minutes).", "", None

    name, image, faces = scene
    seen = faces[face - 1]
    before, trained = predictor.answer(image, seen)
    after, used = predictor.answer(image, seen, steering)
    box, angle = seen
    _, (spread,) = predictor(image, [box], angles=[angle], views=MOST_VIEWS)  # steered alike

    drawn = draw_face(image, box, after, before, predictor.scheme)
    said = describe_spread(spread, box, predictor.scheme)
    if used:
        said = f"{describe_shift(before, after, predictor.scheme)}\n\n{said}"

    # in Gradio's folder, so that Gradio deletes it
    file = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / f"{Path(name).stem}.json"
    weights = {name: values.tolist() for name, values in used.items()}
    made = {"face": seen, "landmarks": after.tolist(), "spread": spread.tolist()}
    made |= {"doubtful": is_doubtful(spread, box), "attention": weights, "steering": steering}
    write_json(file, {"file": name, "checkpoint": predictor.name, **made}, indent=None)

    return drawn, said, attention_html(used, trained), str(file)
