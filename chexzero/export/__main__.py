"""Write a trained model in a form that other libraries load: `python -m chexzero.export --run ... --to hf DIR`.

`hf` gives a folder for transformers (`VisionTextDualEncoderModel` for a DINOv3 tower, `CLIPModel` for a vision
transformer of CLIP), `open_clip` one for `open_clip.create_model("local-dir:DIR")`, `onnx` two graphs and a
tokenizer. Each folder holds a model card with the run's records and the code to read an image.
"""

import chexzero.common.interrupts  # noqa: F401  (first: the other imports take seconds)

import argparse
from pathlib import Path

from chexzero.common.errors import EXIT_CODES, run_command
from chexzero.export.model_card import model_card
from chexzero.export.write import WRITERS, export
from chexzero.models.checkpoints import load_model
from chexzero.runs.run_folder import read_run


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chexzero.export",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to export")
    what.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="folder that run_train.py wrote: checkpoints/<name>"
    )
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint other than the selected one")
    where = parser.add_argument_group("target")
    where.add_argument("--to", choices=list(WRITERS), required=True, help="library that will load the model")
    where.add_argument("folder", type=Path, metavar="DIR", help="new folder to write")
    where.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder with the run's metrics.json, for the model card (default: results/<name>)",
    )
    where.add_argument("--full_paths", action="store_true", help="show absolute paths in the model card (default: no)")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    run = read_run(args.run)
    checkpoint = args.checkpoint or run.selected()
    model = load_model(checkpoint)
    card = model_card(
        model, args.to, args.folder, run, checkpoint, args.results or Path("results") / args.run.name, args.full_paths
    )
    how = export(model, args.to, args.folder, card, run.image_size())
    print(f"wrote {args.folder} from {checkpoint}\nload it with {how}")


if __name__ == "__main__":
    run_command(main)
