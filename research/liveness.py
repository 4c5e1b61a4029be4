"""Is SepBN alive: do its sets differ, does attention follow the input, does it matter?

    python research/liveness.py CHECKPOINT ... --data DATA [--out FILE.csv]

Tables in Markdown about trained networks with SepBN on the test faces of DATA; FILE.csv has a row
for every network and module.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from dataset.annotations import ATTRIBUTES
from dataset.faces import FaceSet, load_faces
from evaluation.attention import attention_weights, cohens_d, relative_distances, sepbn_modules
from evaluation.evaluate import bootstrap_means, face_errors, paired_difference, require_same_points
from evaluation.tables import markdown_table
from models.checkpoint import LoadedModel, load_model
from models.vanilla import NUM_STAGES, VanillaCNN
from utils.device import select_device
from utils.files import UserError, atomic_write, reports_user_errors
from utils.metrics import nme

COLUMNS = (
    *("checkpoint", "seed", "n_test", "module", "scale_distance", "shift_distance"),
    *("attention_std", "nme_percent", "uniform_points", "uniform_low", "uniform_high"),
    *("constant_points", "constant_low", "constant_high"),
)
Cells = tuple[str, ...]  # a line of a table
PERMUTATIONS = 500
OF_MODULES = ("scale_distance", "shift_distance", "attention_std")


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
                channels = module.num_features // module.groups
                share = share.repeat_interleave(channels, dim=1)  # (K, C)

                for sets in (module.weight, module.bias):
                    # All K sets alike: their mean is the mixture.
                    sets.copy_((share * sets).sum(dim=0).expand_as(sets))

    return model


def liveness(checkpoints: list[Path], faces: FaceSet, out: Path, *, device: torch.device) -> str:
    """Markdown about networks with SepBN on test faces; the numbers also go to the CSV ``out``."""
    rows: list[dict[str, Any]] = []
    effects, modules, labels = [], [], []

    for path in checkpoints:
        loaded = load_sepbn(path, faces)
        prediction, weights = attention_weights(loaded.model, faces, device=device)
        learnt = nme(prediction, faces.crop_landmarks().double().numpy(), faces.scheme.outer_eyes)
        seed = loaded.config.get("seed", "")
        network = {"checkpoint": loaded.name, "seed": seed, "n_test": len(faces)}

        effect = effect_of_attention(loaded.model, faces, learnt, weights, device)
        found = differences_of_sets(loaded.model, weights)
        rows.append(network | {"module": "all"} | effect)
        rows += [network | row for row in found]

        changes = [_interval(effect, name) for name in ("uniform", "constant")]
        effects.append((loaded.name, f"{float(effect['nme_percent']):.2f}", *changes))
        cells = (" / ".join(f"{float(row[name]):.3f}" for name in OF_MODULES) for row in found)
        modules.append((loaded.name, *cells))
        labels += [(loaded.name, *line) for line in attention_by_label(weights, face_labels(faces))]

    with atomic_write(out, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    return _report(len(faces), effects, modules, labels)


def load_sepbn(path: Path, faces: FaceSet) -> LoadedModel:
    """A network with SepBN that fits the faces; anything else is refused."""
    loaded = load_model(path)
    require_same_points(loaded, faces)
    if loaded.config["norm"] != "sepbn":
        raise UserError(
            f"{path}: no SepBN in it ({loaded.config['arm']}); name SepBN checkpoints only"
        )
    return loaded


def effect_of_attention(
    model: VanillaCNN, faces: FaceSet, learnt: np.ndarray, weights: np.ndarray, device: torch.device
) -> dict[str, str]:
    """NME, and its change where attention is uniform, and where it is its own mean: columns of the
    CSV.

    Args:
        learnt: (N,) errors of the network as it is.
        weights: (N, M, G, K) its attention.
    """
    effect = {"nme_percent": f"{100 * learnt.mean():.4f}"}

    for name, given in (("uniform", None), ("constant", weights.mean(axis=0))):
        changed = face_errors(constant_attention(model, given), faces, device=device)
        errors = np.stack([learnt, changed])
        found = paired_difference(bootstrap_means(errors), errors)
        for key, value in (("points", "difference"), ("low", "low"), ("high", "high")):
            effect[f"{name}_{key}"] = f"{100 * found[value]:+.4f}"

    return effect


def differences_of_sets(model: VanillaCNN, weights: np.ndarray) -> list[dict[str, str]]:
    """How far apart the sets of every module are, and how much attention moves: rows of the CSV."""
    spread = weights.std(axis=0).max(axis=(1, 2))  # (N, M, G, K) -> (M,)
    rows = []

    for (name, module), std in zip(sepbn_modules(model).items(), spread, strict=True):
        row = {"module": name, "attention_std": f"{std:.4f}"}
        for column, sets in (("scale_distance", module.weight), ("shift_distance", module.bias)):
            distances = relative_distances(sets.detach().cpu().numpy())
            row[column] = f"{distances.max() if distances.size else 0:.4f}"
        rows.append(row)

    return rows


def _report(faces: int, effects: list[Cells], modules: list[Cells], labels: list[Cells]) -> str:
    of_modules = ("network", *(f"bn{stage}" for stage in range(1, NUM_STAGES + 1)))
    tables = {
        f"{faces} test faces. Change of the NME (points, 95 % over faces) when attention cannot "
        "see the input:": (("network", "NME %", "uniform 1/K", "its mean over the faces"), effects),
        "Largest relative distance of two sets of scales / of shifts / largest std of an attention "
        "weight over faces:": (of_modules, modules),
        "Attention against what is true of the face: the largest |Cohen's d| of all weights, "
        f"and the 95 % quantile of that under {PERMUTATIONS} random labellings (above it: more "
        "than chance):": (("network", "label", "faces", "largest d", "by chance"), labels),
    }

    return "\n\n".join(
        f"{words}\n\n{markdown_table(heads, lines, aligned=False)}"
        for words, (heads, lines) in tables.items()
        if lines
    )


def _interval(effect: dict[str, str], name: str) -> str:
    points, low, high = (float(effect[f"{name}_{key}"]) for key in ("points", "low", "high"))
    return f"{points:+.2f} ({low:+.2f} … {high:+.2f})"


def face_labels(faces: FaceSet) -> dict[str, np.ndarray]:
    """Label -> (N,) mask: the six attributes, and the prepared folder where there are several."""
    found = dict(zip(ATTRIBUTES, faces.attributes.T, strict=True))
    homes = np.array([path.parent.parent.name for path in faces.paths])
    if len(set(homes)) > 1:
        found |= {f"domain {home}": homes == home for home in sorted(set(homes))}
    return {name: mask for name, mask in found.items() if min(mask.sum(), (~mask).sum()) >= 2}


def attention_by_label(weights: np.ndarray, labels: dict[str, np.ndarray]) -> list[Cells]:
    """Lines of a table: how far attention (N, M, G, K) differs with the label, and by chance."""
    flat = weights.reshape(len(weights), -1)
    lines: list[Cells] = []
    random = np.random.default_rng(0)

    def largest(mask: np.ndarray) -> float:
        effect = np.abs(cohens_d(flat[mask], flat[~mask]))
        return float(np.nanmax(effect)) if np.isfinite(effect).any() else 0.0

    for name, mask in labels.items():
        chance = np.quantile([largest(random.permutation(mask)) for _ in range(PERMUTATIONS)], 0.95)
        found = (f"{mask.sum()} of {len(mask)}", f"{largest(mask):.2f}", f"{chance:.2f}")
        lines.append((name, *found))

    return lines


def separation(
    checkpoints: list[Path], first: FaceSet, second: FaceSet, *, device: torch.device
) -> str:
    """Markdown: how well the best single attention weight tells two sets of faces apart."""
    heads = ("network", "best AUC of a weight", "of module, group, set", "by chance")
    lines = []

    for path in checkpoints:
        loaded = load_sepbn(path, first)
        of_first, of_second = (
            attention_weights(loaded.model, faces, device=device)[1] for faces in (first, second)
        )
        found = separability(of_first, of_second)  # (M, G, K)
        where = np.unravel_index(found.argmax(), found.shape)

        both = np.concatenate([of_first, of_second])
        random = np.random.default_rng(0)
        chance = []
        for _ in range(PERMUTATIONS):
            order = random.permutation(len(both))
            chance.append(separability(both[order[: len(first)]], both[order[len(first) :]]).max())
        place = ", ".join(str(index + 1) for index in where)
        bound = np.quantile(chance, 0.95)
        lines.append((loaded.name, f"{found.max():.3f}", place, f"{bound:.3f}"))

    return markdown_table(heads, lines, aligned=False)


def separability(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How well each of several numbers tells two groups apart: 0.5 not at all, 1 without an error.

    It is the area under the ROC curve, taken for the better of the two directions.

    Args:
        first: (A, ...) numbers of the one group.
        second: (B, ...) of the other.

    Returns:
        (...) float64.
    """
    above = (first[:, None] > second[None]).mean(axis=(0, 1))
    equal = (first[:, None] == second[None]).mean(axis=(0, 1))
    area = above + equal / 2
    return np.maximum(area, 1 - area)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared folder")
    parser.add_argument("--out", type=Path, default=Path("liveness.csv"), metavar="FILE.csv")
    parser.add_argument("--limit", type=int, metavar="N", help="first N test faces only")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)

    faces = load_faces(args.data, "test", limit=args.limit)
    print(liveness(args.checkpoints, faces, args.out, device=select_device(args.device)))

    return 0


if __name__ == "__main__":
    sys.exit(main())
