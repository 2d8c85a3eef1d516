"""MkDocs hooks: add pages, notebooks and downloads from outside docs/ to the site.

Links are written for the repository and rewritten for the site. If the environment variable EXECUTE
is set, notebooks that have changed since their last run are run.
"""

import io
import os
import posixpath
import re
from typing import Any

import building
import click
import PIL.Image
from building import NOTEBOOKS, ROOT
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

from tfp_ar1_cli import app

# Source files outside docs/ and their pages on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results/speed.md": "benchmarks/speed.md",
    "benchmarks/results/throughput.md": "benchmarks/throughput.md",
    "notebooks/README.md": "notebooks/index.md",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in NOTEBOOKS},
}
SOURCES = {page: source for source, page in PAGES.items()}
# Pictures that only the site shows.
ONLY_HERE = re.compile(r"<!-- site: (.+?) -->")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_config(config: Any) -> Any:
    """Adds the version to the name of the site."""
    text = (ROOT / "tfp_ar1" / "version.py").read_text("utf-8")
    config.site_name += " " + re.findall('__version__ = "(.+)"', text)[0]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from outside docs/ and the pictures that are not committed."""
    for source, page in PAGES.items():
        if ROOT / source not in NOTEBOOKS:
            text = (ROOT / source).read_text("utf-8")
            files.append(File.generated(config, page, content=text))
    notebooks = building.all_executed() if os.environ.get("EXECUTE") else {}
    for path in NOTEBOOKS:
        cells = notebooks.get(path) or building.notebook(path)
        resources = {"unique_key": path.stem, "output_files_dir": path.stem}
        text, resources = MarkdownExporter().from_notebook_node(cells, resources)
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
            # Pictures have two pixels for one of the page.
            width = PIL.Image.open(io.BytesIO(content)).width // 2
            shown = f"![What this code draws]({name}){{ width={width} }}"
            text = text.replace(f"![png]({name})", shown)
        page = PAGES[str(path.relative_to(ROOT))]
        files.append(File.generated(config, page, content=text))
    for uri, path in building.pictures().items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites links for the site and inserts the help of the commands."""
    here = page.file.src_uri
    source = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def on_site(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(source, match[1]))
        if not (ROOT / target).is_file():
            return match[1]  # MkDocs reports links that are not on the site either.
        uri = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        return posixpath.relpath(uri, posixpath.dirname(here))

    markdown = ONLY_HERE.sub(r"\1", markdown)
    return LINK.sub(on_site, markdown).replace("<!-- commands -->", _commands())


def _commands() -> str:
    """The help texts of all commands."""
    parts = []
    program = click.Context(app.cli, info_name="tfp-ar1", **app.cli.context_settings)
    for name, command in sorted(app.cli.commands.items()):
        context = click.Context(command, program, name, terminal_width=100)
        parts.append(f"## tfp-ar1 {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
