"""The page in a real browser: it draws, is quiet, asks for nothing, and can be read by anyone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_perf.figures.limits import parse_limits
from llm_perf.report.page import write_report
from llm_perf.report.read import read_results
from tests.client.report.browser import Page, browser
from tests.client.report.made import study
from tests.needs import needs

pytestmark = needs("chromium")
LIMITS = parse_limits("ttft.p95<150ms,tokens_per_user.avg>=60,score>=0.8", "here")

# every text that is seen, with how far its colour is from what lies behind it (WCAG 2.2, 1.4.3)
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map(
    (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return [c]; }
    return [rgb("white")]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const box = e.getBoundingClientRect();
    if (!own || ["SCRIPT", "STYLE", "title", "desc"].includes(e.tagName) || !box.width) continue;
    const svg = e.closest("svg"), style = getComputedStyle(e);
    const grounds = behind(svg || e);
    if (svg?.querySelector(".feasible"))
      grounds.push(rgb(getComputedStyle(svg.querySelector(".feasible")).fill));
    const ink = light(rgb(svg ? style.fill : style.color));
    for (const ground of grounds) {
      const paper = light(ground);
      found.push([(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05),
        e.textContent.trim().slice(0, 40)]);
    }
  }
  found.sort((a, b) => a[0] - b[0]);
  return JSON.stringify([...found.slice(0, 3), [found.length, "texts"]]);
})()"""
INK = """[...document.querySelectorAll("canvas")].map((c) => {
  const all = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  const colours = new Set();
  for (let i = 0; i < all.length; i += 4)
    if (all[i + 3] > 250) colours.add(all.slice(i, i + 3).join());
  return colours.size; })"""
DRAWN = """JSON.stringify([...document.querySelectorAll("figure")].map((f) => {
  const svg = f.querySelector("svg"), frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")];
  const boxes = texts.map((t) => t.getBoundingClientRect());
  const meet = (a, b) => a.left < b.right - 2 && b.left < a.right - 2 &&
    a.top < b.bottom - 4 && b.top < a.bottom - 4;
  const words = (bad) => texts.filter((t, i) => bad(boxes[i], i)).map((t) => t.textContent);
  return { name: f.id, size: frame.width * frame.height,
    shapes: svg.querySelectorAll(".line, .mark, .area").length,
    told: svg.querySelector("title").textContent && svg.querySelector("desc").textContent,
    rows: f.querySelectorAll("tbody tr").length,
    cut: words((b) => b.left < frame.left - 1 || b.right > frame.right + 1),
    overlaps: words((a, i) => boxes.some((b, j) => i < j && meet(a, b))) }; }))"""
FOCUSED = """(() => { const e = document.activeElement;
  return e.id || e.dataset.do || e.getAttribute("aria-label") || e.textContent.trim(); })()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = study(tmp_path_factory.mktemp("study"), loads=(4, 16, 64))
    write_report(path := folder / "report.html", read_results([str(folder)]), LIMITS)
    return path


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


def quiet(page: Page, path: Path) -> None:
    assert page.complaints == []
    assert page.asked == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1800])
def test_every_text_stands_out_and_nothing_is_wider_than_the_screen(
    page: Page, report: Path, scheme: str, width: int
) -> None:
    page.open(report, width, prefers_color_scheme=scheme)
    *least, (n, _) = json.loads(page.run(CONTRAST))
    assert n > 150 and least[0][0] >= 4.5, least
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    quiet(page, report)


@pytest.mark.parametrize("width", [360, 1280])
def test_every_chart_is_drawn_and_the_words_in_it_dont_overlap(
    page: Page, report: Path, width: int
) -> None:
    page.open(report, width)
    drawn = json.loads(page.run(DRAWN))
    assert len(drawn) == 9
    for each in drawn:
        assert each["size"] > 50_000 and each["shapes"] >= 3 and each["rows"] >= 3, each
        assert each["told"] and not each["cut"] and not each["overlaps"], each
    assert all(colours >= 3 for colours in page.run(INK))  # frame, and bars in their colours


def test_all_is_reached_and_the_timeline_zoomed_with_the_keyboard(page: Page, report: Path) -> None:
    page.open(report)
    reached = []
    for _ in range(60):
        page.press("Tab", windowsVirtualKeyCode=9)
        reached.append(page.run(FOCUSED))
        if reached[-1] == "timeline":
            break
    assert reached[0] == "To the charts" and "The table behind it" in reached
    assert reached[-6:] == ["in", "out", "left", "right", "all", "timeline"]
    shown = "document.getElementById('timeline-said').textContent"
    whole = page.run(shown)
    page.press("+", "+")
    assert whole.startswith("Shown: 0.000 to") and page.run(shown) != whole
    page.press("0", "0")
    assert page.run(shown) == whole
    quiet(page, report)


def test_the_page_may_not_reach_the_network(page: Page, report: Path) -> None:
    page.open(report)
    assert (
        page.run("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
    )
    assert any("Content Security Policy" in each for each in page.complaints)


def test_names_and_errors_of_a_hostile_server_stay_text(page: Page, tmp_path: Path) -> None:
    bad = "</script></style><script>window.hacked=1</script><img src=x onerror=hacked=1>\"'&\x1b[2J"
    folder = study(tmp_path, n=12, loads=(4, 16), hostile=bad)
    lines = read_results([str(folder)])
    page_path = tmp_path / "report.html"
    write_report(page_path, lines, LIMITS, svg_folder=tmp_path / "svg", title=bad)
    page.open(page_path)
    assert page.run("typeof window.hacked") == "undefined"
    assert page.run("document.body.textContent.includes('window.hacked=1')")
    quiet(page, page_path)
    for chart in (tmp_path / "svg").iterdir():
        page.open(chart)
        assert page.run("typeof window.hacked") == "undefined" and page.complaints == []
