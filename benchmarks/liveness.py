"""Is SepBN alive: do its sets differ, does attention follow the input, does it matter? And faces to ask that of.

Used by ``benchmarks/experiments.py``, which explains the suites.
"""

from __future__ import annotations

import copy
import csv
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

from dataset import createSynthetic, createWFLW256
from dataset.annotations import ATTRIBUTES, read_crop_list, write_crop_list
from dataset.faces import FaceSet, list_path
from evaluation.attention import attention_weights, cohens_d, relative_distances, sepbn_modules
from evaluation.evaluate import bootstrap_means, face_errors, paired_difference, require_same_points
from models.checkpoint import load_model
from models.vanilla import VanillaCNN
from utils.files import InputError, atomic_write, make_folder
from utils.metrics import nme

COLUMNS = ("checkpoint", "seed", "n_test", "module", "scale_distance", "shift_distance", "attention_std",
           "nme_percent", "uniform_points", "uniform_low", "uniform_high",
           "constant_points", "constant_low", "constant_high")  # fmt: skip
PERMUTATIONS = 500
# Sub-domains of synthetic faces: what createSynthetic.py leaves out of each. A mixture of D takes the first D.
DOMAINS = {
    "plain": ("pose", "lighting", "occluders", "backgrounds"),
    "lighting": ("pose", "occluders", "backgrounds"),
    "pose": ("lighting", "occluders", "backgrounds"),
    "cluttered": ("pose", "lighting"),
}


def constant_attention(model: VanillaCNN, weights: np.ndarray | None = None) -> VanillaCNN:
    """A copy whose attention is the same for every input.

    Args:
        model: a network with SepBN.
        weights: (M, G, K), what module m gives the sets of group g; None for 1/K each.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for m, module in enumerate(sepbn_modules(model).values()):
            module.fc2.weight.zero_()  # equal logits: 1/K whatever the input
            if weights is not None:
                share = torch.from_numpy(weights[m]).to(module.weight).T  # (G, K) -> (K, G)
                share = share.repeat_interleave(module.num_features // module.groups, dim=1)  # (K, C)
                for sets in (module.weight, module.bias):
                    sets.copy_((share * sets).sum(dim=0).expand_as(sets))  # all K sets alike: their mean is the mixture
    return model


def liveness(checkpoints: list[Path], faces: FaceSet, out: Path, *, device: torch.device) -> str:
    """Markdown about networks with SepBN on test faces; the same numbers go to the CSV file ``out``."""
    rows, nmes, modules, labels = [], [], [], []
    for path in checkpoints:
        loaded = load_model(path)
        require_same_points(loaded, faces)
        if loaded.config["norm"] != "sepbn":
            raise InputError(f"{path}: no SepBN in it ({loaded.config['arm']}); name SepBN checkpoints only")
        prediction, weights = attention_weights(loaded.model, faces, device=device)
        learnt = nme(prediction, faces.crop_landmarks().double().numpy(), faces.scheme.outer_eyes)
        row = {"checkpoint": loaded.name, "seed": loaded.config.get("seed", ""), "n_test": len(faces)}
        effect = {"nme_percent": f"{100 * learnt.mean():.4f}"}
        for name, given in (("uniform", None), ("constant", weights.mean(axis=0))):
            errors = np.stack([learnt, face_errors(constant_attention(loaded.model, given), faces, device=device)])
            found = paired_difference(bootstrap_means(errors), errors)
            effect |= {f"{name}_{key}": f"{100 * found[value]:+.4f}"
                       for key, value in (("points", "difference"), ("low", "low"), ("high", "high"))}  # fmt: skip
        rows.append(row | {"module": "all"} | effect)
        nmes.append(f"| {loaded.name} | {float(effect['nme_percent']):.2f} | {_interval(effect, 'uniform')} | "
                    f"{_interval(effect, 'constant')} |")  # fmt: skip
        spread = weights.std(axis=0).max(axis=(1, 2))  # (N, M, G, K) -> (M,)
        cells = []
        for (name, module), std in zip(sepbn_modules(loaded.model).items(), spread, strict=True):
            distances = [relative_distances(sets.detach().cpu().numpy()) for sets in (module.weight, module.bias)]
            scale, shift = (float(values.max()) if values.size else 0.0 for values in distances)
            rows.append(row | {"module": name, "scale_distance": f"{scale:.4f}", "shift_distance": f"{shift:.4f}",
                               "attention_std": f"{std:.4f}"})  # fmt: skip
            cells.append(f"{scale:.3f} / {shift:.3f} / {std:.3f}")
        modules.append(f"| {loaded.name} | {' | '.join(cells)} |")
        labels += [f"| {loaded.name} | {line} |" for line in attention_by_label(weights, face_labels(faces))]
    with atomic_write(out, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    names = [row["module"] for row in rows if row["checkpoint"] == rows[0]["checkpoint"] and row["module"] != "all"]
    parts = [
        f"{len(faces)} test faces. Change of the NME (points, 95 % over faces) when attention cannot see the input:",
        "",
        "| network | NME % | uniform 1/K | its mean over the faces |",
        "|---|---|---|---|",
        *nmes,
        "",
        "Largest relative distance of two sets of scales / of shifts / largest std of an attention weight over faces:",
        "",
        f"| network | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
        *modules,
    ]
    if labels:
        parts += [
            "",
            "Attention against what is true of the face: the largest |Cohen's d| of all weights, and the 95 % quantile "
            f"of that under {PERMUTATIONS} random labellings (above it: more than chance):",
            "",
            "| network | label | faces | largest d | by chance |",
            "|---|---|---|---|---|",
            *labels,
        ]
    return "\n".join(parts)


def _interval(effect: dict[str, str], name: str) -> str:
    points, low, high = (float(effect[f"{name}_{key}"]) for key in ("points", "low", "high"))
    return f"{points:+.2f} ({low:+.2f} … {high:+.2f})"


def face_labels(faces: FaceSet) -> dict[str, np.ndarray]:
    """Label -> (N,) mask: the six attributes, and the prepared folder of a face where there are several."""
    found = dict(zip(ATTRIBUTES, faces.attributes.T, strict=True))
    homes = np.array([path.parent.parent.name for path in faces.paths])
    if len(set(homes)) > 1:
        found |= {f"domain {home}": homes == home for home in sorted(set(homes))}
    return {name: mask for name, mask in found.items() if min(mask.sum(), (~mask).sum()) >= 2}


def attention_by_label(weights: np.ndarray, labels: dict[str, np.ndarray]) -> list[str]:
    """Table lines: how far attention (N, M, G, K) of the labelled faces lies from that of the others, and by chance."""
    flat = weights.reshape(len(weights), -1)
    random = np.random.default_rng(0)

    def largest(mask: np.ndarray) -> float:
        effect = np.abs(cohens_d(flat[mask], flat[~mask]))
        return float(np.nanmax(effect)) if np.isfinite(effect).any() else 0.0

    lines = []
    for name, mask in labels.items():
        chance = np.quantile([largest(random.permutation(mask)) for _ in range(PERMUTATIONS)], 0.95)
        lines.append(f"{name} | {mask.sum()} of {len(mask)} | {largest(mask):.2f} | {chance:.2f}")
    return lines


def mixture(folder: Path, count: int, total: int) -> Path:
    """A prepared folder of ``total`` training and a quarter as many test faces, drawn alike from ``count`` sub-domains.

    Faces are drawn and prepared where missing; the mixture's lists point at them. No person is in two sub-domains.
    """
    # The largest share of each sub-domain, in the smallest of the mixtures of 1, 2 and 4 that has it.
    needed = {"plain": total, "lighting": total // 2, "pose": total // 4, "cluttered": total // 4}
    mixed = make_folder(folder / f"mixture{count}_of_{total}")
    parts: dict[str, list] = {"train": [], "test": []}
    for seed, (name, without) in enumerate(list(DOMAINS.items())[:count]):
        drawn, prepared = folder / f"{name}_{total}_drawn", folder / f"{name}_{total}" / name
        make_folder(prepared.parent)
        argv = ["--out", str(drawn), "--train", str(needed[name]), "--test", str(max(2, needed[name] // 4))]
        with redirect_stdout(sys.stderr):
            for step, options in (
                (createSynthetic, [*argv, "--seed", str(seed), "--without", *without]),
                (createWFLW256, ["--wflw", str(drawn), "--out", str(prepared)]),
            ):
                if step.main(options):
                    raise InputError(f"the faces of sub-domain {name} could not be made, see above")
        for split, faces in parts.items():
            landmarks, patches = read_crop_list(list_path(prepared, split))
            share = (total if split == "train" else max(2 * count, total // 4)) // count
            faces.append((landmarks[:share], patches[:share]))
        (mixed / "meta.json").write_bytes((prepared / "meta.json").read_bytes())
    for split, faces in parts.items():
        landmarks, patches = np.concatenate([part for part, _ in faces]), [path for _, part in faces for path in part]
        write_crop_list(list_path(mixed, split), landmarks, patches)
    return mixed
