"""What the site shows of the repository outside of docs/: pages, notebooks, and files to download.

Links are written for the repository, and lead to the same things on the site.
"""

import pathlib
import posixpath
import re
from typing import Any

import click
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

from tfp_ar1_cli import app

ROOT = pathlib.Path(__file__).parents[1]
# Pages of the site, by the files that they are made of.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results/speed.md": "benchmarks/speed.md",
    "benchmarks/results/throughput.md": "benchmarks/throughput.md",
    **{f"notebooks/{p.name}": f"notebooks/{p.stem}.md" for p in ROOT.glob("notebooks/*.ipynb")},
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_config(config: Any) -> Any:
    """Shows the version."""
    text = (ROOT / "tfp_ar1" / "version.py").read_text("utf-8")
    config.site_name += " " + re.findall('__version__ = "(.+)"', text)[0]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    for source, page in PAGES.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            resources = {"unique_key": path.stem, "output_files_dir": path.stem}
            text, resources = MarkdownExporter().from_filename(str(path), resources=resources)
            for name, content in resources["outputs"].items():
                files.append(File.generated(config, f"notebooks/{name}", content=content))
        else:
            text = path.read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links of the repository into those of the site, and lists the commands."""
    here = page.file.src_uri
    source = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def on_site(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(source, match[1]))
        if not (ROOT / target).is_file():
            return match[1]  # MkDocs says so, if it is not on the site either.
        uri = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        return posixpath.relpath(uri, posixpath.dirname(here))

    return LINK.sub(on_site, markdown).replace("<!-- commands -->", _commands())


def _commands() -> str:
    """Every command as it explains itself."""
    parts = []
    program = click.Context(app.cli, info_name="tfp-ar1", **app.cli.context_settings)
    for name, command in sorted(app.cli.commands.items()):
        context = click.Context(command, program, name, terminal_width=100)
        parts.append(f"## tfp-ar1 {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
