"""`python -m data_prep chexpert-test`: CheXzero's own test file, the first view of each test study of CheXpert."""

import argparse

import pandas as pd

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path
from chexzero.data_process import get_cxr_path_csv, get_cxr_paths_list, img_to_hdf5

FIRST_VIEW = "view1"
N_STUDIES = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv_out_path", default="data/test_cxr_paths.csv", metavar="FILE", help="CSV of the image paths to write"
    )
    parser.add_argument(
        "--cxr_out_path", default="data/test_cxr.h5", metavar="FILE", help="HDF5 of the prepared images to write"
    )
    parser.add_argument("--chest_x_ray_path", required=True, metavar="DIR", help="`test` folder of CheXpert")
    parser.add_argument("--n_images", type=int, default=N_STUDIES, metavar="N", help="expected number of first views")


def run(args: argparse.Namespace) -> None:
    get_cxr_path_csv(args.csv_out_path, args.chest_x_ray_path)
    paths = sorted(path for path in get_cxr_paths_list(args.csv_out_path) if FIRST_VIEW in path)
    if len(paths) != args.n_images:
        raise UserError(
            f"{args.chest_x_ray_path} has {len(paths)} images with {FIRST_VIEW} in their path instead of "
            f"{args.n_images}; name only the test folder, or give the expected number with --n_images"
        )
    with atomic_path(args.csv_out_path) as temporary:
        pd.DataFrame({"Path": paths}).to_csv(temporary, index=False)
    img_to_hdf5(paths, args.cxr_out_path)
    print(f"{len(paths)} images in {args.cxr_out_path}")
