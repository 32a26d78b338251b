"""The fourteen CheXpert labels in CheXzero's order, and the groups that means are taken over."""

LABELS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]

NO_FINDING = "No Finding"

#: The five labels of the CheXpert competition; CheXzero's headline mean and its selection metric.
COMPETITION_LABELS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]

#: All but `No Finding`: its negative prompt, "no No Finding", is a double negative.
FINDINGS = [label for label in LABELS if label != NO_FINDING]

#: Column of `metrics.csv` and key of `metrics.json` -> the labels whose AUROCs it averages.
MEANS = {"mean_5": COMPETITION_LABELS, "mean_13": FINDINGS, "mean_14": LABELS}

#: The same keys -> what the mean is over, in words.
MEAN_TITLES = {"mean_5": "the 5 competition labels", "mean_13": "the 13 findings", "mean_14": "all 14 labels"}

#: Key of the mean over the labels that have enough cases in a set; its labels depend on the set.
COUNTED = "mean_counted"

#: Upstream's pair of prompts: a finding's name and its denial.
PAIR_TEMPLATE = ("{}", "no {}")
