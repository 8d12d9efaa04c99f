"""The page of a run, as a person sees it in a browser. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil

import pytest
from harness import DOMAIN, PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")

WAIT_MS = 30_000


@pytest.fixture(scope="module")
def browser():
    # The package brings its driver, not a browser; it uses the machine's.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A new page. What it says on its console (refused by its policy, failed scripts) is an error of the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def rows(page, phase: str):
    """The rows of the tree in a phase."""
    return page.locator(f'[role=treeitem]:has([data-phase="{phase}"] .word)')


def appears(page, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).first.wait_for()


def test_a_finished_run(page, sdk, examples):
    run = sdk.succeed(examples.hello.main, whom="page")
    page.goto(run.url)
    rows(page, "SUCCEEDED").nth(11).wait_for()
    assert page.locator("[role=treeitem]").count() == 12
    assert page.locator("[role=treeitem]", has_text="trace").count() == 1
    appears(page, ".runhead", "hello.main")
    appears(page, ".log .line", "nuqneH, page!")
    appears(page, ".values", "Kaixo, page!")

    # The child that was retried, and the log of its first attempt.
    page.locator("[role=treeitem]", has_text="2 attempts").click()
    appears(page, ".attempts .error", "the Klingon hung up")
    page.get_by_role("button", name="Attempt 1").click()
    appears(page, ".log .line", "ConnectionError")
    assert page.url.endswith("&attempt=1")


def test_a_run_that_was_carried_out_elsewhere(page, cli, server):
    name = "t-page-tracked"
    cli("run", "--local", "--tracked", "--name", name, "hello.py", "main", "--whom", "page", of=None)
    page.goto(f"{server.endpoint}/v2/domain/{DOMAIN}/project/{PROJECT}/tracked-runs/{name}")
    rows(page, "SUCCEEDED").nth(11).wait_for()
    appears(page, ".log .line", "only reported")
    appears(page, ".values", "Kaixo, page!")


def test_a_failed_run_shows_its_error_first(page, sdk, examples):
    run = sdk.fail(examples.failing.main)
    page.goto(run.url)
    appears(page, ".panel > div:first-child .error", "only 999 straws left")
    assert page.locator(".error strong").first.inner_text() == "OutOfHay"
    # The tree comes by a watch of its own, which may be behind the panel's. Each waits for exactly one row.
    rows(page, "FAILED").wait_for()
    rows(page, "SUCCEEDED").wait_for()


def test_a_report_runs_as_a_stranger(page, sdk, examples):
    run = sdk.succeed(examples.reports.main)
    # The SDK's page around a report loads a library from elsewhere, which is not of interest here.
    page.route(lambda url: not url.startswith(sdk.server.endpoint.rstrip("/")), lambda route: route.fulfill(body=""))
    page.goto(run.url)
    report = page.frame_locator("iframe")
    report.locator("h1", has_text="35 letters").wait_for(state="attached")
    assert report.locator("body").evaluate("() => origin") == "null"


def test_a_running_run_is_live_until_it_is_aborted(page, sdk, examples):
    run = sdk.start(examples.abort.main, seconds=600)
    page.goto(run.url)
    rows(page, "RUNNING").nth(2).wait_for()
    page.locator("[role=treeitem]", has_text="sleep").first.click()
    appears(page, ".log .line", "599 s to go")
    # Nobody reloads: the log and the phases come by themselves.
    appears(page, ".log .line", "597 s to go")
    page.get_by_role("button", name="Abort run").click()
    page.get_by_label("Reason").fill("enough of this")
    page.get_by_role("button", name="Abort", exact=True).click()
    rows(page, "ABORTED").nth(2).wait_for()
    appears(page, ".runhead", "aborted")
    page.locator("[role=treeitem]").first.click()
    appears(page, ".panel .error", "enough of this")
    assert page.get_by_role("button", name="Abort run").is_hidden()


def test_the_list_of_runs_is_live(page, sdk, server, examples):
    page.goto(f"{server.endpoint.rstrip('/')}/v2")
    page.get_by_role("heading", name="Runs").wait_for()
    run = sdk.start(examples.failing.main)
    row = page.locator("tr", has_text=run.name)
    row.locator('[data-phase="FAILED"]').wait_for()
    page.get_by_label("Show").select_option("SUCCEEDED")
    row.wait_for(state="detached")
