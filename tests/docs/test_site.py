"""The site that `make docs` builds."""

import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort


def build_site(repository: Path, site: Path, **settings: object) -> None:
    """Raises ``Abort`` at any warning."""
    build(load_config(str(repository / "mkdocs.yml"), site_dir=str(site), strict=True, **settings))


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(repository)  # where mkdocstrings looks for the package
        build_site(repository, folder)
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


def test_every_page_of_the_repository_is_there(site: Path, repository: Path) -> None:
    found = pages(site)
    for document in repository.glob("docs/**/*.md"):
        assert document.relative_to(repository / "docs").with_suffix(".html").as_posix() in found
    for name in ("index.html", "MODEL_ZOO.html", "CHANGELOG.html", "datasets/index.html", "tools/index.html"):
        assert name in found


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    outside = re.compile(r"""<(?!a\b)[^>]+\b(?:src|srcset|href)=["']?(?:https?:)?//[^>]*>""")
    assert {name: outside.findall(text) for name, text in pages(site).items() if outside.search(text)} == {}
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style.name


def test_links_into_the_repository(site: Path) -> None:
    found = pages(site)
    assert '<a href="own_data.html">docs/own_data.md</a>' in found["index.html"]
    assert '<img alt="A photograph, segmented by ' in found["index.html"]
    assert (site / "assets/demo.jpg").is_file()
    assert 'href="datasets/index.html#your-own-data"' in found["own_data.html"]
    assert 'href="source/mask2former/modeling/mask_former.py.html"' in found["index.html"]
    assert "MaskFormer" in found["source/mask2former/modeling/mask_former.py.html"]


def test_reference_is_of_the_docstrings(site: Path) -> None:
    found = pages(site)
    for page, names in {
        "index": ["mask2former.api.load", "mask2former.api.Segmenter.predict", "mask2former.api.Result.to_coco"],
        "modeling": [
            "mask2former.modeling.mask_former.MaskFormer",
            "mask2former.modeling.pixel_decoder.MSDeformAttnPixelDecoder",
            "mask2former.modeling.transformer_decoder.MultiScaleMaskedTransformerDecoder",
            "mask2former.modeling.criterion.SetCriterion",
            "mask2former.modeling.matcher.HungarianMatcher",
        ],
        "ops": ["mask2former.ops.ms_deform_attn.ms_deform_attn", "mask2former.ops.ms_deform_attn.MSDeformAttn"],
        "data": ["mask2former.data.dataset_mappers.MaskFormerPanopticDatasetMapper"],
        "evaluation": ["mask2former.evaluation.PanopticEvaluator"],
        "engine": ["mask2former.engine.Trainer"],
        "export": ["mask2former.export.export_graph"],
    }.items():
        for name in names:
            assert f'id="{name}"' in found[f"reference/{page}.html"]
        assert not re.search(":(func|class|meth|mod):", found[f"reference/{page}.html"])


def test_formulas_need_no_script(site: Path) -> None:
    text = pages(site)["test_time_augmentation.html"]
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_a_page_that_the_navigation_lacks_is_named(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "known.md").write_text("# Known")
    (docs / "new.md").write_text("# New, with `$HOME`")
    monkeypatch.chdir(repository)
    with caplog.at_level(logging.WARNING, "mkdocs"), pytest.raises(Abort):
        build_site(repository, tmp_path / "site", docs_dir=str(docs), nav=["known.md"], hooks=[], extra_css=[])
    assert "- new.md" in caplog.text
    assert 'not included in the "nav" configuration' in caplog.text
