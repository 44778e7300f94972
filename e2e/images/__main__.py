"""The command line: `python -m e2e.images VERB`."""

import argparse
import sys

from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import cache_root
from e2e.cluster.progress import Progress
from e2e.images import builders
from e2e.images.build import PARTS, build_images, image_name
from e2e.images.check import check_image

DESCRIPTION = """\
Builds docker.io/kvasir/operator:dev and docker.io/kvasir/runtime:dev with docker, podman or buildah, whichever answers.
Where no registry gives the base image, debootstrap makes it under the same name. Settings of this machine's pip (index,
local wheels, certificates) are mounted into the build and are in no image.
"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m e2e.images", description=DESCRIPTION, formatter_class=raw)
    top.add_argument("verb", choices=("build", "check"), help="build images, or check what built ones promise")
    top.add_argument("part", nargs="*", help=f"which ({', '.join(PARTS)}; default: all)")
    top.add_argument(
        "--tool", choices=("auto", *builders.PREFERENCE), default="auto", help="what builds (default: auto)"
    )
    top.add_argument(
        "--accelerator", choices=("cpu", "cuda"), default="cpu", help="which torch the runtime gets (default: cpu)"
    )
    return top


def main() -> int:
    """Exit status: 0 done; 1 a step failed; 2 this machine or the command line does not allow it."""
    top = parser()
    options = top.parse_args()
    parts = options.part or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        top.error(f"there is no image {unknown[0]!r}: choose from {', '.join(PARTS)}")
    progress = Progress()
    try:
        if options.verb == "build":
            build_images(parts, options.tool, options.accelerator, cache_root(), progress)
        else:
            builder = builder_with([image_name(part) for part in parts], options.tool)
            for part in parts:
                check_image(part, builder, progress)
    except ClusterError as error:
        progress.say(f"[red]error:[/red] {error}")
        return error.exit_code
    progress.say(f"{options.verb}: {', '.join(map(image_name, parts))} in {progress.elapsed}")
    return 0


def builder_with(images: list[str], tool: str) -> builders.Name:
    """The builder whose storage holds the images.

    Raises:
        ClusterError: none does.
    """
    for name in builders.PREFERENCE:
        if (
            tool in ("auto", name)
            and builders.available(name)
            and all(builders.has_image(name, image) for image in images)
        ):
            return name
    raise ClusterError(f"no builder here holds {' and '.join(images)}: run `python -m e2e.images build` first")


if __name__ == "__main__":
    sys.exit(main())
