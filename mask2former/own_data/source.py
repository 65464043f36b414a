"""Finding out what ``--data`` is, and writing it as an entry of ``DATASETS.CUSTOM``."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mask2former.data.datasets.entry import FORMATS
from mask2former.data.datasets.files import MASK_SUFFIXES, find_files, read_lines
from mask2former.data.datasets.formats.labelme import labelme_names
from mask2former.data.datasets.formats.palette import looks_like_palette, read_palette
from mask2former.data.datasets.formats.paths import spellings
from mask2former.data.datasets.json_files import read_json
from mask2former.home import expand_home
from mask2former.own_data.archive import unpack
from mask2former.own_data.yolo_yaml import labels_beside, read_yolo_yaml

__all__ = ["Entry", "Given", "find_entries"]

Entry = dict[str, Any]

_IMAGE_FOLDERS = ("images", "JPEGImages")
_INSTANCE_FOLDERS = ("instances", "SegmentationObject")
_CLASS_FOLDERS = ("classes", "SegmentationClass")
_YOLO_FILES = ("data.yaml", "data.yml")
_CLASS_FILES = ("classes.txt", "labelmap.txt", "colors.txt", "class_dict.csv")


@dataclass(frozen=True)
class Given:
    """What the command line says of a data set.

    Attributes:
        data: Annotations: a COCO JSON, YOLO's data.yaml, a folder, or a zip of one of them.
        images: Folder of images; None looks where they usually are.
        segments: Folder of PNGs of a COCO panoptic JSON; None looks beside it.
        classes: Text file of class names, or table of classes and colours; None looks in the folder.
        things: Names of the classes that have instances, where PNGs of both instances and classes are given; () takes
            all but the background.
        format: One of ``FORMATS`` that the data are read as; None finds it out.
    """

    data: Path
    images: Path | None = None
    segments: Path | None = None
    classes: Path | None = None
    things: tuple[str, ...] = ()
    format: str | None = None


def find_entries(given: Given, *, of_other_data: Collection[str] = ()) -> tuple[Entry, Entry | None]:
    """The entry of the data, and that of validation data if the data name some.

    Args:
        given: The data.
        of_other_data: Attributes of ``given`` that other data may need alone.

    Raises:
        FileNotFoundError: Something is not there.
        ValueError: It is of no known format, or not of the one that is given, a file is wrong, or something is given
            that the format does not take.
    """
    if given.format not in (None, *FORMATS):
        raise ValueError(f"--format is {given.format}, expected one of {', '.join(FORMATS)}.")
    if given.classes is not None and not given.classes.is_file():
        raise FileNotFoundError(f"{given.classes}: no such file, but --classes names it.")
    data = expand_home(given.data).absolute()
    if not data.exists():
        raise FileNotFoundError(f"{given.data}: no such file or folder.")
    root = None
    if data.suffix.lower() == ".zip":
        data = root = unpack(data)
        images = data / given.images if given.images and not given.images.is_dir() else given.images
        given = replace(given, data=data, images=images)
    entries = _find_entries(given, data, root)
    _refuse_unused(given, entries[0], of_other_data)
    return entries


def _find_entries(given: Given, data: Path, root: Path | None) -> tuple[Entry, Entry | None]:
    if given.format:
        return _of_format(given, data, root)
    if data.is_dir():
        return _of_folder(given, data, root)
    if data.suffix.lower() == ".json":
        return _of_coco(given, data), None
    if data.suffix.lower() in (".yaml", ".yml"):
        return read_yolo_yaml(data)
    raise ValueError(
        f"{given.data}: is of no known format, expected a COCO JSON, YOLO's data.yaml, a folder (of Labelme's JSON "
        "files, of YOLO's labels, of PNGs) or a zip of one of these; or say what it is: --format "
        f"{', '.join(FORMATS)}."
    )


def _refuse_unused(given: Given, entry: Entry, of_other_data: Collection[str]) -> None:
    """Raise ValueError if something is given, for these data alone, that does not show in the entry."""
    shows = {
        "images": not given.images or entry["IMAGES"] == _text(given.images),
        "segments": not given.segments or "SEGMENTS" in entry,
        "classes": not given.classes or "PALETTE" in entry or entry.get("CLASS_NAMES") == read_lines(given.classes),
        "things": not given.things or "THINGS" in entry,
    }
    for option, does_show in shows.items():
        if not does_show and option not in of_other_data:
            raise ValueError(
                f"{given.data}: is read as {entry['FORMAT']}, where --{option} has no effect. Leave it out, or say "
                "what the data are: --format."
            )


def _of_format(given: Given, data: Path, root: Path | None) -> tuple[Entry, Entry | None]:
    """The entries of data whose format is said."""
    if given.format == "yolo_seg":
        yamls = [data / name for name in _YOLO_FILES] if data.is_dir() else [data]
        file = next((path for path in yamls if path.is_file()), None)
        return (_of_yolo_labels(given, data), None) if file is None else read_yolo_yaml(file, root)
    if given.format in ("coco_instance", "coco_panoptic"):
        entry = _of_coco(given, _the_coco_file(data) if data.is_dir() else data)
    elif not data.is_dir():
        raise ValueError(f"{given.data}: is a file, but --format {given.format} is a folder.")
    elif given.format == "labelme":
        entry = _of_labelme(given, data)
    else:
        instances, classes = _existing(data, _INSTANCE_FOLDERS), _existing(data, _CLASS_FOLDERS)
        if instances is None and classes is None:
            alone = given.format == "id_png" and _class_file(given, data) is None
            instances, classes = (data, None) if alone else (None, data)
        entry = _of_pngs(given, data, instances, classes)
    return entry, None


def _is_label(path: Path) -> bool:
    """Whether a text file may be YOLO's, and not notes: it begins with a number, or has no object."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        word = next(iter(file.read(100).split()), "0")
    return word.isascii() and word.replace(".", "", 1).isdigit()


def _refuse_other_folders(folder: Path) -> None:
    """Ask which folder the masks are in, where neither a name tells nor they are in the folder itself."""
    pictures = _existing(folder, _IMAGE_FOLDERS)
    places = {path.relative_to(folder).parts[:-1][:1] for path in find_files(folder, MASK_SUFFIXES)}
    if pictures is None or () in places:
        return
    others = sorted(name for (name,) in places if name != pictures.name)
    raise ValueError(
        f"{folder}: has pictures in {pictures.name}/, but no masks in a folder called "
        f"{' or '.join((*_INSTANCE_FOLDERS, *_CLASS_FOLDERS))}. If they are elsewhere, say so, as by --data "
        f"{folder / (others[0] if others else 'masks')} --images {pictures}. The numbers in PNGs are "
        "those of instances, or, with --classes FILE, of classes."
    )


def _the_coco_file(folder: Path) -> Path:
    found = find_files(folder, (".json",))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5])
        raise ValueError(f"{folder}: has {len(found)} JSON files ({names}), expected one; give it as --data.")
    return found[0]


def _of_folder(given: Given, folder: Path, root: Path | None) -> tuple[Entry, Entry | None]:
    for name in _YOLO_FILES:
        if (folder / name).is_file():
            return read_yolo_yaml(folder / name, root)
    if _existing(folder, _INSTANCE_FOLDERS) or _existing(folder, _CLASS_FOLDERS):
        return _of_pngs(given, folder, _existing(folder, _INSTANCE_FOLDERS), _existing(folder, _CLASS_FOLDERS)), None
    jsons = find_files(folder, (".json",))
    lists = {path: _names_of_lists(path) for path in (jsons if len(jsons) <= 20 else jsons[:5])}
    if any("shapes" in lists[path] for path in jsons[:5]):
        return _of_labelme(given, folder), None
    coco = [path for path in jsons if len(jsons) <= 20 and "annotations" in lists[path]]
    if len(coco) == 1:
        return _of_coco(given, coco[0]), None
    if coco:
        raise ValueError(
            f"{folder}: has {len(coco)} COCO files ({', '.join(path.name for path in coco[:5])}); give one as --data."
        )
    if any(path.name not in _CLASS_FILES and _is_label(path) for path in find_files(folder, (".txt",))):
        return _of_yolo_labels(given, folder), None
    if find_files(folder, MASK_SUFFIXES):
        _refuse_other_folders(folder)
        classes = _class_file(given, folder)
        return _of_pngs(given, folder, None if classes else folder, folder if classes else None), None
    raise ValueError(
        f"{folder}: has no annotations, expected data.yaml, JSON files, text files of polygons, PNGs, or folders "
        "called "
        f"{' or '.join((*_INSTANCE_FOLDERS, *_CLASS_FOLDERS))}. If it has, say what they are: --format "
        f"{', '.join(FORMATS)}."
    )


def _of_coco(given: Given, path: Path) -> Entry:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        hint = "; of Labelme's files give the folder" * (isinstance(content, dict) and "shapes" in content)
        raise ValueError(f'{path}: has no list "annotations", expected a COCO annotation file{hint}.')
    if not content.get("images"):
        raise ValueError(f'{path}: has no "images", expected a list of them.')
    panoptic = any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"])
    panoptic = panoptic if given.format is None else given.format == "coco_panoptic"
    near = _near(path)
    first = _first_name(content.get("images"))
    names = spellings(first) if first else ()
    images = given.images or _find(near, lambda folder: any((folder / name).is_file() for name in names))
    if images is None:
        raise FileNotFoundError(f"{path}: names images such as {first}, which are not beside it; say where: --images.")
    entry: Entry = {
        "FORMAT": "coco_panoptic" if panoptic else "coco_instance",
        "IMAGES": _text(images),
        "ANNOTATIONS": _text(path),
    }
    if panoptic:
        png = _first_name(content["annotations"])
        # PNGs may have the names of the images, and lie in a folder of the name of the JSON.
        candidates = [path.with_suffix(""), path.parent.parent / path.stem, *near]
        segments = given.segments or _find(
            candidates, lambda folder: png is not None and folder != images and (folder / png).is_file()
        )
        if segments is None:
            raise FileNotFoundError(
                f"{path}: names PNGs such as {png}, which are not beside it; say where: --segments."
            )
        entry["SEGMENTS"] = _text(segments)
    return entry


def _of_labelme(given: Given, folder: Path) -> Entry:
    names = read_lines(given.classes) if given.classes else list(labelme_names(folder))
    images = given.images or _existing(folder, _IMAGE_FOLDERS) or folder
    return {"FORMAT": "labelme", "IMAGES": _text(images), "ANNOTATIONS": _text(folder), "CLASS_NAMES": names}


def _of_yolo_labels(given: Given, folder: Path) -> Entry:
    classes = _class_file(given, folder)
    if classes is None:
        raise ValueError(
            f"{folder}: has YOLO's labels; say what the classes are called: --classes FILE, one name a line."
        )
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    images = given.images or _existing(folder, _IMAGE_FOLDERS)
    if images is None and "labels" in labels.parts:
        swapped = [part if part != "labels" else "images" for part in labels.parts]
        images = Path(*swapped) if labels_beside(Path(*swapped)) == labels else None
    if images is None or not images.is_dir():
        raise FileNotFoundError(f"{labels}: there are no images beside it; say where: --images.")
    return {"FORMAT": "yolo_seg", "IMAGES": _text(images), "LABELS": _text(labels), "CLASS_NAMES": read_lines(classes)}


def _of_pngs(given: Given, folder: Path, instances: Path | None, classes: Path | None) -> Entry:
    images = given.images or _existing(folder, _IMAGE_FOLDERS)
    if images is None:
        raise FileNotFoundError(f"{folder}: there are no images in a folder called images; say where: --images.")
    entry: Entry = {"FORMAT": "id_png", "IMAGES": _text(images)}
    if instances:
        entry["INSTANCES"] = _text(instances)
    class_file = _class_file(given, folder)
    if not classes:
        return {**entry, "CLASS_NAMES": read_lines(class_file)} if class_file else entry
    if class_file is None:
        raise ValueError(
            f"{classes}: say what the classes are called: --classes FILE, with one name a line for the values 0, 1, 2, "
            "..., or with colours (128 64 128 road)."
        )
    entry["CLASSES"] = _text(classes)
    if looks_like_palette(class_file) if given.format is None else given.format == "color_png":
        entry |= {"FORMAT": "color_png", "PALETTE": _text(class_file)}
        names: Iterable[str] = read_palette(class_file).names
    else:
        names = entry["CLASS_NAMES"] = read_lines(class_file)
    if instances:
        entry["THINGS"] = list(given.things) or [name for name in names if name not in ("void", "background")]
    return entry


def _class_file(given: Given, folder: Path) -> Path | None:
    if given.classes is not None:
        return given.classes
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def _near(path: Path) -> list[Path]:
    """Where what a COCO file names may be: beside it, or in a folder of its own or a usual name."""
    stem = path.stem
    names = ["", "images", "JPEGImages", stem, stem.partition("_")[2], f"panoptic_{stem}", stem.rpartition("_")[2]]
    names += [f"images/{name}" for name in names[3:] if name]
    return [parent / name for parent in (path.parent, path.parent.parent) for name in names]


def _find(folders: Iterable[Path], has_it: Callable[[Path], bool]) -> Path | None:
    return next((folder for folder in folders if has_it(folder)), None)


def _first_name(entries: Any) -> str | None:
    first = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}
    name = first.get("file_name")
    return name if isinstance(name, str) and "\0" not in name and len(name) < 1000 else None


def _existing(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _names_of_lists(path: Path) -> set[str]:
    """The keys of a JSON file whose values are lists; none where it cannot be read, which is told when it is needed."""
    try:
        content = read_json(path)
    except ValueError:
        return set()
    return {key for key, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else set()


def _text(path: Path) -> str:
    return str(expand_home(path).absolute())
