"""`python -m data_prep mimic`: CheXzero's own training set, from MIMIC-CXR-JPG and MIMIC-CXR's reports.

Writes the list of images, the images at 320 x 320, and one impression per image. Row i of each is the same image.
Both releases are on PhysioNet, under a data use agreement.
"""

import argparse

from chexzero.data_process import get_cxr_path_csv, get_cxr_paths_list, img_to_hdf5, write_report_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv_out_path", default="data/cxr_paths.csv", metavar="FILE", help="CSV of the image paths to write"
    )
    parser.add_argument(
        "--cxr_out_path", default="data/cxr.h5", metavar="FILE", help="HDF5 of the prepared images to write"
    )
    parser.add_argument(
        "--mimic_impressions_path",
        default="data/mimic_impressions.csv",
        metavar="FILE",
        help="CSV of the impressions to write",
    )
    parser.add_argument("--chest_x_ray_path", required=True, metavar="DIR", help="`files` folder of MIMIC-CXR-JPG")
    parser.add_argument(
        "--radiology_reports_path", required=True, metavar="DIR", help="`files` folder of MIMIC-CXR's reports"
    )


def run(args: argparse.Namespace) -> None:
    get_cxr_path_csv(args.csv_out_path, args.chest_x_ray_path)
    paths = get_cxr_paths_list(args.csv_out_path)
    # Reports first: they take seconds, so a wrong folder is detected before the images take hours.
    write_report_csv(paths, args.radiology_reports_path, args.mimic_impressions_path)
    img_to_hdf5(list(paths), args.cxr_out_path)
    print(f"{len(paths)} images in {args.cxr_out_path}, their impressions in {args.mimic_impressions_path}")
