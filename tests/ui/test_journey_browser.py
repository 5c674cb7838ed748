"""What a person does, in a real browser, against the whole stack: nothing is replaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from skyfleet.domain.states import LaunchStatus
from tests.ui.stack import WORLD, Person, Stack, chromium, skyfleet_up, why_no_browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
]

MODEL = "Llama 3.1 8B Instruct"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`skyfleet up`, in a world where us-east-1 has no spot capacity and machines take seconds to come up."""
    with skyfleet_up(tmp_path_factory.mktemp("up"), WORLD.format(delay_s=4)) as running:
        running.set_capacity(0, cloud="aws", region="us-east-1", market="spot")
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all journeys."""
    with chromium() as running:
        yield running


@pytest.fixture
def person(browser: Browser, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Somebody with a tab of their own; nothing on any page may raise."""
    context = browser.new_context(viewport={"width": 1280, "height": 960}, timezone_id="UTC")
    page = context.new_page()
    yield Person(page, stack.dashboard)
    page.screenshot(path=tmp_path_factory.getbasetemp() / "last.png")
    assert page.get_by_test_id("stException").count() == 0
    context.close()


def test_a_launch_falls_back_and_becomes_ready_before_ones_eyes(person: Person, stack: Stack) -> None:
    person.form_up_to_review(model=MODEL, provider="aws", region="us-east-1", instance_type="g5.xlarge")
    person.sees("--fallback-on-demand")
    job_id = person.launch()
    person.sees("✗ no capacity")
    person.sees("provisioning instance")
    expect(person.page.get_by_text("What aws said, word for word")).to_be_visible()
    expect(person.page.get_by_text("The node answers")).to_have_count(0)
    person.sees("The node answers", timeout_s=90)
    person.sees("100 % · ready")
    person.sees("aws · us-west-2a")
    # Coming back another day, by the address alone.
    person.open(f"/launch?job={job_id}")
    person.sees("The node answers")
    with stack.client() as client:
        view = client.status(job_id)
    assert view.status is LaunchStatus.COMPLETED
    assert [item.region for item in view.attempts] == ["us-east-1", "us-west-2"]
    link = person.page.get_by_role("link", name="Temporal workflow")
    assert link.get_attribute("href") == view.workflow_url
    # The list has it, and its node can be ended.
    person.open("/?status=completed")
    person.sees(job_id)
    person.open("/nodes")
    person.click("Terminate…")
    person.click("Terminate this node")
    person.sees("It is gone when its cloud says so.")
    person.sees("No node runs", timeout_s=60)
    assert stack.running() == []


def test_a_launch_is_cancelled_half_way(person: Person, stack: Stack) -> None:
    person.form_up_to_review(model=MODEL, provider="azure", region="eastus", instance_type="Standard_NV36ads_A10_v5")
    job_id = person.launch()
    person.sees("45 %")
    person.click("Cancel launch…")
    person.click("Cancel this launch")
    person.sees("The cloud confirmed that nothing of this launch is left", timeout_s=60)
    with stack.client() as client:
        assert client.status(job_id).status is LaunchStatus.CANCELLED
    assert stack.running() == []


def test_a_double_click_is_one_launch(person: Person, stack: Stack) -> None:
    with stack.client() as client:
        before = len(client.launches(limit=200).launches)
    person.form_up_to_review(model=MODEL, provider="aws", region="us-west-2", instance_type="g5.xlarge")
    person.page.get_by_role("button", name="Launch", exact=True).dblclick()
    person.page.wait_for_url("**/launch?job=launch-*")
    person.sees("Stages")
    with stack.client() as client:
        assert len(client.launches(limit=200).launches) == before + 1


def test_everything_is_reached_by_keyboard(person: Person) -> None:
    person.open("/new")
    person.sees("Search")
    person.page.get_by_role("searchbox", name="Search").focus()
    for _ in range(20):
        if person.page.evaluate("document.activeElement.innerText") == f"Choose {MODEL}":
            break
        person.page.keyboard.press("Tab")
    person.page.keyboard.press("Enter")
    person.sees("Where, and how, may it run?")


@pytest.mark.parametrize("path", ["/", "/new", "/nodes", "/launch"])
def test_no_room_is_wider_than_a_phone(browser: Browser, stack: Stack, path: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    someone = Person(context.new_page(), stack.dashboard)
    someone.open(path)
    someone.page.get_by_role("heading").first.wait_for()
    wider = someone.page.evaluate(
        "[...document.querySelectorAll('[data-testid=stMain] *')].filter(e => e.getBoundingClientRect().right > 391)"
        ".map(e => e.dataset.testid || e.tagName)"
    )
    assert wider == []
    context.close()
