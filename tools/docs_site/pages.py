"""MkDocs hook: the whole repository's documentation as one site.

A page's address is its path in the repository without ``docs/``. Pages outside of that folder are added, and so are the
sources that pages link to, as pages of code; links are written in pages as they are right in the repository, and
pointed here to where they lead in the site.
"""

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

DOCS = "docs"
FOLDERS = ("configs", "datasets", "demo", "tools")
# Where pages of code are.
SOURCE = "source"

_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}
_FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
# The text may hold an image, whose own address comes first; an address holds no space.
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and sources that are not in docs/."""
    root = Path(config.config_file_path).parent
    for path in extra_pages(root):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    pages = {_repository_path(file.src_uri, root): file for file in files.documentation_pages()}
    for source in linked_sources(root, pages):
        files.append(
            File.generated(
                config, site_path(source, pages), content=_code_page(root, source), inclusion=InclusionLevel.NOT_IN_NAV
            )
        )
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their targets are in the site."""
    if page.file.src_uri.startswith(f"{SOURCE}/"):
        return markdown
    root = Path(config.config_file_path).parent
    pages = {_repository_path(file.src_uri, root): file for file in files.documentation_pages()}
    path = _repository_path(page.file.src_uri, root)

    def rewrite(match: re.Match[str]) -> str:
        target = site_path(find_target(root, path, match[1]), pages)
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    return outside_code(markdown, lambda text: _LINK.sub(rewrite, text))


def extra_pages(root: Path) -> list[str]:
    """Pages of the repository outside of docs/, by their paths."""
    found = [*root.glob("*.md"), *(path for folder in FOLDERS for path in (root / folder).rglob("README.md"))]
    return sorted(path.relative_to(root).as_posix() for path in found)


def linked_sources(root: Path, pages: Iterable[str]) -> list[str]:
    """Files that some page links to and that are neither pages nor below docs/."""
    targets: set[str] = set()
    for path in pages:
        text = _FENCED.sub("", (root / path).read_text("utf-8"))
        targets |= {find_target(root, path, match[1]) for match in _LINK.finditer(text)}
    return sorted(target for target in targets - set(pages) if not target.startswith(f"{DOCS}/"))


def find_target(root: Path, page: str, link: str) -> str:
    """Path in the repository of what a page's link leads to; of a folder, its README.md.

    Raises:
        PluginError: there is no such file.
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if (root / target).is_dir():
        target = posixpath.normpath(posixpath.join(target, "README.md"))
    if not (root / target).is_file():
        raise PluginError(f"{page} links to {link}, and there is no file {target}.")
    return target


def site_path(path: str, pages: Iterable[str]) -> str:
    """Where a file of the repository is in the site, as a path of its source."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return path if path in pages else f"{SOURCE}/{path}.md"


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change a page's text, but not its fenced blocks of code."""
    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def _repository_path(src_uri: str, root: Path) -> str:
    """The reverse of :func:`site_path`, for pages."""
    inside = f"{DOCS}/{src_uri}"
    return inside if (root / inside).is_file() else src_uri


def _code_page(root: Path, path: str) -> str:
    code = (root / path).read_text("utf-8")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", code)), 3)
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n{fence}{language}\n{code}\n{fence}\n"
