"""Which release's split plays which role."""

from pathlib import Path

from chexzero.common.errors import UserError
from chexzero.common.files import read_yaml
from data_prep.releases import DATASETS, LABELLED_ROLES

ROLES = ("train", *LABELLED_ROLES)
#: The role of images that `--keep_out` lists: no set is written of them, but the audit compares training with them.
KEPT_OUT = "kept_out"
ROLES_FILE = Path(__file__).with_name("roles.yaml")


def read_roles(path: str | Path = ROLES_FILE) -> dict[str, dict[str, list[str]]]:
    """Read the definition of the roles: role -> release -> its splits. No split may play two roles.

    A dataset's name instead of a file gives that dataset's own splits their roles.
    """
    if str(path) in DATASETS:
        return _roles_of(str(path))
    roles = read_yaml(path, "name the definition of the roles, or a dataset, with --roles")
    whole = isinstance(roles, dict) and set(roles) == set(ROLES) and all(isinstance(r, dict) for r in roles.values())
    if not whole:
        raise UserError(f"{path} must define exactly the roles {', '.join(ROLES)}, each as `release: [splits]`")
    played: dict[tuple[str, str], str] = {}
    for role in ROLES:
        for release, splits in roles[role].items():
            dataset = DATASETS.get(release)
            if dataset is None or not isinstance(splits, list) or not set(splits) <= set(dataset.splits):
                known = "; ".join(f"{name}: {', '.join(one.splits)}" for name, one in DATASETS.items())
                raise UserError(f"{path}: {role} names {release}: {splits}, but there are only {known}")
            if role in LABELLED_ROLES and not dataset.labels:
                raise UserError(f"{path}: {release} has no labels, so it can only play the role train")
            for split in splits:
                images = (dataset.images_of or release, split)
                if images in played:
                    raise UserError(
                        f"{path}: the {split} images of {release} are named for {played[images]} and for "
                        f"{role}; name them once (CheXpert and CheXpert-Plus have the same images)"
                    )
                played[images] = role
        if not roles[role]:
            raise UserError(f"{path}: {role} names no release")
    return {role: roles[role] for role in ROLES}


def _roles_of(name: str) -> dict[str, dict[str, list[str]]]:
    """The roles that a dataset's own training, validation and test splits play."""
    dataset = DATASETS[name]
    named = {role: [split for split in dataset.splits if split.startswith(role)] for role in ROLES}
    if not all(named.values()) or not dataset.labels:
        raise UserError(
            f"{name} has no labelled training, validation and test splits; write a file of roles for --roles"
        )
    return {role: {name: splits} for role, splits in named.items()}
