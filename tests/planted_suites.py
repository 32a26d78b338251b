"""A small labelled corpus and two artificial models of it: a perfect one and a random one."""

import argparse
import zlib

import h5py
import numpy as np
import pandas as pd

from chexzero.common.labels import LABELS
from chexzero.suites import EvaluationContext, add_arguments
from chexzero.suites.finding_prompts import read_prompts

SIDES = ["small left pleural effusion.", "small right pleural effusion."]
GRADES = ["mild pulmonary edema today.", "severe pulmonary edema today."]
DIM = 512


class PlantedContext(EvaluationContext):
    """The context of a model defined by two functions: ids -> image features, texts -> text features."""

    def plant(self, of_image, of_text):
        self.of_image, self.of_text = of_image, of_text
        return self

    def image_features(self, images, rows=None):
        ids, _ = self.image_ids(images)
        ids = ids if rows is None else [ids[row] for row in rows]
        return np.stack([unit(self.of_image(name)) for name in ids]).astype(np.float32)

    def text_features(self, texts):
        return np.stack([unit(self.of_text(text)) for text in texts]).astype(np.float32)


def unit(vector):
    return vector / np.linalg.norm(vector)


def noise(text, salt=0):
    return np.random.default_rng(zlib.crc32(text.encode()) + salt).normal(size=DIM)


class Corpus:
    """Two small sets on disk as `data_prep` leaves them, and the models that know or do not know them."""

    def __init__(self, folder, n=240):
        self.folder, rng = folder, np.random.default_rng(5)
        self.table, self.reports = {}, {}
        for part in ("valid", "test"):
            view = rng.choice(["frontal", "lateral"], n, p=[0.7, 0.3])
            ids = [f"chexpert_plus/{part}/patient{i // 2:05d}/study1/view{i}_{view[i]}" for i in range(n)]
            labels = (rng.random((n, 14)) < np.linspace(0.1, 0.5, 14)).astype(int)
            frame = pd.DataFrame(labels, columns=LABELS)
            for column, values in (
                ("view", view),
                ("study_id", [name.rsplit("/", 1)[0] for name in ids]),
                ("patient_id", ["/".join(name.split("/")[1:3]) for name in ids]),
                ("id", ids),
            ):
                frame.insert(0, column, values)
            people = pd.DataFrame(
                {
                    "id": ids,
                    "sex": np.repeat(rng.choice(["Male", "Female"], n // 2), 2),
                    "race": rng.choice(["White, non-Hispanic", "Asian", ""], n),
                    "age": rng.integers(20, 95, n),
                    "ap_pa": np.where(view == "lateral", "", rng.choice(["AP", "PA"], n)),
                }
            )
            self.write(part, ids, frame, people.sample(frac=1, random_state=0))  # manifests are in another order
            frame["ap_pa"] = people["ap_pa"]
            self.table[part] = frame.set_index("id")
            for name in ids:
                self.reports[name] = f"{rng.choice(SIDES)} {rng.choice(GRADES)} no effusion. case {rng.integers(60)}."
        pd.DataFrame(self.reports.items(), columns=["id", "impression"]).to_csv(folder / "reports.csv", index=False)

    def write(self, part, ids, labels, people):
        for name in ("data", "splits"):
            (self.folder / name).mkdir(exist_ok=True)
        with h5py.File(self.folder / "data" / f"{part}.h5", "w") as handle:
            handle["cxr"] = np.zeros((len(ids), 2, 2), np.uint8)
            handle.create_dataset("id", data=ids, dtype=h5py.string_dtype())
        labels.to_csv(self.folder / "data" / f"{part}_labels.csv", index=False)
        people.to_csv(self.folder / "splits" / f"{part}.csv", index=False)

    def context(self, *flags, seed=1234):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        options = vars(parser.parse_args(["--report_texts", str(self.folder / "reports.csv"), *flags]))
        return PlantedContext(
            None, "cpu", self.folder / "data", self.folder / "splits", self.folder / "out", seed=seed, options=options
        )

    def random(self, *flags, salt=0):
        return self.context(*flags, seed=salt).plant(lambda name: noise(name, salt), lambda text: noise(text, salt))

    def knowing(self, *flags):
        """A model whose features encode the labels (0 to 13), the view (14 to 16) and the report's sentences."""
        prompts = read_prompts()
        views = {
            text: 14 + i
            for i, text in enumerate(
                ("AP portable chest radiograph", "PA chest radiograph", "lateral chest radiograph")
            )
        }
        signed = {}  # text -> (column, 1 or -1)
        for j, label in enumerate(LABELS):
            entry = prompts["findings"][prompts["aliases"].get(label, label)]
            names = [label, label.lower(), *entry["phrases"]]
            signed |= {name: (j, -1) for name in [*(f"no {name}" for name in names), *entry.get("negative", [])]}
            signed |= {name: (j, 1) for name in names}  # last: "no acute cardiopulmonary process" is one of Normal's

        def of_text(text):
            vector = np.zeros(DIM)
            members = text.replace(" and ", ", ").split(", ")
            if text in views:
                vector[views[text]] = 1
            elif text in signed:
                vector[signed[text][0]] = signed[text][1]
            elif len(members) > 1 and set(members) <= set(signed):
                vector[:14] = -1
                vector[[signed[name][0] for name in members]] = 1
            else:
                vector[20:] = sentence_vector(text)
            return vector

        def of_image(name):
            row = self.table[name.split("/")[1]].loc[name]
            vector = np.zeros(DIM)
            vector[:14] = row[LABELS].to_numpy(float) * 2 - 1
            vector[14 + ["AP", "PA", ""].index(row["ap_pa"])] = 3
            vector[20:] = sentence_vector(self.reports[name])
            return vector

        return self.context(*flags).plant(of_image, of_text)


def sentence_vector(text):
    """A report is the sum of its sentences: nearest to itself, and nearer to its own sentences than to others."""
    return sum(unit(noise(part.strip()))[20:] for part in text.split(".") if part.strip())
