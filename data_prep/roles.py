"""Which release's split plays which role, and what the overlap audit is given and gives back."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from chexzero.common.errors import UserError
from chexzero.common.files import require_file

if TYPE_CHECKING:
    pass

ROLES = ("train", "valid", "test")
ROLES_FILE = Path(__file__).with_name("roles.yaml")  # a link to splits/roles.yaml; a package carries its own copy

#: release -> the splits it has
RELEASES = {
    "chexpert_plus": ("train", "valid", "test"),
    "chexpert": ("valid", "test"),
    "rexgradient": ("train", "valid", "test"),
}


def read_roles(path: str | Path = ROLES_FILE) -> dict[str, dict[str, list[str]]]:
    """Read the definition of the roles: role -> release -> its splits. No split may play two roles."""
    path = require_file(path, "name the definition of the roles with --roles")
    try:
        roles = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it") from error
    whole = isinstance(roles, dict) and set(roles) == set(ROLES) and all(isinstance(r, dict) for r in roles.values())
    if not whole:
        raise UserError(f"{path} must define exactly the roles {', '.join(ROLES)}, each as `release: [splits]`")
    played: dict[tuple[str, str], str] = {}
    for role in ROLES:
        for release, splits in roles[role].items():
            if release not in RELEASES or not isinstance(splits, list) or not set(splits) <= set(RELEASES[release]):
                known = "; ".join(f"{name}: {', '.join(names)}" for name, names in RELEASES.items())
                raise UserError(f"{path}: {role} names {release}: {splits}, but there are only {known}")
            for split in splits:
                images = ("rexgradient" if release == "rexgradient" else "chexpert", split)
                if images in played:
                    raise UserError(
                        f"{path}: the {split} images of {release} are named for {played[images]} and for "
                        f"{role}; name them once (CheXpert and CheXpert-Plus have the same images)"
                    )
                played[images] = role
        if not roles[role]:
            raise UserError(f"{path}: {role} names no release")
    if "rexgradient" in roles["valid"] or "rexgradient" in roles["test"]:
        raise UserError(f"{path}: rexgradient has no labels, so it can only play the role train")
    if "chexpert" in roles["train"]:
        raise UserError(f"{path}: chexpert has no reports, so it can only play the roles valid and test")
    return {role: roles[role] for role in ROLES}
