"""Which head matters: the table in a browser against the Python function, cell by cell."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import pytest
from browser.conftest import Watched
from browser.test_beside import workbench  # noqa: F401  a fixture
from browser.test_correspondence import photograph
from browser.test_page import add, settled
from playwright.sync_api import Page, expect

from analysis.heads import COLUMNS, head_table
from analysis.workbench import Workbench
from memssl_core.data.images import decode_image

Visit = Callable[..., Watched]


def measure(page: Page, blocks: int = 3, heads: int = 3) -> None:
    page.get_by_role("button", name=f"Measure {blocks} × {heads} heads").click()
    expect(page.locator(".headgrid td.none")).to_have_count(0)


@pytest.mark.parametrize("shape", [(200, 400), (451, 300)])
def test_the_table_is_that_of_the_function(visit: Visit, workbench: Workbench, shape: tuple[int, int]):  # noqa: F811
    page = visit().page
    picture = photograph("chelsea", shape)
    add(page, picture)
    settled(page, f"{min(shape[0], 451)}×{min(shape[1], 300)}")
    table = head_table(workbench, decode_image(picture["buffer"]))
    grid = page.get_by_role("grid", name="Effect of silencing each attention head")
    expect(grid.get_by_role("gridcell")).to_have_text(["·"] * 9)  # nothing is measured by itself
    measure(page)
    expect(page.locator(".headtable [role=status]")).to_contain_text("all 3 blocks in")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of the head table").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert tuple(rows[0]) == COLUMNS
    for row, expected in zip(rows, table.rows, strict=True):
        assert [int(row["block"]), int(row["head"])] == expected[:2]
        values = [float(value) for value in expected[2:]]
        assert [float(row[column]) for column in COLUMNS[2:]] == pytest.approx(values, rel=1e-4, abs=1e-5)
    for button, numbers in (("KL divergence", table.kl), ("Embedding moved", table.moved)):
        page.get_by_role("button", name=button).click()
        assert numbers is not None
        cells = grid.get_by_role("gridcell").all_inner_texts()
        assert [float(cell) for cell in cells] == pytest.approx(
            numbers.ravel().tolist(), abs=0.006 * float(numbers.max())
        )
        block, head = divmod(int(numbers.argmax()), 3)
        expect(page.locator(".headtable .head .meta")).to_contain_text(f"block {block + 1}, head {head + 1}")
    page.get_by_role("button", name="Memories kept").click()
    assert table.kept is not None
    cells = grid.get_by_role("gridcell").all_inner_texts()
    assert [int(cell) for cell in cells] == [round(100 * share) for share in table.kept.ravel()]
    expect(page.locator(".headtable")).to_contain_text("62 slots, temperature")
    expect(page.locator(".headtable code")).to_contain_text(
        re.compile(r"python -m analysis heads \w+\.\w+ --model .* --out heads.csv")
    )


def test_a_cell_shows_its_map(visit: Visit):
    page = visit().page
    measure(page)
    tag = page.locator(".tag").first
    cell = page.get_by_role("gridcell", name=re.compile("^Block 2, head 3:"))
    cell.click()
    expect(tag).to_contain_text("Block 2 · head 3")
    expect(cell).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    expect(page.get_by_role("gridcell", name=re.compile("^Block 1, head 1:"))).to_be_focused()
    page.keyboard.press("Enter")
    expect(tag).to_contain_text("Block 1 · head 1")
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    expect(tag).to_contain_text("Block 3 · head 3")
    assert page.locator(".headgrid td[tabindex='0']").count() == 1
    page.locator(".heads button", has_text="Head 2").click()  # chosen in the view: marked here too
    expect(page.get_by_role("gridcell", name=re.compile("^Block 3, head 2:"))).to_have_attribute(
        "aria-selected", "true"
    )


def test_cancel_asks_no_more(visit: Visit):
    page = visit("?model=random:vit_tiny_patch16_224&img=chelsea").page
    expect(page.get_by_role("button", name="Measure 12 × 3 heads")).to_be_enabled(timeout=30_000)
    page.evaluate(
        """async () => {
          const all = [...document.querySelectorAll('.headtable button')];
          const button = words => all.find(one => one.textContent.startsWith(words));
          button('Measure').click();
          while (!document.querySelector('.headgrid td:not(.none)')) await new Promise(requestAnimationFrame);
          button('Cancel').click();
        }"""
    )
    told = page.locator(".headtable [role=status]")
    expect(told).to_contain_text(re.compile(r"^\d+ of 12 blocks; stopped$"))
    before = told.inner_text()
    page.wait_for_timeout(1500)
    assert told.inner_text() == before and int(before.split(" ")[0]) < 12
    expect(page.get_by_role("button", name="Cancel")).not_to_be_visible()
    measure(page, 12)


def test_without_a_memory_only_the_embedding_tells(visit: Visit):
    page = visit("?model=random:vit_tiny_patch16_224&img=chelsea").page
    expect(page.get_by_role("button", name="Measure 12 × 3 heads")).to_be_enabled(timeout=30_000)
    for name in ("KL divergence", "Memories kept"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    expect(page.get_by_role("button", name="Embedding moved")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".headtable")).to_contain_text("This model has no memory")
    measure(page, 12)
    assert max(map(float, page.get_by_role("gridcell").all_inner_texts())) > 0


def test_numbers_of_another_picture_are_dimmed_and_named(visit: Visit):
    page = visit("?img=chelsea").page
    measure(page)
    numbers = page.locator(".headgrid").inner_text()
    page.locator("#tray-attention .pics button[title='coffee.png']").click()
    expect(page.locator(".headtable")).to_contain_text("These numbers are of chelsea.png with small")
    expect(page.locator(".headgrid")).to_have_class(re.compile("old"))
    assert page.locator(".headgrid").inner_text() == numbers
    measure(page)
    expect(page.locator(".headtable")).not_to_contain_text("These numbers are of")
    expect(page.locator(".headgrid")).not_to_have_class(re.compile("old"))
    expect(page.locator(".headgrid")).not_to_have_text(numbers)


def test_what_went_wrong_is_said_where_it_was_asked(visit: Visit):
    page = visit("?img=chelsea").page
    page.evaluate(
        """async () => { const { session } = await import('/ui/session.js');
           session.facts.model = {...session.facts.model, blocks: 4}; session.tell(); }"""
    )
    page.get_by_role("button", name="Measure 4 × 3 heads").click()
    expect(page.locator(".headtable .note")).to_contain_text("no such transformer block")
    expect(page.locator(".headtable [role=status]")).to_have_text("")
