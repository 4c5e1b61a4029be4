"""The page itself, in Gradio: what a visitor does, and what is shown for it."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from dataset.detector import FaceDetector
from demonstration.downloads import landmarks_json, overlay_jpeg, pts_text
from demonstration.drawing import attention_svg, face_svg, legend_html, picture_svg
from demonstration.scene import (
    BOX,
    DETECTED,
    LARGEST_FILE,
    WHOLE,
    Box,
    Scene,
    cut_faces,
    drawn_box,
    examples,
    find_faces,
    read_picture,
)
from demonstration.steering import (
    LEARNT,
    UNIFORM,
    Choice,
    SteeredPredictor,
    Steering,
    measure_shift,
)
from utils.files import UserError

CSS = Path(__file__).with_name("page.css")
TEMPERATURES = 0.1, 30.0  # of the slider; training starts at 30 as published
FORGOTTEN_AFTER = 900  # s without a change; a picture is in memory only
DOWNLOADS = {"overlay": "image/jpeg", "JSON": "application/json", ".pts": "text/plain"}

_FORGOTTEN = f"The picture was forgotten after {FORGOTTEN_AFTER // 60} minutes; choose one again."

# Hands a file to the browser from memory, so that nothing of it lies on the server's disk.
_SAVE = """(text) => {
    if (!text) return;
    const file = JSON.parse(text);
    const link = document.createElement("a");
    link.href = `data:${file.type};base64,${file.data}`;
    link.download = file.name;
    link.click();
}"""


def build_page(predictors: Sequence[SteeredPredictor], detector: FaceDetector | None) -> gr.Blocks:
    """The page for one network or two, side by side."""
    with gr.Blocks(title="SepBN at work", analytics_enabled=False) as page:
        gr.HTML(_TITLE, elem_id="title")
        scene = gr.State(time_to_live=FORGOTTEN_AFTER)

        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                controls = _build_controls(predictors, detector)
            with gr.Column(scale=5, min_width=300), gr.Row():
                panels = [Panel(i, predictor) for i, predictor in enumerate(predictors)]

        visit = Visit(predictors, detector)
        outputs = [scene, controls["how"], controls["face"], controls["picture"]]
        outputs.append(controls["message"])
        how, face = controls["how"], controls["face"]
        opened = [
            controls["source"].picture(visit.open_picture, [scene, how], outputs),
            controls["source"].example(visit.open_example, [scene, how], outputs),
            controls["picture"].drawn(visit.draw_box, [scene], outputs),
            how.input(visit.choose_how, [scene, how], outputs),
            face.input(visit.choose_face, [scene, how, face], [controls["picture"]]),
        ]

        for panel in panels:
            panel.connect(opened, scene, face, controls["contours"])

    return page


_TITLE = """<h1>SepBN at work</h1>
<p>Separable Batch Normalization normalises once and then mixes K learnt maps by attention. See the
weights for a face, change them, and watch the landmarks move. Pictures stay on this machine, in
memory, and are forgotten.</p>"""


def _build_controls(
    predictors: Sequence[SteeredPredictor], detector: FaceDetector | None
) -> dict[str, Any]:
    """What stands on the left: where a picture comes from, its faces, the contours to draw."""
    ways = [DETECTED, WHOLE, BOX] if detector else [WHOLE, BOX]
    contours = {c.name: None for p in predictors for c in p.scheme.contours}
    scripts = _scripts()

    return {
        "source": gr.HTML(_source_html(), js_on_load=scripts["source"], elem_id="source"),
        "message": gr.HTML(say("Choose a face, or a picture of your own."), elem_id="message"),
        "picture": gr.HTML("", js_on_load=scripts["picture"], elem_id="picture"),
        "how": gr.Radio(ways, value=ways[0], label="Where the face is", elem_id="how"),
        "face": gr.Radio([], label="Face", visible=False, elem_id="face"),
        "contours": gr.CheckboxGroup(
            list(contours), value=list(contours), label="Landmarks shown", elem_id="contours"
        ),
    }


def _scripts() -> dict[str, str]:
    """The sections of page.js by name."""
    text = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    parts = re.split(r"^//// (\w+).*$", text, flags=re.MULTILINE)

    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _source_html() -> str:
    buttons = []
    for name, (path, _) in examples().items():
        data = base64.b64encode(path.read_bytes()).decode()
        words = escape(name.replace("_", " "))
        buttons.append(
            f'<button type="button" data-example="{escape(name)}" title="{words}">'
            f'<img alt="drawn face: {words}" src="data:image/jpeg;base64,{data}"></button>'
        )

    return (
        f'<div class="source" data-largest="{LARGEST_FILE}">'
        f'<div class="examples">{"".join(buttons)}</div><div class="ways">'
        '<label>Upload a picture<input type="file" accept="image/*"></label>'
        '<button type="button" class="start">Webcam</button>'
        '<button type="button" class="snap" hidden>Take the picture</button></div>'
        '<video playsinline muted hidden></video><p class="webcam-note" role="status"></p></div>'
    )


def say(text: str, *, error: bool = False) -> str:
    """A sentence for the visitor."""
    kind, role = ("message error", "alert") if error else ("message", "status")
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>'


def _where(name: str, how: str) -> str:
    if how == BOX:
        return f"The face is in the box of {name}; drag over the picture for another box."

    return f"The whole of {name} is the face."


class Visit:
    """What the controls on the left do: each function returns the scene, the way to the faces, the
    choice of a face, the picture, and a sentence.
    """

    def __init__(
        self, predictors: Sequence[SteeredPredictor], detector: FaceDetector | None
    ) -> None:
        self._predictors, self._detector = predictors, detector

    def open_picture(self, scene: Scene | None, how: str, event: gr.EventData) -> tuple:
        name = Path(str(event._data["name"])).name[:80] or "picture"
        content = event._data["data"]
        try:
            if content is None or len(content) > LARGEST_FILE * 4 / 3 + 4:
                data = bytes(LARGEST_FILE + 1)
            else:
                data = base64.b64decode(content)

            image = read_picture(data, name)
        except (UserError, binascii.Error, TypeError) as error:
            return self._refused(error)

        return self._show(name, image, how, box=None)

    def open_example(self, scene: Scene | None, how: str, event: gr.EventData) -> tuple:
        path, box = examples()[event._data["name"]]
        # without a detector the example's own box is the best that is known
        how = how if self._detector else BOX

        return self._show(path.name, read_picture(path.read_bytes(), path.name), how, box=box)

    def draw_box(self, scene: Scene | None, event: gr.EventData) -> tuple:
        if scene is None:
            return self._refused(UserError(_FORGOTTEN))

        try:
            box = drawn_box(event._data["corners"], scene.image)
        except UserError as error:
            return self._refused(error)

        return self._show(scene.name, scene.image, BOX, box=box)

    def choose_how(self, scene: Scene | None, how: str) -> tuple:
        if scene is None:
            return (gr.skip(),) * 5

        return self._show(scene.name, scene.image, how, box=scene.box)

    def choose_face(self, scene: Scene | None, how: str, face: int) -> Any:
        if scene is None:
            return gr.skip()

        return picture_svg(scene.image, scene.boxes, chosen=face, drawable=how == BOX)

    def _show(self, name: str, image: np.ndarray, how: str, *, box: Box | None) -> tuple:
        try:
            boxes, scores, sentence = find_faces(image, how, detector=self._detector, box=box)
            cuts = cut_faces(self._predictors, image, boxes)
        except UserError as error:
            return self._refused(error)

        scene = Scene(name, image, box, boxes, scores, cuts)
        choices = [(str(i + 1), i) for i in range(len(boxes))]
        face = gr.Radio(choices, value=0 if boxes else None, visible=len(boxes) > 1)
        picture = picture_svg(image, boxes, chosen=0, drawable=how == BOX)

        return scene, how, face, picture, say(sentence or _where(name, how))

    @staticmethod
    def _refused(error: Exception) -> tuple:
        """What was there before stays."""
        return (*(gr.skip(),) * 4, say(str(error), error=True))


class Panel:
    """One network: its face, its attention, and what can be chosen there."""

    def __init__(self, number: int, predictor: SteeredPredictor) -> None:
        self.number, self.predictor = number, predictor
        place = f"panel-{number + 1}"
        self.steering: list[gr.Slider | gr.Dropdown] = []  # temperature, then a choice a module
        self.reset: gr.Button | None = None
        self.charts: list[gr.HTML] = []

        with gr.Column(min_width=320, elem_id=place, elem_classes="panel"):
            gr.HTML(f"<h2>{escape(predictor.name)}</h2><p>{escape(predictor.config['arm'])}</p>")

            with gr.Row():  # side by side where there is room
                with gr.Column(min_width=320):
                    self._build_face(place)
                with gr.Column(min_width=320):
                    self._build_steering(place)

    def _build_face(self, place: str) -> None:
        self.face = gr.HTML("", elem_id=f"{place}-face")
        self.shift = gr.HTML("", elem_id=f"{place}-shift")

        with gr.Row():
            self.buttons = {
                kind: gr.Button(f"Save {kind}", size="sm", min_width=60) for kind in DOWNLOADS
            }

        self.file = gr.Textbox(visible=False)

    def _build_steering(self, place: str) -> None:
        predictor, learnt = self.predictor, self.predictor.temperature
        if learnt is None:
            gr.HTML("<p>This network has no SepBN: there is no attention to look at.</p>")
            return

        low, high = min(TEMPERATURES[0], learnt), max(TEMPERATURES[1], learnt)
        temperature = gr.Slider(
            low,
            high,
            learnt,
            step=0.1,
            label="Temperature τ of the attention, all modules",
            info=f"Learnt: {learnt:g}. High: all sets count alike; low: one set takes all.",
            elem_id=f"{place}-temperature",
        )
        self.steering.append(temperature)

        options: list[tuple[str, Choice]] = [(LEARNT, LEARNT), (UNIFORM, UNIFORM)]
        options += [(f"only set {k + 1}", k) for k in range(predictor.sets)]
        gr.HTML(legend_html(predictor.sets))

        with gr.Row(elem_classes="modules"):
            for name in predictor.modules:
                with gr.Column(min_width=100, elem_classes="module"):
                    self.charts.append(gr.HTML("", elem_id=f"{place}-{name}"))
                    self.steering.append(
                        gr.Dropdown(
                            options, value=LEARNT, label=name, min_width=90, container=False
                        )
                    )

        self.reset = gr.Button("Everything as learnt", size="sm")

    def connect(
        self, opened: list[Any], scene: gr.State, face: gr.Radio, contours: gr.CheckboxGroup
    ) -> None:
        """Answer to what the visitor does: `opened` are events after which there may be another
        face.
        """
        inputs = [scene, face, contours, *self.steering]
        outputs = [self.face, self.shift, *self.charts]
        quietly = {"show_progress": "hidden", "trigger_mode": "always_last"}

        for event in opened:
            event.then(self.show, inputs, outputs, show_progress="hidden")

        moved = [control.input for control in self.steering] + [contours.input]
        gr.on(moved, self.show, inputs, outputs, **quietly)

        if self.reset:
            self.reset.click(self._as_learnt, None, self.steering).then(
                self.show, inputs, outputs, **quietly
            )

        for kind, button in self.buttons.items():
            button.click(self._downloader(kind), inputs, self.file, show_progress="hidden").then(
                None, self.file, None, js=_SAVE
            )

    def show(
        self, scene: Scene | None, face: int | None, contours: list[str], *steering: Any
    ) -> list[str]:
        """The face, its landmarks' shift, and a chart a module."""
        if scene is None or face is None or face >= len(scene.boxes):
            return [""] * (2 + len(self.charts))

        cut = scene.cuts[self.number]
        one = slice(face, face + 1)
        answer = self.predictor.answer(cut.patches[one], cut.frames[one], _steering(steering))
        landmarks, learnt = answer.landmarks[0], cut.learnt.landmarks[face]
        drawn = face_svg(
            scene.image,
            scene.boxes[face],
            landmarks,
            learnt=learnt,
            scheme=self.predictor.scheme,
            contours=contours,
        )

        weights = zip(self.predictor.modules, answer.attention, cut.learnt.attention, strict=True)
        charts = [attention_svg(name, used[0], before[face]) for name, used, before in weights]

        return [drawn, self._describe_shift(learnt, landmarks), *charts]

    def _describe_shift(self, learnt: np.ndarray, landmarks: np.ndarray) -> str:
        if not self.predictor.modules:
            return ""

        shift = measure_shift(learnt, landmarks, self.predictor.scheme)
        where = f", most in the {shift.contour}" if shift.largest else ""

        return (
            f'<p class="shift" data-mean="{shift.mean:.4f}">Landmarks moved by <strong>'
            f"{shift.mean:.2f}</strong> pixels on average, at most <strong>{shift.largest:.2f}"
            f"</strong>{where}.</p>"
        )

    def _as_learnt(self) -> list[Any]:
        return [self.predictor.temperature, *[LEARNT] * len(self.predictor.modules)]

    def _downloader(self, kind: str):
        def download(
            scene: Scene | None, face: int | None, contours: list[str], *steering: Any
        ) -> str:
            if scene is None or face is None:
                return ""

            predictor, cut, settings = self.predictor, scene.cuts[self.number], _steering(steering)
            answer = predictor.answer(cut.patches, cut.frames, settings)
            stem = Path(scene.name).stem

            if kind == "overlay":
                kept = tuple(c for c in predictor.scheme.contours if c.name in contours)
                scheme = replace(predictor.scheme, contours=kept)
                name, data = f"{stem}_overlay.jpg", overlay_jpeg(scene, answer.landmarks, scheme)
            elif kind == "JSON":
                name, data = f"{stem}.json", landmarks_json(scene, predictor, answer, settings)
            else:
                name, data = f"{stem}.pts", pts_text(answer.landmarks[face])

            text = base64.b64encode(data).decode()

            # another text each time, since the browser looks at changes
            return json.dumps({"name": name, "type": DOWNLOADS[kind], "data": text})

        return download


def _steering(values: Sequence[Any]) -> Steering:
    """From the controls' values: none in a network without SepBN, else temperature and choices."""
    return Steering(float(values[0]), tuple(values[1:])) if values else Steering()
