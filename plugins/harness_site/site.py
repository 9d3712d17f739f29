"""index.html and pages/<task>/: one page of evidence per result, and one per task and backbone that sets two methods side by side.

The same results give the same bytes. Pages of a task stay within 10 MB: first the numbers, then as many tokens and samples as fit.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from harness.api import Board, Built, Code, Evidence, Table, scores_of, write_atomic
from harness_site.evidence import SHOWN, Evident, Filler, evident
from harness_site.overview import overview
from harness_site.side_by_side import Duel, differences
from harness_site.tokens import Raw
from harness_site.words import data, file_name, line

BYTES = 9_800_000
"""Of a task's pages together; what is over this is left out, and said."""
MARK = '<meta name="generator" content="concept-harness site">'
OURS = 400


class Pages:
    """Renders templates: autoescaped, with the style and scripts inside and allowed by their hashes alone."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader("harness_site", "pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.filters |= {"line": line, "data": data}
        self._style = _read("style.css")

    def render(self, template: str, scripts: Sequence[str], **values: Any) -> bytes:
        """A page."""
        script = "\n".join(_read(name) for name in scripts)
        allowed = f"default-src 'none'; img-src data:; style-src '{_digest(self._style)}'; script-src '{_digest(script)}'"
        rules = f"{allowed}; base-uri 'none'; form-action 'none'"
        made = self._environment.get_template(template)
        return made.render(rules=rules, style=self._style, script=script, mark=MARK, **values).encode("utf-8", "replace")


def _read(name: str) -> str:
    return "\n" + files("harness_site").joinpath("pages", name).read_text(encoding="utf-8").strip() + "\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@dataclass(frozen=True)
class Group:
    """Results of one task and backbone that may be compared: their tables, the place of their pages, and whose code they are of."""

    task: str
    results: tuple[Evidence, ...]
    tables: tuple[tuple[Board, Table], ...]
    links: Mapping[str, str]
    code: Mapping[str, tuple[Code, ...]]

    @property
    def folder(self) -> str:
        """Of the pages."""
        return file_name(self.task)

    @cached_property
    def href(self) -> str:
        """The page side by side, within the folder."""
        return f"compare-{hashlib.sha256(' '.join(sorted(self.links)).encode()).hexdigest()[:8]}.html"


def groups(built: Built) -> Iterator[Group]:
    """Tables of the same task content, limit and backbone, in order of the task's name."""

    def key(result: Evidence) -> tuple[str, ...]:
        task, backbone = result.read["task"], result.read["backbone"]
        return (str(task["name"]), str(task["fingerprint"]), str(task["limit"]), str(sorted(backbone.items())))

    for (task, *_), found in groupby(sorted(built.results, key=key), key=key):
        results = tuple(found)
        own = {result.read["run_id"] for result in results}
        tables = tuple((board, table) for board, its in built.boards for table in its if table.rows[0].run_id in own)
        links = {r.read["run_id"]: f"{file_name(r.read['method']['name'], r.read['run_id'])}.html" for r in results}
        yield Group(task, results, tables, links, built.code)


def write_site(built: Built, output: Path, registry: Any, pictures: int, read_samples: bool) -> list[str]:
    """Writes every page, removes pages of an earlier build, and says what was written and what is not on the pages."""
    pages, every, said = Pages(), list(groups(built)), []
    written: dict[Path, bytes] = {}
    for task, found in groupby(every, key=lambda group: group.task):
        its = list(found)
        made, problems = task_pages(pages, its, registry, pictures, read_samples)
        size = sum(map(len, made.values()))
        written |= {output / "pages" / name: page for name, page in made.items()}
        said += [f"left out of the pages: {problem}" for problem in problems]
        if size > 10_000_000:
            said.append(
                f"pages of task {line(task)} have {size / 1e6:.1f} MB, which is over 10: its results are too many for one site"
            )
    links = {run: f"pages/{group.folder}/{name}" for group in every for run, name in group.links.items()}
    duels = {run: f"pages/{group.folder}/{group.href}" for group in every for run in group.links}
    index = pages.render("index.html", ["sort.js", "index.js"], **overview(built, links, duels))
    for path, page in sorted(written.items()):
        write_atomic(path, page)
    write_atomic(output / "index.html", index)
    _remove_old(output / "pages", written)
    total = (len(index) + sum(map(len, written.values()))) / 1e6
    return [*said, f"wrote {(output / 'index.html').absolute()} and {len(written)} pages of evidence, {total:.1f} MB"]


def _remove_old(folder: Path, kept: Mapping[Path, bytes]) -> None:
    """Pages of an earlier build, known by their generator mark."""
    for path in sorted(folder.glob("*/*.html")):
        if path not in kept and MARK in path.read_text(encoding="utf-8", errors="replace")[:OURS]:
            path.unlink()


def task_pages(
    pages: Pages, its: Sequence[Group], registry: Any, pictures: int, read_samples: bool
) -> tuple[dict[str, bytes], list[str]]:
    """(file below pages/ -> page, problems) of one task: numbers first, then what fits beside them."""
    shown, made, problems = max(SHOWN, pictures), {}, []
    drafts = [(group, [evident(result, shown) for result in group.results], *_duel(group)) for group in its]
    used = sum(len(_page(pages, *draft, said=[])) for draft in drafts) + sum(
        len(_evidence(pages, group, page, found)) for group, evidence, _, found in drafts for page in evidence
    )
    room = max(BYTES - used, 0)
    for group, evidence, duel, found in drafts:
        raw = Raw(registry, group.results[0], read_samples, pictures)
        share = room // len(drafts)
        filler = Filler(raw, share * 2 // 5)
        said = duel.fill(filler) if duel.results else []
        made[f"{group.folder}/{group.href}"] = _page(pages, group, evidence, duel, found, said=said)
        left = share - share * 2 // 5 + filler.room
        for k, page in enumerate(evidence):
            filler = Filler(raw, left // (len(evidence) - k))
            left -= filler.room
            filler.fill(page)
            left += filler.room
            made[f"{group.folder}/{group.links[page.result.read['run_id']]}"] = _evidence(pages, group, page, found)
        problems += [raw.problem] if raw.problem else []
    return made, problems


Found = list[tuple[Board, Table, dict[tuple[str, str], list[float | None]]]]


def _duel(group: Group) -> tuple[Duel, Found]:
    of = {result.read["run_id"]: result for result in group.results}
    order = dict.fromkeys([row.run_id for _, table in group.tables for row in table.rows] + list(of))  # best first
    duel = Duel([of[run] for run in order], group.links)
    found: Found = []
    seen: dict[tuple[str, ...], dict[tuple[str, str], list[float | None]]] = {}
    for board, table in group.tables:
        column = table.columns[0]
        key = (column.metric, column.average, *sorted(row.run_id for row in table.rows))
        if key in seen:  # another board of the same column
            continue
        seen[key] = differences(table, of)
        duel.compare(line(board.title), column, table, seen[key])
        found.append((board, table, seen[key]))
    return duel, found


def _page(pages: Pages, group: Group, evidence: Sequence[Evident], duel: Duel, found: Found, said: Sequence[str]) -> bytes:
    f1 = {page.result.read["run_id"]: [concept["f1"][0] for concept in page.concepts] for page in evidence}
    if duel.results:
        for method, result in zip(duel.data["methods"], duel.results, strict=True):
            method["f1"] = f1[result.read["run_id"]]
    return pages.render(
        "compare.html",
        ["draw.js", "compare.js"],
        title=f"{line(group.task)} · {line(group.results[0].read['backbone']['name'])}",
        limit=group.results[0].read["task"]["limit"],
        page=duel.data,
        said=said,
    )


def _evidence(pages: Pages, group: Group, page: Evident, found: Found) -> bytes:
    read = page.result.read
    run = read["run_id"]
    names = {r.read["run_id"]: line(r.read["method"]["name"]) for r in group.results}
    boards = []
    for board, table, pairs in found:
        rows = [
            {"name": names[other], "href": group.links[other], "values": values}
            for other in (row.run_id for row in table.rows)
            if other != run and (values := _against(pairs, run, other)) is not None
        ]
        own = next((row for row in table.rows if row.run_id == run), None)
        if own is not None:
            place = f"rank {own.rank}" if own.standing else f"not ranked: {line(own.unranked or '')}"
            boards.append(
                {
                    "title": board.title,
                    "rank": place,
                    "column": table.columns[0].name,
                    "rows": rows,
                    "ranked": bool(table.pairs),
                }
            )
    averages = [s for s in scores_of(read) if s.concept in ("macro", "weighted") and s.layer in ("chosen", None)]
    return pages.render(
        "evidence.html",
        ["sort.js", "draw.js", "evidence.js"],
        read=read,
        method=line(read["method"]["name"]),
        parts=[
            (key, read["method"].get(key))
            for key in ("concepts", "detector", "localizer", "scorer", "fit_on", "match", "choose_on")
        ],
        averages=averages,
        kinds={name: about.get("kind") for name, about in read.get("metrics", {}).items()},
        boards=boards,
        compare=group.href,
        code=group.code.get(run, ()),
        run=run,
        page=page,
    )


def _against(pairs: Mapping[tuple[str, str], list[float | None]], mine: str, other: str) -> list[float | None] | None:
    """The difference of mine minus the other's."""
    if (mine, other) in pairs:
        return pairs[mine, other]
    if (other, mine) not in pairs:
        return None
    value, low, high, p = pairs[other, mine]
    return [_minus(value), _minus(high), _minus(low), p]


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value
