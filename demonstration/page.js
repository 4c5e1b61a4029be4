// Scripts of the page's two own components. Each section is the body of a function that Gradio calls
// with `element` and `trigger`; the sections are told apart by their headings.

//// source: an example, a file or a webcam's picture becomes the event "picture" or "example"
const largest = Number(element.querySelector(".source").dataset.largest);
const video = element.querySelector("video");
const [start, snap] = [element.querySelector(".start"), element.querySelector(".snap")];
const note = element.querySelector(".webcam-note");

function send(name, blob) {
    if (blob.size > largest) {
        trigger("picture", {name: name, data: null}); // the server says why, in its own words
        return;
    }

    const reader = new FileReader();
    reader.onload = () => trigger("picture", {name: name, data: reader.result.split(",")[1] || ""});
    reader.readAsDataURL(blob);
}

function stopWebcam() {
    if (video.srcObject) video.srcObject.getTracks().forEach(track => track.stop());
    video.srcObject = null;
    video.hidden = snap.hidden = true;
    start.hidden = false;
}

element.addEventListener("click", event => {
    const example = event.target.closest("[data-example]");
    if (example) trigger("example", {name: example.dataset.example});
});

element.addEventListener("change", event => {
    if (event.target.type !== "file" || !event.target.files.length) return;
    send(event.target.files[0].name, event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
});

for (const kind of ["dragover", "drop"]) {
    element.addEventListener(kind, event => {
        event.preventDefault();
        const file = kind === "drop" && event.dataTransfer.files[0];
        if (file) send(file.name, file);
    });
}

start.addEventListener("click", async () => {
    try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: "user"}});
    } catch (error) {
        note.textContent = "No webcam here, or the browser was not allowed to use it.";
        return;
    }

    note.textContent = "";
    video.hidden = snap.hidden = false;
    start.hidden = true;
    await video.play();
});

snap.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    stopWebcam();
    canvas.toBlob(blob => send("webcam.png", blob), "image/png");
});

//// picture: a box that is dragged over the picture becomes the event "drawn", in picture pixels
let corner = null;

function place(svg, event) {
    const point = new DOMPoint(event.clientX, event.clientY);
    const inside = point.matrixTransform(svg.getScreenCTM().inverse());
    return [inside.x - 0.5, inside.y - 0.5]; // pixel centres are whole numbers
}

element.addEventListener("pointerdown", event => {
    const svg = event.target.closest("svg.drawable");
    if (!svg || event.button) return;
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    corner = place(svg, event);
});

element.addEventListener("pointermove", event => {
    const svg = element.querySelector("svg.drawable");
    if (!svg || !corner) return;
    const [x, y] = place(svg, event);
    const rubber = svg.querySelector(".rubber");
    rubber.removeAttribute("hidden");
    rubber.setAttribute("x", Math.min(x, corner[0]));
    rubber.setAttribute("y", Math.min(y, corner[1]));
    rubber.setAttribute("width", Math.abs(x - corner[0]));
    rubber.setAttribute("height", Math.abs(y - corner[1]));
});

element.addEventListener("pointerup", event => {
    const svg = element.querySelector("svg.drawable");
    if (!svg || !corner) return;
    const corners = [...corner, ...place(svg, event)];
    corner = null;
    svg.querySelector(".rubber").setAttribute("hidden", "hidden");
    trigger("drawn", {corners: corners});
});

element.addEventListener("pointercancel", () => { corner = null; });
